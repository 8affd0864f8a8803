"""Transport: statistics follow a phi that moves."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc import merge as merging
from arr_coc.readout import PrecisionReadout
from arr_coc.rules import RULES
from arr_coc.training.distributed import Merging
from arr_coc.transport import Transport

CONFIG = ArrCocConfig(width=6, spread=0, expansion=4, eta=0.5, eta_ladder=0.05, ladder_gain=1.0)


def percept(seed: int) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    label = int(torch.randint(3, (1,), generator=draw))
    shown = torch.randn(3, 6, generator=torch.Generator().manual_seed(77))[label]
    tokens = tuple(torch.randn(1, 4, 6, generator=draw) for _ in range(2))
    for site in tokens:
        site[0, seed % 4] += 2 * shown
    context = torch.randn(2, 5, generator=torch.Generator().manual_seed(78))[seed % 2 : seed % 2 + 1]
    return Percept(tokens, torch.ones(1, 4) / 4, context), [str(label)]


def live(learner: Learner, steps: range) -> Learner:
    for k in steps:
        learner.learn(*percept(k))
    return learner


def test_a_phi_that_moves_linearly_is_followed_to_the_joint_solution() -> None:
    """All samples were counted before a window over which phi moves evenly to T phi: then R is the ridge
    solution on T phi."""
    draw = torch.Generator().manual_seed(0)
    phi = torch.randn(400, 5, generator=draw, dtype=torch.float64)
    label = (phi[:, 0] > 0).long() + (phi[:, 1] > 0.5).long()
    readout = PrecisionReadout(5, 1e-4)
    readout.rows(["0", "1", "2"], grow=True)
    readout.learn(phi, label)
    moved = torch.eye(5, dtype=torch.float64) + 0.3 * torch.randn(5, 5, generator=draw, dtype=torch.float64)
    one = Transport(200, {}, torch.zeros(1), torch.zeros(1), 5, shrink=0.0)
    then = torch.randn(200, 5, generator=draw, dtype=torch.float64)
    ways = torch.linspace(0, 1, 200, dtype=torch.float64).unsqueeze(1)
    one.observe(then, then + ways[torch.randperm(200, generator=draw)] * (then @ (moved.T - torch.eye(5))))
    one.count.zero_()  # none of those was counted into the readout
    target = torch.nn.functional.one_hot(label, 3).double()

    def solved(x: Tensor) -> Tensor:
        return torch.linalg.solve(x.T @ x + 1e-4 * torch.eye(5), x.T @ target).T

    def apart() -> float:
        return float((readout.weight - solved(phi @ moved.T)).norm() / readout.weight.norm())

    stale = apart()
    one.carry(readout)
    assert stale > 0.2
    assert apart() < 0.15 * stale  # what is left: the way is only even on average over the samples
    exact = PrecisionReadout(5, 1e-4)
    exact.rows(["0", "1", "2"], grow=True)
    exact.learn(phi, label)
    one.square.zero_()
    one.drift.zero_()
    one.observe(1e4 * then, 1e4 * (then + then @ (moved.T - torch.eye(5)) / 2))  # half way, each
    one.count.zero_()
    one.carry(exact)
    torch.testing.assert_close(exact.weight, solved(phi @ moved.T), rtol=0.0, atol=1e-9)
    spectrum = torch.linalg.eigvalsh(exact.familiarity.precision)
    assert spectrum[0] > 0


def test_within_the_block_the_learner_is_what_it_was_and_after_it_what_it_is() -> None:
    learner = live(Learner(replace(CONFIG, transport=1000), [6, 6], 5), range(5))
    fresh = Learner(replace(CONFIG, transport=1000), [6, 6], 5)
    seen, _ = percept(50)
    now = learner.answer(seen)

    def failing() -> None:
        with learner.transport.before(learner):
            raise RuntimeError("inside")

    with learner.transport.before(learner):
        then = learner.answer(seen)
    with pytest.raises(RuntimeError, match="inside"):
        failing()
    assert torch.equal(then.climb.phi, fresh.answer(seen).climb.phi)
    assert torch.equal(learner.answer(seen).climb.phi, now.climb.phi)
    assert not torch.equal(then.climb.phi, now.climb.phi)
    for old, still in zip(then.climb.states, fresh.answer(seen).climb.states, strict=True):
        assert torch.equal(old, still)


def test_where_phi_stays_nothing_changes_bit_for_bit() -> None:
    still = replace(CONFIG, eta=0.0, eta_own=0.0, eta_ladder=0.0)
    plain = live(Learner(still, [6, 6], 5), range(30))
    carried = live(Learner(replace(still, transport=7), [6, 6], 5), range(30))
    there = state.tensors(carried)
    assert all(torch.equal(t, there[n]) for n, t in state.tensors(plain).items())
    assert int(carried.transport.count) == 30 % 7


def test_statistics_end_nearer_to_those_of_the_phi_there_is() -> None:
    """Relative distance of A from the same samples' A under the weights in the end."""
    apart = {}
    for every in (0, 50):
        learner = live(Learner(replace(CONFIG, transport=every, evidence="uniform"), [6, 6], 5), range(400))
        phi = torch.cat([learner.answer(percept(k)[0]).climb.phi for k in range(400)]).double()
        gram = learner.readout.familiarity.gram
        apart[every] = float((gram - phi.T @ phi).norm() / (phi.T @ phi).norm())
        assert torch.linalg.eigvalsh(learner.readout.familiarity.precision)[0] > 0
    assert apart[50] < 0.8 * apart[0]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_goes_on_from_a_file_the_same_within_a_window(name: str) -> None:
    config = replace(CONFIG, rule=name, transport=8, eta_ladder=0.01)
    whole, first, second = (Learner(config, [6, 6], 5) for _ in range(3))
    live(whole, range(20))
    live(first, range(11))
    state.load(second, {n: t.clone() for n, t in state.tensors(first).items()}, state.meta(first))
    live(second, range(11, 20))
    for n, tensor in state.tensors(whole).items():
        assert torch.equal(tensor, state.tensors(second)[n]), n
        assert torch.isfinite(tensor.double()).all(), n
    assert whole.transport.drift.any()


def test_acting_counts_as_looking() -> None:
    learner = Learner(replace(CONFIG, transport=4), [6, 6], 5)
    for k in range(6):
        _, left = learner.act(percept(k)[0], ["0", "1"])
        learner.reward(left, torch.tensor([float(k % 2)]))
    assert int(learner.transport.count) == 2
    assert torch.isfinite(learner.readout.weight).all()


def test_what_is_carried_along_is_not_merged_and_needs_no_moments() -> None:
    parts = {n: Learner(replace(CONFIG, transport=4), [6, 6], 5) for n in ("a", "b")}
    with pytest.raises(ValueError, match="transport=4"):
        merging.check(parts)
    ranks = Merging(torch.device("cpu"))
    ranks.group = object()
    with pytest.raises(ValueError, match="transport"):
        ranks.begin(list(parts.values()))
    for wrong in ({"transport": -1}, {"transport": 0.5}, {"transport": 3, "predict_gain": 1.0}):
        with pytest.raises(ValueError, match="transport"):
            replace(CONFIG, **wrong)
    delta = Learner(replace(CONFIG, transport=4, readout="delta"), [6, 6], 5)
    assert delta.transport is None
