"""The grid from end to end: it runs, goes on where it stopped, and its records give the table."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fakes
from arr_coc import ArrCocConfig
from arr_coc.eval import jsonl, methods, metrics, outputs, records, run, table
from arr_coc.training import streams
from fakes import CONFIG, FakeTexts, fake_store


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return fakes.tiny_clip(), fakes.FakeProcessor()


def test_grid_runs_resumes_and_its_records_give_the_table(
    tiny: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {n: replace(s, grid=s.grid[:1]) for n, s in methods.METHODS.items()}
    monkeypatch.setattr(methods, "METHODS", quick)
    grid = run.Grid("cued-clutter", 1, n_train=24, n_test=12, lora_train=6, tune_train=6, config=CONFIG)
    names = ["zero-shot", "plugin", "joint", "oracle", "backprop", "lora", "random-tower"]
    out = tmp_path / "runs.jsonl"
    asked = {"seeds": [0, 1], "orders": [0], "model": tiny, "out": out, "held": 2}
    found = run.run(grid, names, **asked)
    assert len(found) == 2 * len(names)
    written = out.read_bytes()

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a run that stands in the file was run again")

    monkeypatch.setattr(run, "one", never)
    again = run.run(grid, names, **asked)
    assert out.read_bytes() == written
    assert again == [json.loads(line) for line in written.decode().splitlines()]

    plugin = found[1]
    assert plugin["method"] == "plugin"
    assert len(plugin["R"]) == 7
    assert all(len(row) == 6 for row in plugin["R"])
    assert plugin["step_cost"] > 1
    lora = next(r for r in found if r["method"] == "lora")
    assert lora["n_learned"] == 6
    oracle = next(r for r in found if r["method"] == "oracle")
    assert oracle["P"][-1] == [1.0] * 6

    outputs.export(found, tmp_path / "records.jsonl")
    raw = records.by_run(records.read(tmp_path / "records.jsonl"))
    matrix = records.matrix(raw["plugin", "cued-clutter", 0, 0])
    assert metrics.final_accuracy(matrix) == pytest.approx(table.scores(plugin)["final_accuracy"])
    rows = table.summary(found)
    assert [r["method"] for r in rows] == names
    by_name = {r["method"]: r for r in rows}
    gap = by_name["joint"]["final_accuracy"].mean - by_name["plugin"]["final_accuracy"].mean
    assert by_name["plugin"]["joint_gap"].mean == pytest.approx(gap)
    assert by_name["plugin"]["final_accuracy"].n == 2
    assert "| plugin |" in table.markdown(rows)
    assert "lora (n = 6)" in table.markdown(rows)


def test_an_order_free_method_runs_once_a_seed_and_is_compared_by_seed(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    grid = run.Grid("cued-clutter", 4, n_train=24, n_test=12, config=CONFIG)
    found = run.run(grid, ["plugin", "oracle"], seeds=[0, 1], orders=[1, 2], model=tiny, held=0)
    assert [(r["method"], r["seed"], r["order"]) for r in found] == [
        (m, s, o) for s in (0, 1) for m, o in (("plugin", 1), ("oracle", 1), ("plugin", 2))
    ]
    final = [table.scores(r)["final_accuracy"] for r in found]
    by_hand = [final[1] - (final[0] + final[2]) / 2, final[4] - (final[3] + final[5]) / 2]
    row = next(r for r in table.summary(found) if r["method"] == "oracle")
    assert row["vs_plugin"].mean == pytest.approx(sum(by_hand) / 2)
    assert row["vs_plugin"].n == 2


def test_a_line_that_was_cut_off_is_a_run_that_did_not_end(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    jsonl.append(path, {"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "R": [[0.')
    jsonl.append(path, {"key": "c"})
    assert [r["key"] for r in jsonl.read(path)] == ["a", "c"]


def test_settings_are_tuned_on_a_seed_that_no_run_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = streams.load

    def load(name: str, seed: int = 0, **options: Any) -> streams.Stream:
        seen.append(seed)
        return real(name, seed=seed, **options)

    monkeypatch.setattr(streams, "load", load)
    monkeypatch.setattr(run.percepts, "plan", lambda *_: None)
    scores = iter([0.1, 0.7, 0.3, 0.2, 0.5])
    monkeypatch.setattr(run, "one", lambda *_, **__: {"R": [[next(scores)]]})
    store = fake_store()
    fake = SimpleNamespace(processor=None, store=lambda *_: store, model=None)
    grid = run.Grid("cued-clutter", n_train=24, n_test=12)
    best, tried = run.tune("backprop", grid, lambda _: fake)
    assert best == {"rate": methods.RATES[1]}
    assert len(tried) == len(methods.RATES)
    assert set(seen) == {run.TUNING_SEED}


def test_a_product_that_is_too_wide_to_solve_is_refused() -> None:
    store = fake_store()
    texts = FakeTexts(width=64)
    many = replace(store, texts=texts, contexts=[f"cue {i}" * (i + 1) for i in range(40)])
    with pytest.raises(ValueError, match="too wide"):
        methods.spec("mean-context").make(methods.Setup(many, CONFIG))


def test_an_unknown_stream_stops_the_grid_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'cued-clutter'"):
        run.run(run.Grid("cued-cluter"), ["plugin"], out=tmp_path / "x.jsonl")


def test_an_unknown_method_stops_the_grid_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no method"):
        run.run(run.Grid("cued-clutter"), ["plugins!"], out=tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_what_a_run_ends_with_is_asked_where_its_stream_is_not_outdated() -> None:
    rows = [*[[0.0] * 4] * 4, [0.1, 0.3, 0.6, 1.0]]
    found = {"R": rows, "C": [[None] * 4] * 5, "P": None, "CP": None, "zero_shot_before": None}
    assert table.scores(found)["final_accuracy"] == pytest.approx(0.5)
    assert table.scores(found | {"outdated": [0, 1]})["final_accuracy"] == pytest.approx(0.8)


class Watched(ArrCocConfig):
    """A config that tells whether it was read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ArrCocConfig.__dataclass_fields__:
            read.append(name)
        return super().__getattribute__(name)


read: list[str] = []


@pytest.mark.parametrize(
    "name", [n for n, s in methods.METHODS.items() if "dual" in s.bodies and not s.inside]
)
def test_a_run_is_known_by_what_decides_it(name: str) -> None:
    """The plugin's config is in the key of every method that reads it, and of no other."""
    config = Watched(expansion=8)
    read.clear()
    methods.spec(name).make(methods.Setup(fake_store(), config))
    assert methods.spec(name).configured == bool(read)
    grid = run.Grid("cued-clutter", config=CONFIG)
    other = replace(grid, config=replace(CONFIG, eta=0.9))
    assert (grid.key(name, 0, 0, "m") != other.key(name, 0, 0, "m")) == bool(read)


def test_what_else_decides_a_run_is_in_its_key() -> None:
    grid = run.Grid("cued-clutter", config=CONFIG)
    key = grid.key("lora", 0, 0, "m")
    assert replace(grid, lora_train=7).key("lora", 0, 0, "m") != key
    assert replace(grid, lora_train=7).key("backprop", 0, 0, "m") == grid.key("backprop", 0, 0, "m")
    assert replace(grid, tune_train=7).key("backprop", 0, 0, "m") != grid.key("backprop", 0, 0, "m")
    assert grid.key("lora", 0, 0, "m", 40) != grid.key("lora", 0, 0, "m", None) != key


def test_a_cache_that_is_a_file_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(ValueError, match="is a file"):
        run.run(run.Grid("cued-clutter"), ["plugin"], out=tmp_path / "x.jsonl", cache=tmp_path / "cache")
    assert not (tmp_path / "x.jsonl").exists()
    assert (tmp_path / "cache").read_text() == "not a folder"
