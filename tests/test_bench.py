"""The bench counts what it says it counts, leaves the process as it was, and its steps really learn."""

import json

import pytest
import torch
from typer.testing import CliRunner

from arr_coc.eval import bench, bench_models
from arr_coc.eval.cli import app


def test_peak_is_the_highest_running_sum_of_live_bytes() -> None:
    megabyte = 250_000  # floats

    def step() -> torch.Tensor:
        one = torch.empty(megabyte)
        two = torch.empty(2 * megabyte)
        del two  # released before the next is taken: 3 MB is the peak, not 5
        two = torch.empty(megabyte)
        return one.add_(two)

    step()
    assert bench.peak_bytes(step) == pytest.approx(3e6, rel=0.01)


@pytest.mark.parametrize("shape", ["tiny", "llava-tiny"])
def test_rows_stand_beside_the_bare_forward(shape: str) -> None:
    rows = bench.bench([shape], [1, 2], repeats=3)
    names = [r.step for r in rows[: len(rows) // 2]]
    assert names[0] == bench.FORWARD
    assert names[-1] == bench.ATTACH
    assert [r.step for r in rows] == names * 2
    assert ("one learning step with a context" in names) == (shape == "tiny")
    for r in rows:
        assert r.seconds > 0
        assert r.low <= r.ratio <= r.high
        if r.step == bench.FORWARD:
            assert (r.ratio, r.memory_ratio) == (1, 1)
            assert r.megabytes > 0
    kept = {r.step: r.state_megabytes for r in rows}
    assert kept["one learning step"] > 0
    assert kept[bench.FORWARD] == 0
    assert set(bench.cells(rows[0])) == set(bench.cells(rows[1]))


@pytest.mark.parametrize("shape", ["tiny", "llava-tiny"])
def test_off_is_the_bare_model_and_on_runs_the_answering_path(shape: str) -> None:
    made, _ = bench.steps(bench_models.model(shape), 2)
    bare, off, on = list(made.values())[:3]
    logits = "logits" if shape == "llava-tiny" else "logits_per_image"
    assert torch.equal(bare()[logits], off()[logits])
    assert not hasattr(off(), "relevance")
    assert on().relevance.shape == (2, 16)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []
    bench.bench(["tiny"], [1], threads=1, repeats=1, progress=lambda *_: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_lora_keeps_more_than_the_forward_and_the_plugin_does_not() -> None:
    made, _ = bench.steps(bench_models.model("tiny"), 8)
    named = (bench.FORWARD, "one learning step", "PEFT LoRA r=8 + AdamW step")
    forward, plugin, lora = (bench.peak_bytes(made[name]) for name in named)
    assert plugin < 2 * forward
    assert lora > 2 * forward


def test_the_frozen_model_is_not_touched() -> None:
    model = bench_models.model("tiny")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for step in bench.steps(model, 2)[0].values():
        step()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_unknown_shape_says_what_is_possible() -> None:
    with pytest.raises(ValueError, match="B/32"):
        bench_models.model("L/14")


def test_command_prints_a_table_and_writes_json(tmp_path) -> None:
    said = ["bench", "--shapes", "tiny", "--batches", "1", "--repeats", "1", "--markdown"]
    done = CliRunner().invoke(app, [*said, "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(done.output.strip().splitlines()) >= len(rows) + 2
    assert all(r["step"] in done.output for r in rows)
