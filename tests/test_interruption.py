"""Ctrl-C as a person and as a launcher give it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arr_coc.training.interruption import Interruption
from training_data import learned, same, trainer

SCRIPT = """
import signal, sys, time
from training_data import trainer
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
one = trainer(sys.argv[1], disable_tqdm=False)
collate = one.data_collator
one.data_collator = lambda samples: (time.sleep(0.2), collate(samples))[1]
one.train()
"""


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_ctrl_c_that_a_launcher_passes_on_is_not_a_second_one(monkeypatch) -> None:
    """torchrun and accelerate send it to processes that had it from the terminal: nothing was saved."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    one = Interruption()
    with one.watch():
        press()
        press()
        assert one.asked
        later = time.monotonic() + 1.5
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt, match="at once"):
            press()
    monkeypatch.delenv("LOCAL_RANK")
    with one.watch():
        press()
        with pytest.raises(KeyboardInterrupt, match="at once"):
            press()


@pytest.mark.slow
def test_a_script_that_is_stopped_shows_how_far_it_was_ends_in_one_line_and_is_resumed(tmp_path) -> None:
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "cut")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    said = b""
    while b"3/8" not in said and (more := os.read(run.stderr.fileno(), 4096)):
        said += more
    run.send_signal(signal.SIGINT)
    said = (said + run.communicate(timeout=60)[1]).decode()
    assert run.returncode == -signal.SIGINT  # 130 to a shell
    assert re.search(r"3/8 \[\d\d:\d\d<\d\d:\d\d, ", said)  # done, and how long it will take
    (folder,) = (tmp_path / "cut").glob("*")
    step = int(folder.name.removeprefix("checkpoint-"))
    assert "go on with train(resume_from_checkpoint=True)" in said
    assert said.strip().endswith(f"KeyboardInterrupt: stopped after step {step}")
    assert len(said[said.index("Traceback") :].splitlines()) < 8
    whole, resumed = trainer(tmp_path / "whole"), trainer(tmp_path / "cut")
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))
