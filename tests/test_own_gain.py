"""The own gain: a gradient along one number, bounded, kept apart by the key; who takes part in errors."""

from dataclasses import replace

import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept
from arr_coc.relevance import OwnGain, own_correlation, token_feedback
from arr_coc.rules import make_rule


def rivals(learner: Learner, batch: int) -> torch.Tensor:
    """Which classes take part in the error of the next batch."""
    return learner.readout.met_lately(learner.config.error_window, int(learner.step), batch)


def test_rho_is_the_gradient_along_the_gain_over_both_deviations() -> None:
    torch.manual_seed(0)
    f, own = torch.randn(3, 7, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    u, rest = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    gain = torch.full((3,), 0.7, dtype=torch.float64, requires_grad=True)
    r = (rest + gain[:, None] * own).softmax(1)
    value = torch.einsum("bn,bnf,bf->b", r, f, u).sum()
    (gradient,) = torch.autograd.grad(value, gain)
    r = r.detach()
    each = torch.einsum("bnf,bf->bn", f, u)

    def deviation(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.cov(x[i], correction=0, aweights=r[i]) for i in range(3)]).sqrt()

    rho = own_correlation(r, token_feedback(r, f, u), own)
    torch.testing.assert_close(rho, gradient / deviation(each) / deviation(own), rtol=1e-10, atol=0)
    flat = own_correlation(r, torch.zeros_like(own), own)
    assert torch.equal(flat, torch.zeros(3, dtype=torch.float64))


def test_a_gain_moves_by_its_step_within_its_bounds_and_comes_back() -> None:
    gain = OwnGain(3, 1.0)
    c = torch.nn.functional.normalize(torch.tensor([[1.0, 0.2, 0.0]]))
    other = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0, 0.4]]))
    key = c / (c * c).sum()
    gain.move(c, key, torch.tensor([0.3]))
    assert float(gain(c)) == pytest.approx(1.3)
    assert float(gain.openness(c)) == pytest.approx(0.35**2)
    gain.move(c.repeat(40, 1), key.repeat(40, 1), torch.full((40,), 0.3))
    assert float(gain(c)) == pytest.approx(2.0)  # no further, and no debt:
    gain.move(c, key, torch.tensor([-0.5]))
    assert float(gain(c)) == pytest.approx(1.5)
    assert float(gain(other)) == pytest.approx(1 + 0.5 * float(c @ other.T))
    gain.reset(c, key)
    assert float(gain(c)) == pytest.approx(1.0)


@pytest.mark.parametrize(("helps", "rewarded"), [(True, False), (False, False), (True, True), (False, True)])
def test_a_score_that_finds_the_answer_is_believed_and_one_that_misleads_is_not(
    helps: bool, rewarded: bool
) -> None:
    """Token 0 holds the class, the others the classes of no matter; the own score points at 0, or at 1."""
    torch.manual_seed(1)
    learner = Learner(ArrCocConfig(width=8, expansion=0, spread=0, explore=0.1), [8], 3)
    context = torch.tensor([[0.0, 1.0, 0.0]])
    own = torch.zeros(1, 6)
    own[0, 0 if helps else 1] = 2.0
    for _ in range(400):
        label = int(torch.randint(4, ()))
        tokens = torch.nn.functional.one_hot(torch.randint(4, (1, 6)), 8).float() * 3
        tokens[0, :, 4:] += torch.randn(6, 4) * 0.3
        tokens[0, 0, :4] = torch.nn.functional.one_hot(torch.tensor(label), 4).float() * 3
        percept = Percept((tokens,), torch.ones(1, 6), context, own=own)
        if rewarded:
            choice, left = learner.act(percept, ["a", "b", "c", "d"])
            learner.reward(left, (choice == label).float())
        else:
            learner.learn(percept, ["abcd"[label]])
    gain = float(learner.own_gain(context))
    assert gain > 1.3 if helps else gain < 0.5


def learner_and_percept(window: int) -> tuple[Learner, Percept]:
    torch.manual_seed(2)
    learner = Learner(ArrCocConfig(width=5, expansion=0, spread=0, error_window=window), [5], 3)
    percept = Percept((torch.randn(4, 6, 5),), torch.ones(4, 6), torch.randn(4, 3), own=torch.randn(4, 6))
    learner.learn(percept, ["old", "old", "older", "older"])
    for _ in range(3):
        learner.learn(replace(percept, tokens=(torch.randn(4, 6, 5),)), ["a", "b", "a", "b"])
    return learner, percept


@pytest.mark.parametrize(("window", "alike"), [(8, True), (0, False)])
def test_a_class_not_met_lately_takes_no_part_in_the_error(window: int, alike: bool) -> None:
    (one, percept), (two, _) = learner_and_percept(window), learner_and_percept(window)
    two.readout.weight[:2] += 5.0  # what the old classes would say, changed
    for learner in (one, two):
        learner.learn(percept, ["a", "b", "b", "a"])
    assert torch.equal(one.relevance_weight, two.relevance_weight) == alike
    assert torch.equal(one.own_gain.weight, two.own_gain.weight) == alike


def test_a_class_that_comes_back_takes_part_again() -> None:
    learner, percept = learner_and_percept(8)
    assert rivals(learner, 4).tolist() == [False, False, True, True]
    learner.learn(percept, ["old", "a", "b", "a"])
    assert rivals(learner, 4).tolist() == [True, False, True, True]
    assert rivals(learner, 40).tolist() == [False] * 4  # a batch larger than the window counts alone


def test_a_batch_as_large_as_a_context_is_wide_is_a_batch() -> None:
    """B = C: the same with a context that has one more entry, always 0."""
    learners = []
    for extra in (0, 1):
        torch.manual_seed(3)
        tokens, own = torch.randn(6, 4, 6, 5), torch.randn(6, 4, 6)
        context = torch.nn.functional.pad(torch.eye(4), (0, extra))
        learner = Learner(ArrCocConfig(width=5, expansion=0, spread=0), [5], 4 + extra)
        for t, o in zip(tokens, own, strict=True):
            learner.learn(Percept((t,), torch.ones(4, 6), context, own=o), ["a", "b", "a", "b"])
        learners.append(learner)
    # the rungs of both see the same, for W is zero: U differs by its last row alone
    torch.testing.assert_close(learners[0].relevance_weight, learners[1].relevance_weight[:4])
    assert float(learners[0].relevance_weight.abs().max()) > 0.01


@pytest.mark.parametrize("rule", ["attention_gated", "backprop"])
def test_u_moves_by_what_the_own_gain_leaves_open(rule: str) -> None:
    """At g = 1.4 the step of U is (1 - .7)^2 of the step without `own_first`."""
    moved = {}
    for first in (True, False):
        torch.manual_seed(4)
        config = ArrCocConfig(
            width=5, expansion=0, spread=0, own_first=first, own_gain=1.4, rule=rule, error_window=0
        )
        learner = Learner(config, [5], 3)
        learner.readout.rows(["a", "b"], grow=True)
        learner.readout.weight.normal_(0, 0.1)
        percept = Percept((torch.randn(1, 6, 5),), torch.ones(1, 6), torch.eye(3)[:1], own=torch.randn(1, 6))
        learner.learn(percept, ["a"])
        moved[first] = learner.relevance_weight.clone()
    assert float(moved[False].abs().max()) > 1e-4
    torch.testing.assert_close(moved[True], 0.09 * moved[False], rtol=1e-4, atol=1e-9)


def test_a_new_text_starts_with_the_gain_of_the_config() -> None:
    torch.manual_seed(5)
    learner = Learner(ArrCocConfig(width=5, expansion=0, spread=0, own_gain=0.8), [5], 3)
    one, two = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.3]])).split(1)
    for i in range(20):
        percept = Percept((torch.randn(1, 6, 5),), torch.ones(1, 6), one, own=torch.randn(1, 6))
        learner.learn(percept, ["ab"[i % 2]])
    assert abs(float(learner.own_gain(two)) - 0.8) > 0.01
    learner.three_factor.meet(learner.relevance_weight, "text", two)
    assert float(learner.own_gain(two)) == pytest.approx(0.8)


def test_rewarded_classes_take_part_and_classes_only_heard_of_do_not() -> None:
    learner, percept = learner_and_percept(8)
    _, left = learner.act(percept, ["old", "a", "new", "newer"], torch.tensor([0, 0, 0, 0]))
    assert rivals(learner, 4).tolist() == [False, False, True, True, False, False]
    learner.reward(left[:1], torch.tensor([0.0]))
    assert rivals(learner, 1).tolist() == [True, False, True, True, False, False]
    early = Learner(ArrCocConfig(width=5, expansion=0, spread=0), [5], 3)
    early.readout.rows(["a", "b"], grow=True)
    assert rivals(early, 1).tolist() == [False, False]


def test_backprop_lets_the_same_classes_take_part() -> None:
    """What a class not met lately would say does not reach U by automatic differentiation either."""
    moved = []
    for push in (0.0, 5.0):
        learner, percept = learner_and_percept(8)
        learner.rule = make_rule("backprop", {"loss": "cross_entropy"})
        learner.readout.weight[:2] += push
        learner.learn(percept, ["a", "b", "b", "a"])
        moved.append(learner.relevance_weight.clone())
    assert torch.equal(*moved)


def test_an_own_gain_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 2"):
        ArrCocConfig(own_gain=2.5)
