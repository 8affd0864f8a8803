"""The bench counts what it says it counts, leaves the process as it was, and its steps really learn."""

import json

import pytest
import torch

from arr_coc.eval import bench


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


def test_rows_stand_beside_the_frozen_forward() -> None:
    rows = bench.bench(["tiny"], [1, 2], repeats=3)
    assert [r.step for r in rows] == list(bench.STEPS) * 2
    for r in rows:
        assert r.seconds > 0
        assert r.megabytes > 0
        if r.step == bench.STEPS[0]:
            assert (r.ratio, r.memory_ratio) == (1, 1)
    table = bench.markdown(rows).splitlines()
    assert len(table) == len(rows) + 2


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []
    bench.bench(["tiny"], [1], threads=1, repeats=1, progress=lambda *_: seen.append(torch.get_num_threads()))
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_lora_keeps_more_than_the_forward_and_the_plugin_does_not() -> None:
    model = bench.clip("tiny")
    made = bench.steps(model, 8)
    for step in made.values():
        step()
    forward, plugin, _, lora = (bench.peak_bytes(step) for step in made.values())
    assert plugin < 2 * forward
    assert lora > 2 * forward


def test_the_frozen_model_is_not_touched() -> None:
    model = bench.clip("tiny")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for step in bench.steps(model, 2).values():
        step()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_unknown_shape_says_what_is_possible() -> None:
    with pytest.raises(ValueError, match="B/32"):
        bench.clip("L/14")


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--shapes", "tiny", "--batches", "1", "--repeats", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [r["step"] for r in rows] == list(bench.STEPS)
