"""What ArrCocTrainer logs arrives where `report_to` sends it: read back with each backend's own reader."""

import pytest

from training_data import BODIES, logged, pictures, trainer

TOLD = ("loss", "accuracy", "surprise")


def run(out, report_to: str, body: str = "dual"):
    """A short life with evaluations on the way; returns the trainer."""
    said = {"report_to": report_to, "project": "lives", "run_name": "first"}
    held = {"eval_dataset": pictures(6, seed=9), "eval_strategy": "steps", "eval_steps": 4}
    one = trainer(out, body, **said, **held)
    one.train()
    return one


@pytest.mark.parametrize("body", BODIES)
def test_event_files_hold_the_prequential_figures(tmp_path, body: str) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    one = run(tmp_path, "tensorboard", body)
    (folder,) = (tmp_path / "runs").iterdir()
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    held = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name in TOLD:
        assert held[f"train/{name}"] == [
            (step, pytest.approx(value, rel=1e-6))
            for step, value in zip((2, 4, 6, 8), logged(one, name), strict=True)
        ]
        assert held[f"train/train_{name}"] == [(8, pytest.approx(logged(one, f"train_{name}")[0], rel=1e-6))]
    assert [step for step, _ in held["eval/loss"]] == [4, 8]
    assert [value for _, value in held["eval/loss"]] == pytest.approx(logged(one, "eval_loss"), rel=1e-6)
    assert [value for _, value in held["train/classes"]] == logged(one, "classes")
    lines = [{k: v for k, v in line.items() if k != "step"} for line in one.state.log_history]
    told = {k if k.startswith("eval_") else f"train_{k}" for line in lines for k in line}
    assert {k.replace("_", "/", 1) for k in told} == set(held)  # none was dropped as no scalar
    assert {"train/learning_rate", "train/grad_norm"}.isdisjoint(held)


def test_trackio_holds_the_prequential_figures(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    one = run(tmp_path, "trackio")
    lines = SQLiteStorage.get_logs("lives", "first")
    for name in TOLD:
        told = [
            (line["train/global_step"], line[f"train/{name}"]) for line in lines if f"train/{name}" in line
        ]
        assert told == list(zip((2, 4, 6, 8), logged(one, name), strict=True))
    assert [line["eval/loss"] for line in lines if "eval/loss" in line] == logged(one, "eval_loss")


def test_wandb_offline_holds_the_prequential_figures(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    wandb = pytest.importorskip("wandb")
    one = run(tmp_path, "wandb")
    try:
        last = dict(wandb.run.summary)
    finally:
        wandb.finish()
    for name in TOLD:
        assert last[f"train/{name}"] == logged(one, name)[-1]
    assert last["train_loss"] == logged(one, "train_loss")[0]
    assert last["eval/loss"] == logged(one, "eval_loss")[-1]
    assert last["train/global_step"] == 8
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
