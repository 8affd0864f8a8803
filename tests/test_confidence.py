"""Confidence: as sure as the labels so far bear out, without changing one answer."""

import math

import numpy as np
import pytest
import torch

from arr_coc.answer import Answer
from arr_coc.confidence import BOUNDS, MOST, RATE, Confidence
from arr_coc.config import ArrCocConfig
from arr_coc.eval import exam, metrics, table
from arr_coc.eval.percepts_words import WordStore
from arr_coc.learner import Learner
from arr_coc.percept import Percept


def drawn(n: int, sharp: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (n, 4) and labels (n,) drawn from softmax(sharp * values)."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 4, generator=draw, dtype=torch.float64)
    labels = torch.multinomial((sharp * values).softmax(1), 1, generator=draw).squeeze(1)
    return values, labels


def test_one_step_is_the_gradient_of_the_labels_log_probability() -> None:
    values, labels = drawn(1, 2.0)
    log_s = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)
    (log_s.exp() * values).log_softmax(1)[0, labels[0]].backward()
    one = Confidence(3.0)
    one.learn(values, labels)
    assert log_s.grad is not None
    assert float(one.log_scale) == pytest.approx(math.log(3.0) + RATE * float(log_s.grad), abs=1e-12)


@pytest.mark.parametrize("sharp", [1.0, 2.5, 6.0])
def test_it_finds_the_scale_that_the_labels_were_drawn_with(sharp: float) -> None:
    values, labels = drawn(6000, sharp)
    one = Confidence(10.0)
    for v, y in zip(values.split(5), labels.split(5), strict=True):
        one.learn(v, y)
    assert float(one.log_scale.exp()) == pytest.approx(sharp, rel=0.2)


def test_no_batch_moves_it_by_more_than_a_bounded_step_and_it_stays_in_bounds() -> None:
    one = Confidence(10.0)
    values = torch.tensor([[5.0, 0.0]]).repeat(500, 1)
    one.learn(values, torch.ones(500, dtype=torch.long))
    assert float(one.log_scale) == pytest.approx(math.log(10.0) - MOST)
    for _ in range(200):
        one.learn(values, torch.ones(500, dtype=torch.long))
    assert float(one.log_scale) == pytest.approx(BOUNDS[0])


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
    draw = torch.Generator().manual_seed(3)
    tokens = tuple(torch.randn(6, 4, 8, generator=draw) for _ in range(2))
    made = Percept(tokens, torch.ones(6, 4) / 4, torch.randn(6, 5, generator=draw))
    keys = ["a", "b", "a", "b", "a", "b"]
    other = Confidence(learner.config.value_scale)
    for _ in range(4):
        before: Answer = learner.answer(made)
        known = learner.readout.rows(keys)
        if (known >= 0).all():
            other.learn(before.values, known)
        else:
            other.learn(torch.zeros(6, 2), torch.tensor([0, 1, 0, 1, 0, 1]))
        learner.learn(made, keys)
    assert float(learner.confidence.log_scale) == float(other.log_scale) != math.log(10.0)


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


def test_a_sentence_is_as_sure_as_all_its_tokens_together() -> None:
    store = WordStore.__new__(WordStore)
    object.__setattr__(store, "start", torch.tensor([0, 2, 5]))
    best = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.8])
    torch.testing.assert_close(
        store.sure(best, torch.tensor([0, 1])), torch.tensor([0.25, 0.2], dtype=torch.float64)
    )
