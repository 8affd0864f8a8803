"""Measures of a relevance map against closed forms, brute force over tie orders and the equal-cells lemma."""

from itertools import permutations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, roc_auc_score

from arr_coc.eval import relevance_metrics as rm
from arr_coc.training.scenes import cell_mask

ALL = (rm.pointing, rm.mass_accuracy, rm.rank_accuracy, rm.auroc)


def maps() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : 12 * 1j, -1 : 1 : 12 * 1j]
    return {
        "random": draw.normal(size=(12, 12)),
        "tied": draw.integers(0, 3, (12, 12)).astype(float),
        "centre": np.exp(-4 * (x**2 + y**2)),
        "constant": np.ones((12, 12)),
        "negative": -draw.random((12, 12)),
    }


@pytest.mark.parametrize("grid", [2, 3, 4])
@pytest.mark.parametrize("name", list(maps()))
def test_a_map_that_ignores_the_question_scores_chance_over_equal_cells(name: str, grid: int) -> None:
    truths = [cell_mask(grid, cell) for cell in range(grid * grid)]
    for measure in ALL:
        mean = np.mean([measure(maps()[name], truth) for truth in truths])
        assert mean == pytest.approx(0.5 if measure is rm.auroc else 1 / grid**2, abs=1e-12)


def test_oracle_is_one_and_its_inverse_zero() -> None:
    truth = cell_mask(3, 4)
    for measure in ALL:
        assert measure(truth, truth) == 1
        assert measure(~truth, truth) == 0
    assert rm.mass_lift(truth, truth) == pytest.approx(9)
    assert rm.pointing_chance(truth) == pytest.approx(1 / 9)


def test_ties_are_expectations_by_hand() -> None:
    relevance, truth = [3.0, 3.0, 1.0, -2.0], [True, False, True, False]
    assert rm.pointing(relevance, truth) == 0.5
    assert rm.mass_accuracy(relevance, truth) == pytest.approx(4 / 7)
    assert rm.rank_accuracy(relevance, truth) == 0.5
    assert rm.auroc(relevance, truth) == pytest.approx((0.5 + 1 + 0 + 1) / 4)


def test_mass_weighs_shares_and_the_rest_counts_half_or_more() -> None:
    relevance, truth = [1.0, 2.0, 1.0], [0.5, 0.25, 0.0]
    assert rm.mass_accuracy(relevance, truth) == pytest.approx(1.0 / 4)
    assert rm.mass_lift(relevance, truth) == pytest.approx(1.0)
    assert rm.pointing(relevance, truth) == 0


def test_rank_accuracy_is_the_mean_over_every_order_of_ties() -> None:
    relevance, truth = np.array([2.0, 1, 1, 1, 0, 0]), np.array([0, 1, 1, 0, 1, 0], bool)
    shares = [
        truth[sorted(order, key=lambda i: -relevance[i])[:3]].mean()  # sorted is stable
        for order in permutations(range(6))
    ]
    assert rm.rank_accuracy(relevance, truth) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("name", list(maps()))
def test_auroc_is_scikit_learns(name: str) -> None:
    truth, relevance = cell_mask(3, 1), maps()[name]
    assert rm.auroc(relevance, truth) == pytest.approx(roc_auc_score(truth.ravel(), relevance.ravel()))


@pytest.mark.parametrize("name", list(maps()))
def test_average_precision_is_scikit_learns(name: str) -> None:
    truth, relevance = cell_mask(3, 1), maps()[name]
    expected = average_precision_score(truth.ravel(), relevance.ravel())
    assert rm.average_precision(relevance, truth) == pytest.approx(expected)


def test_average_precision_by_hand() -> None:
    truth = cell_mask(3, 4)
    assert rm.average_precision(truth, truth) == 1
    assert rm.average_precision(np.ones((12, 12)), truth) == pytest.approx(1 / 9)  # a constant map: chance
    assert rm.average_precision([4.0, 3.0, 2.0, 1.0], [False, True, False, True]) == pytest.approx(
        (1 / 2 + 2 / 4) / 2
    )
    assert rm.average_precision([4.0, 3.0, 3.0, 1.0], [True, True, False, False]) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_shuffled_auroc_forgives_no_centre_prior() -> None:
    """Truths that lie in the middle: the centre map has a high AUROC, and nothing once the others' truths are
    what it is told from."""
    draw = np.random.default_rng(0)
    truths = np.zeros((200, 12, 12), bool)
    for truth in truths:
        y, x = np.clip(np.round(draw.normal(5, 1.5, 2)).astype(int), 0, 10)
        truth[y : y + 2, x : x + 2] = True
    centre = maps()["centre"]
    plain = np.mean([rm.auroc(centre, t) for t in truths])
    told = [rm.shuffled_auroc(centre, t, np.delete(truths, i, 0)) for i, t in enumerate(truths)]
    assert plain > 0.85
    assert abs(np.mean(told) - 0.5) < 3 * np.std(told) / len(told) ** 0.5 + 0.01
    assert rm.shuffled_auroc(truths[0], truths[0], truths[1:]) == 1


def test_shuffled_auroc_counts_a_token_as_often_as_the_others_hold_it() -> None:
    relevance, truth = [3.0, 1.0, 2.0, 3.0], [True, True, False, False]
    others = [
        [0, 0, 1, 0],
        [0, 0, 1, 1],
        [1, 0, 1, 0],
    ]  # token 2 three times, token 3 once, token 0 is inside
    expected = ((3 * 1 + 1 * 0.5) / 4 + 0) / 2
    assert rm.shuffled_auroc(relevance, truth, others) == pytest.approx(expected)
    by_hand = roc_auc_score([1, 1, 0, 0], relevance, sample_weight=[1, 1, 3, 1])
    assert rm.shuffled_auroc(relevance, truth, others) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="inside this one"):
        rm.shuffled_auroc(relevance, truth, [[1, 1, 0, 0]])
    with pytest.raises(ValueError, match="truths of 4 tokens"):
        rm.shuffled_auroc(relevance, truth, [[1, 0]])


@pytest.mark.parametrize("grid", [2, 3, 4])
@pytest.mark.parametrize("name", list(maps()))
def test_shuffled_auroc_of_a_map_that_ignores_the_question_is_one_half_over_equal_cells(
    name: str, grid: int
) -> None:
    truths = np.array([cell_mask(grid, cell) for cell in range(grid * grid)])
    mean = np.mean([rm.shuffled_auroc(maps()[name], t, truths) for t in truths])
    assert mean == pytest.approx(0.5, abs=1e-12)


def test_the_sanity_ladder() -> None:
    """Random and blurred random maps, drawn anew for every question, score chance within three standard
    errors."""
    draw = np.random.default_rng(1)
    truths = [cell_mask(3, cell) for cell in range(9)] * 60
    plain = [draw.random((12, 12)) for _ in truths]
    blurred = [gaussian_filter(r, 1.5) for r in plain]
    for drawn in (plain, blurred):
        for measure in ALL:
            scores = [measure(r, t) for r, t in zip(drawn, truths, strict=True)]
            chance = 0.5 if measure is rm.auroc else 1 / 9
            error = np.std(scores, ddof=1) / len(scores) ** 0.5
            assert abs(np.mean(scores) - chance) < 3 * error, measure.__name__


def test_what_has_no_score_is_refused() -> None:
    for measure in (*ALL, rm.average_precision):
        with pytest.raises(rm.EmptyTruth):
            measure([1.0, 2.0], [False, False])
        with pytest.raises(ValueError, match="same tokens"):
            measure([1.0, 2.0], [True])
        with pytest.raises(ValueError, match="NaN"):
            measure([1.0, np.nan], [True, False])
        with pytest.raises(ValueError, match="0 to 1"):
            measure([1.0, 2.0], [2.0, 0.0])
    with pytest.raises(ValueError, match="every token"):
        rm.auroc([1.0, 2.0], [True, True])
