"""Steps beside other packages: what is timed, what a ratio is, and what is said where one is missing."""

import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from arr_coc.eval import rules_peers
from arr_coc.eval.cli import app
from arr_coc.eval.rules_peers import PEERS, SETTLING_STEPS, WARM_UP, Peer, Shape, Step

SMALL = Shape(2, 8, 4)


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def fake(module: str, ours: list[float], theirs: list[float], order: list[str] | None = None) -> Peer:
    """A peer whose steps say that they took these seconds, one after another."""

    def side(name: str, seconds: list[float]) -> Any:
        def made(shape: Shape, clock: rules_peers.Clock) -> Step:
            left = iter(seconds)

            def take() -> float:
                if order is not None:
                    order.append(name)
                return next(left)

            return Step([], take)

        return made

    return Peer(module, "a rule", side("ours", ours), side("theirs", theirs))


def test_a_ratio_is_ours_over_theirs_within_a_round_and_the_first_rounds_do_not_count() -> None:
    order: list[str] = []
    warm = [1000.0] * WARM_UP
    peer = fake("json", [*warm, 3.0, 20.0, 100.0], [*warm, 1.0, 40.0, 50.0], order)
    (row,) = rules_peers.compare({"fake": peer}, [SMALL], 3)
    assert (row.ours, row.theirs) == (20.0, 40.0)
    assert row.ratio == 2.0  # of 3, .5 and 2; the ratio of the medians would be .5
    assert order == ["ours", "theirs"] * (WARM_UP + 3)
    shown = rules_peers.table([row], 3)
    assert shown.rows == [["fake", "a rule", "depth 2, width 8, batch 4", "20000.000", "40000.000", "2.00"]]


def test_threads_and_random_numbers_are_put_back() -> None:
    before, state, seen = torch.get_num_threads(), torch.get_rng_state(), []
    torch.set_num_threads(2)
    try:
        peer = fake("json", [1.0] * 9, [1.0] * 9)
        rules_peers.compare(
            {"fake": peer}, [SMALL], 2, progress=lambda *_: seen.append(torch.get_num_threads())
        )
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        assert torch.equal(state, torch.get_rng_state())
    finally:
        torch.set_num_threads(before)


def test_of_torch_pc_what_it_does_between_two_batches_is_counted_alone(monkeypatch) -> None:
    clock, told = Clock(), {}

    def train_pcn(net: Any, loader: Iterator[Any], **options: Any) -> None:
        print("Epoch")
        told.update(options)
        clock.pass_by(100.0)  # before the first batch
        for below, label in loader:
            assert below.shape == (4, 8)
            assert label.shape == (4,)
            clock.pass_by(2.0)
        clock.pass_by(100.0)  # after the last

    made = SimpleNamespace(PCNetwork=lambda *_, **__: torch.nn.Linear(1, 1), train_pcn=train_pcn)
    monkeypatch.setitem(sys.modules, "torch_pc", made)
    assert rules_peers.torch_pc_step(SMALL, clock).take() == 2.0
    assert (told["infer_steps"], told["T_learn"], told["num_epochs"]) == (SETTLING_STEPS, 1, 1)


def test_of_biotorch_the_whole_step_is_counted(monkeypatch) -> None:
    clock = Clock()

    class Linear(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock.pass_by(1.0)
            return super().forward(x)

    for name in ("biotorch", "biotorch.layers"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "biotorch.layers.fa", SimpleNamespace(Linear=Linear))
    step = rules_peers.biotorch_step(SMALL, clock)
    assert moved(step) == 3.0  # two rungs and the readout


def moved(step: Step) -> float:
    """The seconds of one step, in which every weight has to move."""
    before = [w.detach().clone() for w in step.weights]
    seconds = step.take()
    assert step.weights
    for old, new in zip(before, step.weights, strict=True):
        assert torch.isfinite(new).all()
        assert not torch.equal(old, new)
    return seconds


@pytest.mark.parametrize("name", PEERS)
def test_our_step_moves_all_weights_and_settles_as_long_as_theirs(name: str) -> None:
    ticks = iter(range(10))
    step = PEERS[name].ours(SMALL, lambda: float(next(ticks)))
    assert moved(step) == 1.0  # the clock is read before and after
    assert sum(w.numel() for w in step.weights) == 2 * (8 * 8 + 8) + 10 * (8 + 1)
    if name == "torch-pc":
        assert rules_peers._PC.options["steps"] == SETTLING_STEPS


@pytest.mark.parametrize("name", PEERS)
def test_their_step_moves_as_many_weights_as_ours(name: str) -> None:
    pytest.importorskip(PEERS[name].module)
    ours, theirs = (side(SMALL, Clock()) for side in (PEERS[name].ours, PEERS[name].theirs))
    assert sum(w.numel() for w in theirs.weights) == sum(w.numel() for w in ours.weights)
    moved(theirs)


@pytest.mark.parametrize("name", PEERS)
def test_both_sides_can_be_timed(name: str) -> None:
    pytest.importorskip(PEERS[name].module)
    (row,) = rules_peers.compare({name: PEERS[name]}, [SMALL], 2)
    assert row.ours > 0
    assert row.theirs > 0
    assert row.ratio > 0
    assert row.peer.startswith(name)


def test_a_missing_package_is_said_in_a_line_and_the_other_is_compared(monkeypatch, tmp_path) -> None:
    peers = {"gone-pc": fake("gone_pc.layers", [], []), "fake": fake("json", [1.0] * 108, [4.0] * 108)}
    monkeypatch.setattr(rules_peers, "PEERS", peers)
    out = tmp_path / "peers.json"
    said = CliRunner().invoke(app, ["rules", "--peers", "--quick", "--markdown", "--json", str(out)])
    assert said.exit_code == 0, said.output
    assert "gone-pc is not installed: pip install gone-pc" in said.output.splitlines()
    rows = [line for line in said.output.splitlines() if line.startswith("|")]
    assert rows[0] == "| peer | rule | shape | ours ms | theirs ms | ours/theirs |"
    assert len(rows) == 2 + len(rules_peers.SHAPES)
    assert all(line.startswith("| fake | a rule | ") and line.endswith("| 0.25 |") for line in rows[2:])
    told = json.loads(out.read_text())
    assert [(r["peer"], r["ratio"]) for r in told] == [("fake", 0.25)] * 4
    assert told[0]["shape"] == {"depth": 2, "width": 256, "batch": 64}


def test_with_neither_package_the_error_names_both(monkeypatch) -> None:
    class Absent:
        """Finds no package of a peer, whether it is there or not."""

        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name in ("torch_pc", "biotorch"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for module in [m for m in sys.modules if m.split(".")[0] in ("torch_pc", "biotorch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    said = CliRunner().invoke(app, ["rules", "--peers"])
    assert said.exit_code == 2
    for name in ("torch-pc", "biotorch"):
        assert f"{name} is not installed: pip install {name}" in said.output
    assert "Traceback" not in said.output


def test_a_package_that_lacks_another_is_not_called_missing(monkeypatch, tmp_path) -> None:
    (tmp_path / "lame_peer.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        rules_peers, "PEERS", {"lame-peer": fake("lame_peer", [], []), "fake": fake("json", [], [])}
    )
    there, lines = rules_peers.importable()
    assert list(there) == ["fake"]
    assert lines == [
        "lame-peer cannot be imported (No module named 'no_such_package'): pip install lame-peer"
    ]


@pytest.mark.parametrize("other", [["--tasks", "digits:2"], ["--online"], ["--html", "x.html"]])
def test_what_has_no_meaning_beside_peers_is_refused(other: list[str]) -> None:
    said = CliRunner().invoke(app, ["rules", "--peers", *other])
    assert said.exit_code == 2
    assert "leave" in said.output
