"""Killed at any moment, or out of disk: the last good checkpoint is there, and who goes on ends the same."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState

import tiny
from arr_coc import ArrCocModel, attach
from arr_coc.adapters import saving
from arr_coc.training import checkpoint
from training_data import SMALL, learned, logged, same, trainer

HERE = Path(__file__).parent


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_never_was(tmp_path: Path, kills: int) -> None:
    """SIGKILL at random moments and, every other time, while a checkpoint is written; then it is resumed."""
    command = [sys.executable, str(HERE / "kill_and_resume.py"), str(tmp_path), str(kills), "1"]
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=1800
    )
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    print(told)
    assert told["kills"] == kills
    assert told["while_saving"] >= (kills + 1) // 2
    assert told["resumed"] >= 1
    assert told["same"] == told["ends"] >= 1
    assert told["scratch"] <= 1  # what a killed save has left goes when the run goes on


def _full(path: Any) -> None:
    """Some bytes still fit, the rest does not."""
    Path(path).write_bytes(b"0" * 100)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


FAILING = {
    "the adapter": (saving, "save_file"),
    "the card": (saving.card, "write"),
    "the generators": (checkpoint, "save_file"),
    "the trainer's state": (TrainerState, "save_to_json"),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_full_disk_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: Any, what: str
) -> None:
    changes = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    whole = trainer(tmp_path / "whole", **changes)
    whole.train()
    owner, name = FAILING[what]
    proper, calls = getattr(owner, name), []
    one = trainer(tmp_path / "full", **changes)

    def write(*args: Any, **named: Any) -> Any:
        calls.append(one.state.global_step)
        if calls[-1] > 3:
            at = next(arg for arg in args if isinstance(arg, str | Path))
            _full(at / "README.md" if what == "the card" else at)
        return proper(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, write)
        with pytest.raises(OSError, match="No space left") as caught:
            one.train()
    assert caught.value.errno == errno.ENOSPC
    assert len(calls) > 1
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["checkpoint-3"]
    again = trainer(tmp_path / "full", **changes)
    again.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(again))


def test_a_full_disk_leaves_what_was_saved_before(tmp_path: Path, monkeypatch: Any) -> None:
    attached = attach(tiny.dual(), SMALL)
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]))
    folder = attached.save_pretrained(tmp_path / "kept")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([2, 1, 0]))

    def second(tensors: Any, path: Path, **named: Any) -> None:
        if path.name == saving.BASE:
            _full(path)
        save_file(tensors, path, **named)

    monkeypatch.setattr(saving, "save_file", second)
    with pytest.raises(OSError, match="No space left"):
        attached.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    attached.detach()
    ArrCocModel.from_pretrained(tiny.dual(), folder).detach()


def test_a_checkpoint_is_saved_when_the_last_one_is_old_enough(tmp_path: Path, monkeypatch: Any) -> None:
    """A clock of 10 seconds a step, and a bound of 25: every third step, whatever the strategy says."""
    clock = [0.0]
    monkeypatch.setattr("arr_coc.training.between.time.monotonic", lambda: clock[0])
    one = trainer(tmp_path, save_minutes=25 / 60)

    class Tick(TrainerCallback):
        def on_step_begin(self, *args: Any, **named: Any) -> None:
            clock[0] += 10

    one.add_callback(Tick())
    one.train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    assert len(logged(one, "loss")) == 4
    monkeypatch.undo()
    again = trainer(tmp_path)
    again.train(resume_from_checkpoint=True)
    assert same(learned(one), learned(again))
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="save_minutes"):
            trainer(tmp_path, save_minutes=wrong)


def test_a_checkpoint_that_is_written_again_is_not_complete_before_its_end(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    for name in (checkpoint.TRAINER_STATE_NAME, saving.CONFIG, saving.STATE):
        (folder / name).write_text("{}")
    assert checkpoint.complete(folder)
    writing = checkpoint.whole_or_gone(folder)
    writing.__enter__()
    assert not checkpoint.complete(folder)
    stopped = KeyboardInterrupt()
    assert not writing.__exit__(KeyboardInterrupt, stopped, None)  # it goes on up
    assert not folder.exists()


def test_there_is_no_moment_without_the_saved_folder(tmp_path: Path) -> None:
    """Between two renames there was one, and who was killed in it had only a scratch folder."""
    for name in "ab":
        (tmp_path / name).mkdir()
    if not saving._exchanged(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system cannot exchange folders")
    attached, missing, done = attach(tiny.dual(), SMALL), [], threading.Event()
    folder = attached.save_pretrained(tmp_path / "kept")

    def watch() -> None:
        while not done.is_set():
            missing.extend([1] * (not folder.exists()))

    other = threading.Thread(target=watch)
    other.start()
    for _ in range(10):
        attached.save_pretrained(folder)
    done.set()
    other.join()
    assert not missing
    assert [p.name for p in tmp_path.iterdir() if p.name not in "ab"] == ["kept"]
    attached.detach()
