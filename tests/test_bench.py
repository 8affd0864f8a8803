"""The bench counts what it says it counts, leaves the process as it was, and its steps really learn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from arr_coc import state
from arr_coc.eval import bench, bench_steps
from arr_coc.eval.bench_steps import Step
from arr_coc.eval.cli import app

FORWARDS = ("bare forward", "forward, learning off", "forward, nothing learned", "forward, relevance on")


def steps(shape: str, batch: int = 1) -> list[Step]:
    return bench_steps.steps(bench_steps.model(shape), batch)


def logits(output: Any) -> torch.Tensor:
    return output.logits if hasattr(output, "logits") else output.logits_per_image


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


@pytest.mark.parametrize("shape", ["tiny", "tiny-LLaVA"])
def test_rows_stand_beside_the_bare_model(shape: str) -> None:
    rows = bench.bench([shape], [1, 2], repeats=3, seconds=0)
    names = [step.name for step in steps(shape)]
    assert [r.step for r in rows] == ["attach", *names] * 2
    assert set(FORWARDS) < set(names)
    for r in rows:
        assert r.seconds > 0
        assert r.holds is None  # bounds are for models of some size
        if r.step != "attach":
            assert r.rounds == 3
            assert r.megabytes > 0
            assert 0 < r.low <= r.ratio <= r.high
        if r.step == r.beside:
            assert (r.low, r.ratio, r.high, r.memory_ratio) == (1, 1, 1, 1)
    table = bench.markdown(rows).splitlines()
    assert len(table) == len(rows) + 2


def test_ratios_are_medians_of_those_within_a_round() -> None:
    """On a clock that stands still but for what a step says, drifts and all."""
    now, turns = [0.0], {"one": iter([9, 1, 2, 4, 8]), "two": iter([9, 3, 6, 12, 8])}

    def takes(name: str) -> Callable[[], None]:
        return lambda: now.__setitem__(0, now[0] + next(turns[name]))

    made = [Step(name, takes(name), "one") for name in turns]
    spent = bench.in_turn(made, 4, 0, lambda: now[0])
    assert spent == {"one": [1, 2, 4, 8], "two": [3, 6, 12, 8]}  # the first round does not count
    idle = [Step(name, lambda: torch.empty(1000), "one", 2.5) for name in turns]
    one, two = bench._rows("B/32", 1, idle, spent, True)
    assert (one.ratio, two.ratio) == (1, 3)
    assert (two.low, two.high) == (1.5, 3)
    assert (one.holds, two.holds) == (True, False)
    assert bench.verdict([one, two]) == "1 of 2 bounds hold; missed: B/32 batch 1 two"


def test_rounds_go_on_until_the_seconds_are_spent() -> None:
    now = [0.0]
    made = [Step("one", lambda: now.__setitem__(0, now[0] + 1), "one")]
    assert len(bench.in_turn(made, 3, 10, lambda: now[0])["one"]) == 9
    assert len(bench.in_turn(made, 3, 0, lambda: now[0])["one"]) == 3


def test_state_is_that_of_the_adapter_in_memory_and_as_it_is_saved(tmp_path: Path) -> None:
    rows = {r.step: r for r in bench.bench(["tiny"], [2], repeats=1, seconds=0)}
    adapter = next(s.adapter for s in steps("tiny", 2) if s.name == "learn")
    for _ in range(3):
        adapter.learn(labels=torch.tensor([0, 1]), **bench_steps.inputs(adapter.model, 2))
    assert rows["learn"].state_mb == state.size(adapter.learner) / 1e6 == adapter.inspect().state_bytes / 1e6
    adapter.save_pretrained(tmp_path / "a")
    disk = sum(f.stat().st_size for f in (tmp_path / "a").iterdir())
    assert rows["learn"].disk_mb == pytest.approx(disk / 1e6, rel=0.01)
    assert rows["act and reward"].state_mb > rows["learn"].state_mb  # a statistic for every rewarded row
    assert rows["bare forward"].state_mb is None


@pytest.mark.parametrize("shape", ["tiny", "tiny-LLaVA"])
def test_off_is_the_bare_model_and_on_is_not(shape: str) -> None:
    made = {step.name: step for step in steps(shape, 2)}
    bare, off, nothing, on = (logits(made[name].run()) for name in FORWARDS)
    assert torch.equal(off, bare)
    assert torch.equal(nothing, bare)
    assert not torch.equal(on, bare)  # what was learned is mixed in: that path is the one that is timed
    if shape == "tiny-LLaVA":
        bare, off = made["bare generate"].run(), made["generate, learning off"].run()
        assert torch.equal(off, bare)
        assert bare.shape[1] == made["generate, relevance on"].run().shape[1]


def test_the_attached_copies_share_the_bare_models_weights() -> None:
    model = bench_steps.model("tiny")
    for step in bench_steps.steps(model, 1):
        if step.adapter is not None:
            pairs = zip(model.parameters(), step.adapter.model.parameters(), strict=True)
            assert all(one is two for one, two in pairs)
            assert step.adapter.model is not model


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    seen = []
    told = lambda *_: seen.append(torch.get_num_threads())  # noqa: E731
    bench.bench(["tiny"], [1], threads=1, repeats=1, seconds=0, progress=told)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_lora_keeps_more_than_the_forward_and_the_plugin_does_not() -> None:
    made = {step.name: step.run for step in steps("tiny", 8)}
    for step in made.values():
        step()
    wanted = ("bare forward", "learn", "LoRA + AdamW")
    forward, plugin, lora = (bench.peak_bytes(made[name]) for name in wanted)
    assert plugin < 2 * forward
    assert lora > 2 * forward


def test_the_frozen_model_is_not_touched() -> None:
    model = bench_steps.model("tiny")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for step in bench_steps.steps(model, 2):
        step.run()
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_unknown_shape_says_what_is_possible() -> None:
    with pytest.raises(ValueError, match="B/32"):
        bench_steps.model("L/14")


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--shapes", "tiny", "--batches", "1", "--repeats", "1", "--seconds", "0", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [r["step"] for r in rows] == ["attach", *(step.name for step in steps("tiny"))]


def test_the_command_line_prints_markdown_and_writes_json(tmp_path: Path) -> None:
    asked = ["bench", "--shapes", "tiny", "--batches", "1", "--repeats", "1", "--seconds", "0", "--markdown"]
    done = CliRunner().invoke(app, [*asked, "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "rows.json").read_text())
    printed = [line for line in done.stdout.splitlines() if line.startswith("| tiny")]
    assert [line.split(" | ")[2] for line in printed] == [r["step"] for r in rows]
    assert "no bounds" in done.stdout
