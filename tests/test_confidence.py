"""Confidence: as sure as the labels so far bear out, without changing one answer."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from arr_coc import state
from arr_coc.answer import Answer
from arr_coc.confidence import MOST, RATE, REACH, Confidence
from arr_coc.config import ArrCocConfig
from arr_coc.eval import exam, metrics, percepts, table
from arr_coc.eval.methods_features import NearestMean, tower_output
from arr_coc.eval.methods_plugin import Plugin
from arr_coc.eval.percepts_words import WordStore
from arr_coc.learner import Learner
from arr_coc.percept import Percept
from arr_coc.training import streams
from fakes import CLASSES, fake_store


def drawn(n: int, sharp: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (n, 4) and labels (n,) drawn from softmax(sharp * values)."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    labels = torch.multinomial((sharp * values).softmax(1), 1, generator=draw).squeeze(1)
    return values, labels


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("start", [3.0, 10.0])
def test_a_step_is_by_the_derivatives_of_the_labels_log_probability(batch: int, start: float) -> None:
    values, labels = drawn(batch, 2.0)

    def likelihood(log_s: torch.Tensor) -> torch.Tensor:
        return (log_s.exp() * values).log_softmax(1).gather(1, labels.unsqueeze(1)).sum()

    log_s = torch.tensor(math.log(start), dtype=torch.float64)
    slope = float(torch.autograd.functional.jacobian(likelihood, log_s))
    # the curvature of the log partition function alone: the slope's own change with s is no curvature of p
    bend = float(torch.autograd.functional.hessian(lambda s: (s * values).logsumexp(1).sum(), log_s.exp()))
    one = Confidence(start)
    one.learn(values, labels)
    step = max(-MOST, min(MOST, RATE * slope / (1 + RATE * start**2 * bend)))
    assert float(one.log_scale) == pytest.approx(math.log(start) + step, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 5, 64, 500])
@pytest.mark.parametrize("sharp", [1.0, 2.5, 6.0])
def test_it_finds_the_scale_that_the_labels_were_drawn_with(sharp: float, batch: int) -> None:
    values, labels = drawn(10_000, sharp)
    one = Confidence(10.0)
    for v, y in zip(values.split(batch), labels.split(batch), strict=True):
        one.learn(v, y)
    assert float(one.log_scale.exp()) == pytest.approx(sharp, rel=0.2)


@pytest.mark.parametrize("start", [0.1, 10.0, 1000.0])
def test_no_batch_moves_it_by_more_than_a_bounded_step_and_it_stays_in_reach(start: float) -> None:
    values = torch.tensor([[50.0 / start, 0.0]]).repeat(500, 1)
    for label, sign in ((1, -1), (0, 1)):
        one, labels = Confidence(start), torch.full((500,), label)
        one.learn(values, labels)
        first = float(one.log_scale) - math.log(start)
        assert 0 <= sign * first <= MOST + 1e-12
        one.log_scale += sign * (REACH - 0.01) - first
        one.learn(values / 300, labels)
        assert float(one.log_scale) - math.log(start) == pytest.approx(sign * REACH)
        one.check(one.log_scale)
    with pytest.raises(ValueError, match=r"confidence.log_scale is .*it stays within"):
        one.check(one.log_scale + 0.1)
    with pytest.raises(ValueError, match=r"confidence\.log_scale is nan"):
        one.check(torch.tensor(math.nan))


def test_values_that_are_no_numbers_leave_it_as_it_was() -> None:
    one = Confidence(10.0)
    one.learn(torch.tensor([[math.nan, 0.0]]), torch.tensor([0]))
    assert float(one.log_scale) == pytest.approx(math.log(10.0), abs=0)


def test_without_trust_the_models_own_probabilities_come_back_and_no_answer_changes() -> None:
    one = Confidence(10.0)
    values, labels = drawn(400, 1.0)
    for v, y in zip(values.split(5), labels.split(5), strict=True):
        one.learn(v, y)
    fused = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(one.probabilities(fused, torch.zeros(6)), fused.softmax(1))
    for trust in (0.3, 1.0):
        told = one.probabilities(fused, torch.full((6,), trust))
        assert told.argmax(1).tolist() == fused.argmax(1).tolist()
        torch.testing.assert_close(told.sum(1), torch.ones(6))
        assert bool((told.max(1).values < fused.softmax(1).max(1).values).all())  # it had been too sure
    s = float(one.log_scale.exp())
    torch.testing.assert_close(
        one.probabilities(fused, torch.ones(6)), (fused.double() * s / 10.0).softmax(1).float()
    )


def test_a_learner_learns_it_from_values_of_before_the_labels() -> None:
    learner = Learner(ArrCocConfig(width=8, expansion=0), [8, 8], 5)
    seen = made()
    keys = ["a", "b", "a", "b", "a", "b"]
    other = Confidence(learner.config.value_scale)
    for _ in range(4):
        before: Answer = learner.answer(seen)
        known = learner.readout.rows(keys)
        if (known >= 0).all():
            other.learn(before.values, known)
        else:
            other.learn(torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
        learner.learn(seen, keys)
    assert float(learner.confidence.log_scale) == float(other.log_scale) != math.log(10.0)


def made(seed: int = 3, batch: int = 6) -> Percept:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 4, 8, generator=draw) for _ in range(2))
    return Percept(tokens, torch.ones(batch, 4) / 4, torch.randn(batch, 5, generator=draw))


def taught() -> Learner:
    """Labels by chance: it has become unsure."""
    learner = Learner(ArrCocConfig(width=8, expansion=0), [8, 8], 5)
    draw = torch.Generator().manual_seed(4)
    for seed in range(80):
        said = torch.randint(2, (6,), generator=draw).tolist()
        learner.learn(made(seed % 4), ["ab"[k] for k in said])
    return learner


def test_of_texts_that_were_never_learned_the_models_own_probabilities_come_back() -> None:
    learner, own = taught(), torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    answer = learner.answer(made(3))
    assert float(answer.trust.min()) > 0.5
    assert float(learner.confidence.log_scale) < math.log(9.0)
    fused = learner.fuse(own, ["x", "y", "z"], answer)
    told = learner.probabilities(fused, ["x", "y", "z"], answer)
    torch.testing.assert_close(told, own.softmax(1))
    known = learner.probabilities(learner.fuse(own, ["x", "b", "a"], answer), ["x", "b", "a"], answer)
    assert not torch.allclose(known, learner.fuse(own, ["x", "b", "a"], answer).softmax(1))


def test_saved_and_loaded_it_goes_on_as_it_would_have() -> None:
    learner = taught()
    other = Learner(ArrCocConfig(width=8, expansion=0), [8, 8], 5)
    saved = {k: v.clone() for k, v in state.tensors(learner).items()}
    state.load(other, saved, state.meta(learner))
    for one in (learner, other):
        one.learn(made(99), list("abaabb"))
    assert float(other.confidence.log_scale) == float(learner.confidence.log_scale) < math.log(9.0)
    saved["confidence.log_scale"] = torch.tensor(1000.0, dtype=torch.float64)
    before = float(other.confidence.log_scale)
    with pytest.raises(ValueError, match=r"confidence\.log_scale is 1000"):
        state.load(other, saved, state.meta(learner))
    assert float(other.confidence.log_scale) == before


def test_the_exam_bins_how_sure_the_answers_were_at_the_end_and_none_claims_none() -> None:
    """By hand: the confidence of the text that is answered, of the last exam, and an ECE in the table."""
    store = fake_store()
    half = torch.arange(0, len(store), 2)
    probes = [half[store.label[half] == k] for k in range(3)]
    stream = streams.Stream("fake", [], [[c] for c in CLASSES], CLASSES, [])
    met = [CLASSES[: k + 1] for k in range(3)]
    rows = torch.arange(1, len(store), 2)
    ends = [len(rows) // 3, 2 * len(rows) // 3, len(rows)]
    shown = [list(range(len(p))) for p in probes]
    plan = percepts.Plan(rows, ends, probes, [[c] for c in CLASSES], met, stream, shown, rows.tolist())
    method = Plugin(store, ArrCocConfig(width=8, expansion=0))
    found = exam.one(method, plan, store, 4)
    wanted = []
    for probe in probes:
        batch = store.batch(probe)
        told = method.answer(batch, store.candidates)
        assert told.probabilities is not None
        assert told.scores.argmax(1).tolist() == told.probabilities.argmax(1).tolist()
        learned = method.learner.answer(batch.percept)
        fused = method.learner.fuse(batch.own_logits(store.candidates), store.candidates, learned)
        s = float(method.learner.confidence.log_scale.exp()) / 10.0
        sharper = (1 + learned.trust.double() * (s - 1)).unsqueeze(1)
        sure = (fused.double() * sharper).softmax(1).max(1).values
        wanted.append(exam.binned(sure.float(), store.right(told.scores.float(), probe)))
    flat = [[x for b in bins for x in b] for bins in found["calibration"]]
    assert flat == [pytest.approx([x for b in bins for x in b], rel=1e-5) for bins in wanted]
    assert table.scores({**found, "stream": "fake"})["expected_calibration_error"] > 0
    assert exam.one(NearestMean(tower_output), plan, store, 4)["calibration"] is None
    with pytest.raises(ValueError, match="no numbers"):
        exam.binned(torch.tensor([math.nan]), torch.tensor([1.0]))


# -- how it is scored ----------------------------------------------------------------------------------------


def test_ece_is_that_of_every_single_answer() -> None:
    """Against the definition written out over the answers: 15 bins of equal width."""
    draw = np.random.default_rng(5)
    sure, right = draw.uniform(0.1, 1, 300), draw.integers(0, 2, 300)
    wanted = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & (sure < low + 1 / 15)
        if inside.any():
            wanted += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
    bins = exam.binned(torch.from_numpy(sure), torch.from_numpy(right).float())
    assert sum(n for _, n, _, _ in bins) == 300
    _, n, p, hit = zip(*bins, strict=True)
    assert metrics.expected_calibration_error(n, p, hit) == pytest.approx(wanted, abs=1e-12)
    found = {"R": [[0.5, 0.5]], "calibration": [exam.binned(torch.ones(4), torch.zeros(4)), bins]}
    whole = table.calibration(found)  # probes are pooled: the 4 that are surely wrong add their 4
    assert metrics.expected_calibration_error(*whole) != pytest.approx(wanted)
    assert sum(whole[0]) == 304
    assert metrics.expected_calibration_error(
        *table.calibration({**found, "outdated": [0]})
    ) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("answers", [1, 7, 60])
def test_what_chance_gives_to_ece_is_the_mean_over_every_outcome(answers: int) -> None:
    """By enumeration: each number of right answers in a bin, with the probability that scipy gives it."""
    n, told = np.array([answers, 3, 2, 0]), np.array([0.37 * answers, 1.5, 2.0, 0.0])
    wanted = 0.0
    for count, sure in zip(n[:3], told[:3], strict=True):
        for hit in range(count + 1):
            wanted += scipy.stats.binom.pmf(hit, count, sure / count) * abs(hit - sure) / n.sum()
    assert metrics.chance_calibration_error(n, told) == pytest.approx(wanted, abs=1e-12)


def test_a_learner_that_is_as_right_as_it_says_has_the_ece_that_chance_gives() -> None:
    """900 answers, their confidence anywhere in its bin: drawn 400 times."""
    draw = np.random.default_rng(3)
    sure = draw.uniform(0.2, 1, 900)
    place = (sure * 15).astype(int)
    n, told = np.bincount(place, minlength=15), np.bincount(place, sure, minlength=15)
    right = draw.uniform(size=(400, 900)) < sure
    found = [metrics.expected_calibration_error(n, told, np.bincount(place, r, minlength=15)) for r in right]
    chance = metrics.chance_calibration_error(n, told)
    assert chance == pytest.approx(np.mean(found), abs=3 * np.std(found) / 20 + 5e-4)
    assert 0.03 < chance < 0.05  # the aim of .05 leaves so little to be wrong


def test_confidence_of_one_lies_in_the_last_bin() -> None:
    assert exam.binned(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])) == [
        [0, 1, 0.0, 0],
        [14, 1, 1.0, 1],
    ]


@pytest.mark.parametrize(
    ("count", "sure", "right"), [([2], [2.5], [1]), ([2], [1], [3]), ([], [], []), ([1, 2], [1], [1])]
)
def test_counts_that_cannot_be_are_refused(count: list[int], sure: list[float], right: list[int]) -> None:
    with pytest.raises(ValueError, match="as many of each"):
        metrics.expected_calibration_error(count, sure, right)
    if right != [3]:
        with pytest.raises(ValueError, match="as many of each"):
            metrics.chance_calibration_error(count, sure)


def test_a_sentence_is_as_sure_as_all_its_tokens_together() -> None:
    store = WordStore.__new__(WordStore)
    object.__setattr__(store, "start", torch.tensor([0, 2, 5]))
    best = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.8])
    torch.testing.assert_close(
        store.sure(best, torch.tensor([0, 1])), torch.tensor([0.25, 0.2], dtype=torch.float64)
    )
