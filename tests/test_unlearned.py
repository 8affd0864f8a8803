"""Whether the answer was ever learned: two normal variates told apart, and what the mixture makes of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from arr_coc import ArrCocConfig, Learner, Percept, merge, state
from arr_coc.answer import fuse
from arr_coc.unlearned import FEW, LEAST, Unlearned

CONFIG = ArrCocConfig(width=8, expansion=0)
PLACES = torch.tensor([0, -1, 2, 1, -1])  # of five candidates in the readout


def drawn(n: int, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (n, K), higher by half where the label is, and labels."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=draw)
    values = 0.2 * torch.randn(n, classes, generator=draw, dtype=torch.float64)
    values[torch.arange(n), labels] += 0.5
    return values, labels


def noted(values: torch.Tensor, labels: torch.Tensor, batch: int, prior: float = 0.5) -> Unlearned:
    one = Unlearned(prior)
    for v, y in zip(values.split(batch), labels.split(batch), strict=True):
        one.learn(v, y, v.shape[1])
    return one


@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_the_odds_are_those_of_two_normal_variates_by_scipy(batch: int, prior: float) -> None:
    values, labels = drawn(40)
    one = noted(values, labels, batch, prior)
    right = values[torch.arange(40), labels].numpy()
    other = values.masked_fill(torch.nn.functional.one_hot(labels, 4).bool(), -9).max(1).values.numpy()
    w = np.arange(1, 41) ** 2.0
    means = [np.average(v, weights=w) for v in (right, other)]
    spread = math.sqrt(np.mean([np.cov(v, aweights=w, ddof=0) for v in (right, other)]))
    asked, z = drawn(9, seed=1)[0], torch.linspace(-2, 5, 9, dtype=torch.float64)
    best, normal = asked.max(1).values.numpy(), scipy.stats.norm
    expected = normal.logpdf(best, means[0], spread) - normal.logpdf(best, means[1], spread)
    expected += normal.logpdf(z.numpy(), 0, 1) - normal.logpdf(z.numpy(), 2, 1) - scipy.special.logit(prior)
    np.testing.assert_allclose(one.log_odds(asked, z).numpy(), expected, rtol=1e-9)


def test_higher_values_speak_for_what_was_learned_and_the_unusual_against_it() -> None:
    one, none = noted(*drawn(60), 5), torch.zeros(1, dtype=torch.float64)
    low, high = torch.full((1, 4), 0.1), torch.full((1, 4), 0.6)
    assert float(one.log_odds(low, none)) < float(one.log_odds(high, none))
    assert float(one.log_odds(high, none + 3)) < float(one.log_odds(high, none))


def test_nothing_is_told_of_too_few_samples_or_with_a_prior_of_none() -> None:
    values, labels = drawn(30)
    asked, z = values[:3], torch.zeros(3, dtype=torch.float64)
    for one in (
        Unlearned(0.5),
        noted(values[: FEW - 1], labels[: FEW - 1], 1),
        noted(values, labels, 5, 0.0),
        noted(values[:, :1], torch.zeros_like(labels), 5),  # of one class there is no other
    ):
        assert bool((one.log_odds(asked, z) == math.inf).all())
    assert bool((noted(values, labels, 5).log_odds(torch.zeros(3, 0), z) == math.inf).all())  # all forgotten


def test_a_class_that_was_not_met_before_counts_among_what_cannot_be_the_answer() -> None:
    one = Unlearned(0.5)
    one.learn(torch.tensor([[0.3, 0.1]]), torch.tensor([2]), 2)
    assert one.moments[:, 0].tolist() == [0, 1]
    assert float(one.moments[1, 2]) == pytest.approx(0.3)
    one.learn(torch.zeros(1, 0), torch.tensor([0]), 0)  # nothing was known at all
    assert one.moments[:, 0].tolist() == [0, 1]


def test_values_that_never_differ_and_values_that_are_no_numbers_leave_finite_odds() -> None:
    one = noted(torch.tensor([[1.0, 0.0]]).repeat(50, 1), torch.zeros(50, dtype=torch.int64), 10)
    one.learn(torch.tensor([[math.nan, math.nan]]), torch.tensor([0]), 2)
    found = one.log_odds(torch.tensor([[1.0, 0.0]]), torch.zeros(1, dtype=torch.float64))
    assert float(found) == pytest.approx(0.5 / LEAST**2 + 2)
    assert bool(one.moments.isfinite().all())


def answered(trust: float, odds: float, seed: int = 0, width: int = 3):
    """An answer (2 samples) of these values; what else it holds has no say in the mixture."""
    learner = Learner(CONFIG, [8, 8], 5)
    answer = learner.answer(percept(seed, 2))
    values = torch.rand(2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    full = torch.ones(2, dtype=torch.float64)
    return replace(answer, values=values, evened=values, trust=trust * full, learned=odds * full)


def percept(seed: int, batch: int, kind: int | None = None) -> Percept:
    """Pictures, with the pattern of one kind in all their tokens."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    pattern = 0.0 if kind is None else kinds[kind]
    tokens = tuple(pattern + torch.randn(batch, 4, 8, generator=draw) for _ in range(2))
    return Percept(tokens, torch.ones(batch, 4) / 4, torch.ones(batch, 5))


@pytest.mark.parametrize("trust", [1e-6, 0.4, 1.0])
@pytest.mark.parametrize("odds", [-3.0, 0.0, 8.0, math.inf])
def test_the_mixture_is_the_one_of_probabilities(trust: float, odds: float) -> None:
    own = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    answer = answered(trust, odds)
    found = fuse(own, PLACES, answer, 10.0).softmax(1).numpy()
    known = PLACES.numpy() >= 0
    q = scipy.special.expit(-odds)
    learned = np.zeros((2, 5))
    learned[:, known] = (1 - q) * scipy.special.softmax(10 * answer.values.numpy()[:, [0, 2, 1]], axis=1)
    learned[:, ~known] = q * scipy.special.softmax(own.numpy()[:, ~known], axis=1)
    expected = (1 - trust) * scipy.special.softmax(own.numpy(), axis=1) + trust * learned
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("trust", [0.3, 1.0])
def test_where_all_candidates_were_learned_the_odds_have_no_say_bit_for_bit(trust: float) -> None:
    own = torch.randn(2, 3, generator=torch.Generator().manual_seed(3))
    places = torch.tensor([0, 2, 1])
    found = [fuse(own, places, answered(trust, odds), 10.0) for odds in (-5.0, 0.0, math.inf)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_candidates_that_the_model_rules_out_are_given_nothing_and_stay_numbers() -> None:
    own = torch.zeros(2, 5)
    own[:, PLACES < 0] = -math.inf
    found = fuse(own, PLACES, answered(1.0, -4.0), 10.0)
    assert bool(found.isfinite().all())
    assert torch.equal(found[:, PLACES >= 0], fuse(own, PLACES, answered(1.0, 4.0), 10.0)[:, PLACES >= 0])
    own[:, 1] = 0.0  # one of the two it does not
    assert fuse(own, PLACES, answered(1.0, -40.0), 10.0).softmax(1)[:, 1].tolist() == pytest.approx([1, 1])


def taught(prior: float) -> Learner:
    """A learner that was taught six of nine kinds of pictures."""
    learner = Learner(replace(CONFIG, unlearned_prior=prior), [8, 8], 5)
    for seed in range(40):
        for kind in range(6):
            learner.learn(percept(10 * seed + kind, 2, kind), [str(kind)] * 2)
    return learner


def test_of_a_whole_vocabulary_nobody_said_that_it_may_be_the_answer() -> None:
    learner, asked = taught(0.5), percept(7, 3, 1)
    assert bool(learner.answer(asked).learned.isfinite().all())
    assert bool((learner.answer(replace(asked, asked="sequence")).learned == math.inf).all())


def test_a_model_that_knows_other_kinds_is_heard_and_what_was_learned_is_kept() -> None:
    """The model itself knows the three kinds that nobody taught, and takes all others for one of those."""
    texts, own = [str(k) for k in range(9)], torch.zeros(40, 9)
    right = {}
    for prior in (0.0, 0.5):
        learner, hits = taught(prior), []
        for kind in range(9):
            own[:] = 0
            own[:, kind if kind >= 6 else 6] = 3.0
            found = learner.fuse(own, texts, learner.answer(percept(999 + kind, 40, kind))).argmax(1)
            hits.append(float((found == kind).double().mean()))
        right[prior] = sum(hits[:6]) / 6, sum(hits[6:]) / 3
    assert right[0.0][1] < 0.4 < 0.6 < right[0.5][1]  # chance .11
    assert 0.8 < right[0.5][0] > right[0.0][0] - 0.1


def test_it_is_part_of_the_state_and_a_forged_one_is_refused() -> None:
    learner, other = taught(0.5), Learner(CONFIG, [8, 8], 5)
    saved = {k: v.clone() for k, v in state.tensors(learner).items()}
    state.load(other, saved, state.meta(learner))
    assert torch.equal(other.answer(percept(7, 3)).learned, learner.answer(percept(7, 3)).learned)
    assert bool(learner.answer(percept(7, 3)).learned.isfinite().all())
    for bad in (
        [[math.nan] * 4] * 2,
        [[-1.0, 1, 0, 1]] * 2,
        [[5.0, 1.0, 3.0, 1.0]] * 2,
        [[50.0, 0, 0, 0]] * 2,
    ):
        forged = {**saved, "unlearned.moments": torch.tensor(bad, dtype=torch.float64)}
        with pytest.raises(ValueError, match=r"unlearned\.moments"):
            state.load(Learner(CONFIG, [8, 8], 5), forged, state.meta(learner))


@pytest.mark.parametrize("bad", [-0.1, 1.0, math.nan])
def test_a_prior_that_is_no_probability_below_one_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="unlearned_prior"):
        ArrCocConfig(unlearned_prior=bad)


def test_merged_moments_are_the_sum_and_a_source_that_is_taken_back_starts_them_anew() -> None:
    config = replace(CONFIG, sources=True, eta=0.0, eta_own=0.0)
    parts = [Learner(config, [8, 8], 5) for _ in range(2)]
    for k, part in enumerate(parts):
        for seed in range(6):
            part.learn(percept(seed, 4, k), [str(k), str(k + 1)] * 2, source="somebody")
    whole = Learner(config, [8, 8], 5)
    merge.merge(whole, parts)
    assert torch.equal(whole.unlearned.moments, parts[0].unlearned.moments + parts[1].unlearned.moments)
    assert bool(whole.unlearned.moments.any())
    parts[0].learn(percept(7, 2, 1), ["1", "2"], source="somebody else")
    parts[0].forget("somebody")
    assert not parts[0].unlearned.moments.any()
