"""Drift: what is dropped, when, and that nothing else changes."""

import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc.drift import Drift
from arr_coc.merge import check
from arr_coc.readout import PrecisionReadout

CONFIG = ArrCocConfig(width=6, expansion=0, spread=0, drift="challenge", drift_margin=3.0, evidence="uniform")
CLASSES = ["a", "b", "c"]


def sample(k: int, turned: int = 0) -> tuple[Percept, list[str]]:
    """One of three far kinds of tokens, in turn; its class is the one `turned` places on."""
    draw = torch.Generator().manual_seed(k)
    kind = torch.randn(6, generator=torch.Generator().manual_seed(k % 3))
    tokens = (kind + 0.05 * torch.randn(1, 4, 6, generator=draw),)
    seen = Percept(tokens, torch.full((1, 4), 0.25), torch.ones(1, 5), asked="image")
    return seen, [CLASSES[(k + turned) % 3]]


def live(learner: Learner, samples: range, turned: int = 0) -> list[Tensor]:
    return [learner.learn(*sample(k, turned)).climb.phi[0].double() for k in samples]


def test_after_a_drop_the_readout_is_the_direct_solution_of_what_came_since_the_suspicion() -> None:
    learner = Learner(CONFIG, [6], 5)
    live(learner, range(60))
    assert int(learner.drift.drops) == 0
    phi = torch.stack(live(learner, range(60, 100), turned=1))  # every label wrong from its first sample on
    assert int(learner.drift.drops) == 1
    labels = [sample(k, 1)[1][0] for k in range(60, 100)]
    target = torch.tensor([[float(c == label) for c in learner.classes] for label in labels]).double()
    a = phi.T @ phi + CONFIG.ridge * torch.eye(phi.shape[1]).double()
    torch.testing.assert_close(
        learner.readout.weight, torch.linalg.solve(a, phi.T @ target).T, rtol=0, atol=1e-9
    )
    assert learner.readout.class_count.tolist() == target.sum(0).tolist()
    assert float(learner.unlearned.moments[:, 0].max()) < 40  # not those of the readout that was dropped


def test_where_nothing_misleads_the_learner_is_the_same_bit_for_bit() -> None:
    one, other = (Learner(ArrCocConfig(**{**vars(CONFIG), "drift": d}), [6], 5) for d in ("challenge", "off"))
    for learner in (one, other):
        live(learner, range(90))
    kept = state.tensors(other)
    assert all(torch.equal(t, state.tensors(one)[n]) for n, t in kept.items())
    assert set(state.tensors(one)) - set(kept)  # and the challenger beside it


def test_new_classes_one_after_another_are_no_drift() -> None:
    """Each answer is wrong at first, as after a drift; what was known before still holds."""
    draw = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(10, 12, generator=draw).double()
    readout = PrecisionReadout(12)
    drift, clock = Drift(readout, 5.0), 0
    for label in range(10):
        for _ in range(40):
            phi = centres[label : label + 1] + torch.randn(1, 12, generator=draw).double()
            rows = readout.rows([str(label)], grow=True)
            readout.meet(rows, torch.tensor([clock + 1]))
            drift.observe(readout, phi, rows)
            readout.learn(phi, rows)
            clock += 1
    assert int(drift.drops) == 0


def test_the_two_sums_by_hand() -> None:
    """Two known classes change places: mean e starts at 1/2, of two samples' worth."""
    readout = PrecisionReadout(2)
    a, b = torch.eye(2).double().split(1)
    rows = readout.rows(["x", "y"], grow=True)
    for _ in range(20):
        readout.learn(torch.cat([a, b]), rows)
    drift = Drift(readout, 1.0)
    drift.observe(readout, a, rows[1:])  # a is "y" now: wrong; g = 1 - 1/2 - .05
    assert (float(drift.suspicion), float(drift.lead)) == (pytest.approx(0.45), 0)
    assert drift.errors.tolist() == pytest.approx([3, 2 / 3])
    drift.observe(readout, a, rows[1:])  # among the challenger's one class both are right
    assert float(drift.suspicion) == pytest.approx(0.45 + 1 - 2 / 3 - 0.05)
    drift.observe(readout, b, rows[:1])  # "x" the challenger has not met: no lead
    assert float(drift.lead) == 0
    drift.observe(readout, a, rows[1:])  # now it has met both, and is right: d = 1 - 0 - .3
    assert float(drift.lead) == pytest.approx(0.7)
    drift.observe(readout, b, rows[:1])
    assert int(drift.drops) == 1
    assert (float(drift.suspicion), float(drift.lead)) == (0, 0)
    assert drift.errors.tolist() == [2.0, 0.5]


def test_a_learner_goes_on_bit_for_bit_in_the_middle_of_a_suspicion() -> None:
    whole, first = (Learner(CONFIG, [6], 5) for _ in range(2))
    for learner in (whole, first):
        live(learner, range(60))
        live(learner, range(60, 63), turned=1)
    assert float(first.drift.suspicion) > 0
    second = Learner(CONFIG, [6], 5)
    state.load(second, {n: t.clone() for n, t in state.tensors(first).items()}, state.meta(first))
    for learner in (whole, second):
        live(learner, range(63, 90), turned=1)
    assert int(whole.drift.drops) == 1
    assert all(torch.equal(t, state.tensors(second)[n]) for n, t in state.tensors(whole).items())


def test_what_it_cannot_go_with_is_said() -> None:
    for other in ({"readout": "delta"}, {"transport": 100}, {"sources": True}):
        with pytest.raises(ValueError, match="drift"):
            ArrCocConfig(drift="challenge", **other)
    with pytest.raises(ValueError, match="drift='challenge' drops what came before"):
        check({"one": Learner(CONFIG, [6], 5), "two": Learner(CONFIG, [6], 5)})
