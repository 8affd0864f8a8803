"""Growth: phi that grows against direct solutions; the new column's learning against autograd."""

from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc.growth import LEVEL, TREND, Growth, grow
from arr_coc.merge import check
from arr_coc.readout import PrecisionReadout
from arr_coc.rules import RULES, make_rule

CONFIG = ArrCocConfig(width=6, expansion=4, spread=0, eta_ladder=0.05, ladder_gain=1.0, columns=3)
EXACT = {"rtol": 0.0, "atol": 1e-9}
CANNOT = {"hebbian", "stdp"}


def percept(seed: int, batch: int = 1) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 4, 6, generator=draw) for _ in range(3))
    context = torch.randn(batch, 5, generator=draw)
    seen = Percept(tokens, torch.full((batch, 4), 0.25), context, asked="text")
    return seen, [str(int(k)) for k in torch.randint(3, (batch,), generator=draw)]


def live(learner: Learner, steps: range, batch: int = 1) -> None:
    for k in steps:
        learner.learn(*percept(k, batch))


def solved(phi: Tensor, target: Tensor, weight: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """P and R of weighted ridge regression, directly."""
    inverse = (phi.T @ (weight[:, None] * phi) + ridge * torch.eye(phi.shape[1]).double()).inverse()
    return inverse, (inverse @ phi.T @ (weight[:, None] * target)).T


# -- the readout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_a_grown_readout_is_the_direct_solution(copied: bool) -> None:
    """With zeros, or copies, in the entries that are new, for all samples before; rewarded rows too."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, d, generator=draw).double() for d in (5, 8))
    rows, w = torch.randint(3, (60,), generator=draw), 0.5 + torch.rand(60, generator=draw).double()
    place = torch.tensor([0, 5, 2, 6, 4])  # 1 and 3 have moved to the end; 1, 3 and 7 are new
    source = torch.tensor([[1, 5], [3, 6]]) if copied else None
    readout = PrecisionReadout(5, ridge=0.7)
    readout.learn(first, readout.rows(["a", "b", "c"], grow=True)[rows[:30]], w[:30])
    readout.learn_outcomes(first[:1], torch.tensor([2]), torch.tensor([0.5]))
    readout.grow(place, 8, source)
    readout.learn(second, rows[30:], w[30:])
    wide = torch.zeros(30, 8).double()
    wide[:, place] = first
    if copied:
        wide[:, [1, 3]] = first[:, [1, 3]]
    phi, target = torch.cat([wide, second]), torch.nn.functional.one_hot(rows, 3).double()
    p, r = solved(phi, target, w, 0.7)
    torch.testing.assert_close(readout.familiarity.precision, p, **EXACT)
    torch.testing.assert_close(readout.weight[:2], r[:2], **EXACT)
    alone = (torch.cat([phi, wide[:1]]), torch.cat([target[:, 2:], torch.tensor([[0.5]]).double()]))
    p, r = solved(*alone, torch.cat([w, torch.ones(1).double()]), 0.7)
    torch.testing.assert_close(readout.partial_precision[0], p, **EXACT)
    torch.testing.assert_close(readout.weight[2:], r, **EXACT)


def test_a_readout_that_forgets_grows_under_the_prior_that_is_left() -> None:
    draw = torch.Generator().manual_seed(1)
    first, second = torch.randn(10, 3, generator=draw).double(), torch.randn(10, 4, generator=draw).double()
    readout = PrecisionReadout(3, forgetting=0.99)
    rows = readout.rows(["a"] * 10, grow=True)
    readout.learn(first, rows)
    readout.grow(torch.arange(3), 4)
    readout.learn(second, rows)
    phi = torch.cat([torch.nn.functional.pad(first, (0, 1)), second])
    age = 0.99 ** torch.arange(20).double().flip(0)
    p, r = solved(phi, torch.ones(20, 1).double(), age, 0.99**20)  # the prior has aged as the samples have
    torch.testing.assert_close(readout.familiarity.precision, p, **EXACT)
    torch.testing.assert_close(readout.weight, r, **EXACT)


# -- the ladder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["all", "top"])
def test_frozen_columns_stay_bit_for_bit_and_so_do_their_rungs(reads: str) -> None:
    learner = Learner(replace(CONFIG, reads=reads), [6, 6, 6], 5)
    live(learner, range(5))
    old = {n: t.clone() for n, t in learner.ladder.weights().items()}
    drive, context = torch.randn(2, 18), torch.randn(2, 5)
    before = learner.ladder.climb(drive, context, None)
    grow(learner)
    live(learner, range(5, 30))
    for name, tensor in old.items():
        assert torch.equal(learner.ladder.get_buffer(f"column_0_{name}"), tensor)
        assert not torch.equal(learner.ladder.get_buffer(name), tensor)  # while the new one learns
    after = learner.ladder.climb(drive, context, None)
    rungs = torch.cat(before.states if reads == "all" else before.states[-1:], 1)
    assert torch.equal(after.phi[:, -rungs.shape[1] :], rungs)
    assert all(learner.ladder.get_buffer(f"lateral_{level}").any() for level in (1, 2))


@pytest.mark.parametrize("reads", ["all", "top"])
def test_a_copy_begins_as_what_it_copies_and_the_values_are_those_of_twice_the_rungs(reads: str) -> None:
    config = replace(CONFIG, reads=reads, eta_ladder=1e-9, eta=0.0, eta_own=0.0, evidence="uniform")
    learner = Learner(config, [6, 6, 6], 5)
    seen = []
    for k in range(20):
        one, label = percept(k)
        seen.append((learner.learn(one, label).climb.phi[0].double(), label[0]))
    wide, old = 18 if reads == "all" else 6, seen[0][0].shape[0]
    start = wide if reads == "all" else 0
    grow(learner)
    z = slice(start, start + wide)
    answer = learner.answer(percept(0)[0])
    torch.testing.assert_close(answer.climb.phi[0, z], answer.climb.phi[0, old:], rtol=0, atol=1e-6)
    phi = torch.stack([torch.cat([p, p[z]]) for p, _ in seen])
    target = torch.tensor([[float(c == label) for c in learner.classes] for _, label in seen]).double()
    _, expected = solved(phi, target, torch.ones(20).double(), config.ridge)
    torch.testing.assert_close(learner.readout.weight, expected, **EXACT)


@pytest.mark.parametrize("reads", ["all", "top"])
def test_attention_gated_learning_of_a_grown_ladder_is_its_gradient(reads: str) -> None:
    """Of W, b and V alike, with two columns frozen; the readout's part of it too."""
    net = ladders.make(reads=reads)
    draw = torch.Generator().manual_seed(3)
    for _ in range(2):
        net.ladder.grow()
        for tensor in net.ladder.weights().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    net.readout = 0.3 * torch.randn(4, net.ladder.phi_width, generator=draw, dtype=torch.float64)
    rule = make_rule("attention_gated", {})
    found, (wanted, readout, _) = rule.step(net.ladder, net.climb, net.teaching()), ladders.gradients(net)
    assert {"lateral_1", "lateral_2"} <= set(wanted) == set(found.ladder)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found.ladder[name], gradient, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.readout, readout, rtol=0, atol=1e-12)


# -- every rule, every switch ------------------------------------------------------------------------------

OPTIONS = [
    *((name, {}) for name in RULES if name not in CANNOT | {"equilibrium_propagation"}),
    ("attention_gated", {"feedback": "learned", "feedback_start": 1.0}),
    ("feedback_alignment", {"mode": "kp"}),
    ("feedback_alignment", {"mode": "dfa"}),
    ("predictive_coding", {"mode": "ipc", "learned_precision": "unit"}),
    ("predictive_coding", {"learned_feedback": True}),
    ("dendritic", {"mode": "burst", "feedback": "learned"}),
    ("equilibrium_propagation", {"energy": "prediction"}),
]


@pytest.mark.parametrize(("rule", "options"), OPTIONS)
@pytest.mark.parametrize("start", ["copy", "drawn"])
def test_every_rule_that_can_grows_learns_laterals_and_goes_on_bit_for_bit(rule, options, start) -> None:
    kinds = {"readout": "delta", "optimizer": "adam", "consolidation": "si", "protect": "relevance"}
    config = replace(CONFIG, rule=rule, rule_options=options, growth_start=start, **kinds, eta_readout=0.05)
    first, fresh = Learner(config, [6, 6, 6], 5), Learner(config, [6, 6, 6], 5)
    live(first, range(4), 2)
    grow(first)
    live(first, range(4, 8))
    assert first.ladder.get_buffer("lateral_1").any()
    kept = {n: t.clone() for n, t in state.tensors(first).items()}
    state.load(fresh, kept, state.meta(first))
    for learner in (first, fresh):
        live(learner, range(8, 11))
        grow(learner)
        live(learner, range(11, 14))
    assert all(torch.equal(t, state.tensors(fresh)[n]) for n, t in state.tensors(first).items())


def test_a_reward_that_comes_after_growth_teaches_the_readout_with_zeros_and_moves_no_rung() -> None:
    config = replace(CONFIG, eta=0.0, eta_own=0.0, growth_start="drawn", explore=0.0)
    learner = Learner(config, [6, 6, 6], 5)
    _, left = learner.act(percept(0)[0], ["0", "1"], torch.tensor([1]))
    left = [replace(left[0], gates=torch.ones_like(left[0].gates))]  # as once something was learned
    learner.pending.add([left])
    was = left[0].phi
    grow(learner)
    (one,) = learner.pending.get(0)[0]
    assert torch.equal(one.phi[-18:], was[18:36])
    assert not one.phi[18:36].any()
    before = {n: t.clone() for n, t in learner.ladder.weights().items()}
    learner.reward([one], torch.tensor([1.0]))
    assert all(torch.equal(before[n], t) for n, t in learner.ladder.weights().items())
    p = one.phi.double()
    torch.testing.assert_close(learner.readout.weight[1], p / (config.ridge + p @ p), **EXACT)
    _, later = learner.act(percept(1)[0], ["0", "1"], torch.tensor([1]))
    moves, climb = later[0].moves(2.0), learner.answer(percept(1)[0]).climb
    for level in (1, 2):  # and an action of the grown ladder moves its laterals by what entered them
        expected = 2.0 * torch.outer(later[0].gates[level], climb.lateral[level][0])
        torch.testing.assert_close(moves[f"lateral_{level}"], expected)


def test_off_is_what_it_was_and_on_without_surprise_is_the_same() -> None:
    off, on = (Learner(replace(CONFIG, columns=c), [6, 6, 6], 5) for c in (1, 3))
    for learner in (off, on):
        live(learner, range(30))
    kept = state.tensors(off)
    assert all(torch.equal(t, state.tensors(on)[n]) for n, t in kept.items())
    assert {n.split(".")[0] for n in set(state.tensors(on)) - set(kept)} == {"growth"}


# -- when it grows -----------------------------------------------------------------------------------------


def test_surprise_that_falls_evenly_is_usual_and_a_rise_is_due() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(600, generator=draw).double()
    for rise, due in ((0.0, False), (0.03, True)):
        watch = Growth(10.0, 100)
        for k in range(600):
            watch.observe(0.2 - 0.0005 * k + 0.01 * float(noise[k]) + rise * (k >= 500))
        assert watch.due is due


def test_what_is_usual_is_holts_level_and_slope() -> None:
    watch, (a, b, c) = Growth(10.0, 0), (1.0, 3.0, 2.0)
    watch.observe(a)
    assert watch.usual.tolist() == [a, 0, 0]
    watch.observe(b)  # rates 1/2, over 2
    assert watch.usual.tolist() == pytest.approx([2.0, 0.5, 2.0])
    watch.observe(c)  # rates 1/3, over 2 - 2.5
    expected = [2.5 - 0.5 / 3, 0.5 - 0.5 / 9, 2.0 + (0.25 - 2.0) / 3]
    assert watch.usual.tolist() == pytest.approx(expected)
    assert TREND < LEVEL < 1 / 3


def test_it_grows_up_to_its_bound_while_it_lives() -> None:
    learner = Learner(replace(CONFIG, growth_patience=0, growth_threshold=1e-6, columns=2), [6, 6, 6], 5)
    live(learner, range(40))
    assert learner.ladder.columns == 2
    assert learner.readout.width == learner.ladder.phi_width == 18 * 3 + 4 + 1


# -- what it refuses ---------------------------------------------------------------------------------------


def test_what_it_cannot_go_with_is_said() -> None:
    cannot = [(rule, {}) for rule in CANNOT] + [("equilibrium_propagation", {"energy": "hopfield"})]
    for rule, options in cannot:
        with pytest.raises(ValueError, match="cannot learn from frozen columns"):
            replace(CONFIG, rule=rule, rule_options=options)
    others = {"eta_ladder": 0.0, "transport": 9, "sources": True, "surprise": "answer", "error_module": False}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"columns=3 with {name}"):
            replace(CONFIG, **{name: value})
    with pytest.raises(ValueError, match="columns=0: a whole number of at least 1"):
        replace(CONFIG, columns=0)
    with pytest.raises(ValueError, match="columns=1 is needed for a merge"):
        check({"one": Learner(CONFIG, [6, 6, 6], 5), "two": Learner(CONFIG, [6, 6, 6], 5)})


def test_a_saved_state_of_more_columns_or_a_damaged_one_changes_nothing() -> None:
    grown, one = Learner(CONFIG, [6, 6, 6], 5), Learner(CONFIG, [6, 6, 6], 5)
    live(grown, range(3))
    grow(grown)
    kept, was = state.tensors(grown), (one.ladder, one.readout)
    with pytest.raises(ValueError, match="has 2 columns; the config says 1"):
        state.load(Learner(replace(CONFIG, columns=1), [6, 6, 6], 5), kept, state.meta(grown))
    lacking = {n: t for n, t in kept.items() if n != "ladder.column_0_weight_1"}
    with pytest.raises(ValueError, match=r"lacks ladder\.column_0_weight_1"):
        state.load(one, lacking, state.meta(grown))
    assert (one.ladder, one.readout) == was
    state.load(grown, state.tensors(one), state.meta(one))  # and back to the start
    assert grown.ladder.columns == 1
    live(grown, range(3))
