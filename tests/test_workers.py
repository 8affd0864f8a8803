"""Tasks in several processes: what is found, and how all of it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from arr_coc.eval import jsonl, run
from arr_coc.eval.grid import Grid
from arr_coc.eval.workers import InWorker, Pool
from chores import LINE, Chore
from fakes import CONFIG, FakeProcessor, tiny_clip

SECONDS = {"step_seconds", "exam_seconds", "forward_seconds", "step_cost"}


def there(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def soon(true: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(true())


def test_processes_find_what_one_finds_on_one_thread_and_append_without_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    tasks = [Chore("powers", 4), Chore("powers", 2), Chore("powers", 3)]
    out = tmp_path / "lines.jsonl"
    out.write_text('{"key": [9, 9')  # cut off
    with Pool({"base": 3}, 2) as pool:
        found: dict[int, list[int]] = {}
        for place, value in pool.each(tasks):
            found.setdefault(place, []).append(value)
        assert found == {0: [1, 3, 9, 27], 1: [1, 3], 2: [1, 3, 9]}
        assert [value for _, value in pool.each([Chore("threads")])] == [1]
        assert "OMP_NUM_THREADS" not in os.environ
        writers = [Chore("append", i, out) for i in range(2)]
        assert sorted(value for _, value in pool.each(writers)) == [0, 1]
    lines = jsonl.read(out)
    assert sorted(line["key"] for line in lines) == [[i, k] for i in range(2) for k in range(20)]
    assert all(line["long"] == LINE for line in lines)


def test_one_failure_ends_all_and_is_shown(tmp_path: Path) -> None:
    found: list[Any] = []
    with pytest.raises(LookupError, match="nothing there") as caught, Pool({}, 2) as pool:
        found.extend(value for _, value in pool.each([Chore("sleep", path=tmp_path), Chore("fail")]))
    assert "before" in found
    assert caught.value.__notes__ == ["at chore fail 0"]
    assert isinstance(caught.value.__cause__, InWorker)
    assert "chores.py" in str(caught.value.__cause__)
    assert all(not there(int(p.name)) for p in tmp_path.iterdir())
    with pytest.raises(ChildProcessError, match="chore die 0 ended with exit code 7"), Pool({}, 2) as pool:
        list(pool.each([Chore("die")]))


def test_ctrl_c_ends_all(tmp_path: Path) -> None:
    code = f"import chores; chores.sleep_in_two({str(tmp_path)!r})"
    path = os.pathsep.join(p for p in sys.path if p)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert soon(lambda: len(list(tmp_path.iterdir())) == 2)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
        said = parent.communicate(timeout=60)[1]
    finally:
        parent.kill()
    assert said.count("Traceback") == 1  # of the one that waited
    assert "KeyboardInterrupt" in said
    assert soon(lambda: not any(there(int(p.name)) for p in tmp_path.iterdir()), 5)


def told(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in SECONDS} for r in runs]


def test_a_grid_is_the_same_bit_for_bit_in_one_process_and_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    grid = Grid("cued-clutter", 4, n_train=24, n_test=12, tune_train=6, config=CONFIG)
    asked = {"methods": ["plugin", "ncm", "head"], "seeds": [0], "orders": [0, 1], "held": 0}
    one = run.run(grid, **asked, out=tmp_path / "one.jsonl")
    cache = tmp_path / "cache"
    seen: list[tuple[str, int, int]] = []
    follow = {"cache": cache, "jobs": 2, "progress": lambda *said: seen.append(said)}
    two = run.run(grid, **asked, **follow, out=tmp_path / "two.jsonl")
    assert told(two) == told(one)
    assert [(r["method"], r["order"]) for r in two] == [
        *[(m, 0) for m in ("plugin", "ncm", "head")],
        *[(m, 1) for m in ("plugin", "head")],
    ]
    kept = jsonl.read(tmp_path / "two.jsonl")
    assert sorted(r["key"] for r in kept) == sorted(r["key"] for r in one)
    assert [r["method"] for r in jsonl.read(tmp_path / "two.tuned.jsonl")] == ["head"]  # once
    assert len(list(cache.glob("*.safetensors"))) == 1  # perceived once for both orders
    assert (5, 5) in [said[1:] for said in seen]


def test_what_another_process_cannot_be_told_is_refused(tmp_path: Path) -> None:
    class Local:
        def observe(self, batch: Any) -> None: ...

        def predict(self, batch: Any, texts: list[str]) -> list[str]:
            return texts

    grid, out = Grid("cued-clutter", n_train=24, n_test=12), tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match="module:Class"):
        run.run(grid, {"mine": Local}, seeds=[0], orders=[0], out=out, jobs=2)
    with pytest.raises(ValueError, match="from a folder"):
        run.run(grid, ["ncm"], model=(tiny_clip(), FakeProcessor()), out=out, jobs=2)
    with pytest.raises(ValueError, match="jobs=0"):
        run.run(grid, ["ncm"], out=out, jobs=0)
    assert not out.exists()
