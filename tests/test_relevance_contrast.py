"""Query contrast against closed forms: what follows the question, what does not, and what follows the wrong
one."""

import numpy as np
import pytest

from arr_coc.eval.overlay import centre_prior
from arr_coc.eval.relevance_contrast import mass_matrix, of_pairs, query_contrast
from arr_coc.eval.relevance_metrics import EmptyTruth, mass_accuracy
from arr_coc.training.scenes import cell_mask


def cells(grid: int) -> np.ndarray:
    return np.array([cell_mask(grid, c) for c in range(grid * grid)])


@pytest.mark.parametrize("grid", [2, 3, 4])
@pytest.mark.parametrize("kind", ["random", "centre", "constant", "negative"])
def test_a_map_that_ignores_the_question_has_exactly_none(grid: int, kind: str) -> None:
    draw = np.random.default_rng(grid)
    one = {
        "random": draw.normal(size=(12, 12)),
        "centre": centre_prior(12),
        "constant": np.ones((12, 12)),
        "negative": -draw.random((12, 12)),
    }[kind]
    found = query_contrast([one] * grid**2, cells(grid))
    assert found.contrast == 0.0  # to the last bit
    assert found.swap_accuracy == 0.5
    assert found.pairs == grid**2 * (grid**2 - 1) // 2


def test_oracle_is_one_and_swapped_is_minus_one() -> None:
    truths = cells(2)
    assert query_contrast(truths, truths).contrast == 1
    assert query_contrast(truths, truths).swap_accuracy == 1
    swapped = query_contrast(truths[[1, 0]], truths[:2])
    assert (swapped.contrast, swapped.swap_accuracy) == (-1, 0)


def test_by_hand() -> None:
    """Masses .6/.3 in truth A and .2/.5 in truth B: ((.6 - .3) + (.5 - .2)) / 2."""
    found = of_pairs([[0.6, 0.2], [0.3, 0.5]])
    assert found.contrast == pytest.approx(0.3)
    assert found.swap_accuracy == 1
    truths = np.array([[1, 0, 0], [0, 1, 0]])
    maps = [[6.0, 2.0, 2.0], [3.0, 5.0, 2.0]]
    assert query_contrast(maps, truths).contrast == pytest.approx(0.3)
    assert mass_matrix(maps, truths) == pytest.approx(np.array([[0.6, 0.2], [0.3, 0.5]]))


def test_masses_of_all_pairs_are_those_of_each() -> None:
    draw = np.random.default_rng(5)
    maps, truths = draw.normal(size=(4, 6, 6)), (draw.random((3, 6, 6)) > 0.5) * 0.8
    maps[1] = -np.abs(maps[1])
    expected = [[mass_accuracy(r, g) for g in truths] for r in maps]
    assert mass_matrix(maps, truths) == pytest.approx(np.array(expected))
    with pytest.raises(EmptyTruth):
        mass_matrix(maps, np.zeros((1, 6, 6)))
    with pytest.raises(ValueError, match="same tokens"):
        mass_matrix(maps, np.ones((1, 5)))


def test_a_prior_that_is_added_to_every_map_halves_it_and_wins_nothing() -> None:
    truths = cells(3)
    even = np.full((12, 12), 1 / 144)
    mixed = [0.5 * t / t.sum() + 0.5 * even for t in truths]
    assert query_contrast(mixed, truths).contrast == pytest.approx(0.5)


def test_independent_random_maps_have_none_within_three_standard_errors() -> None:
    draw = np.random.default_rng(2)
    found = [query_contrast(draw.random((9, 12, 12)), cells(3)) for _ in range(200)]
    for values, chance in (([f.contrast for f in found], 0), ([f.swap_accuracy for f in found], 0.5)):
        assert abs(np.mean(values) - chance) < 3 * np.std(values, ddof=1) / 200**0.5


def test_what_has_none_is_refused() -> None:
    with pytest.raises(ValueError, match="share a token"):
        query_contrast(np.ones((2, 3)), [[1, 1, 0], [0, 1, 1]])
    with pytest.raises(ValueError, match="two or more"):
        query_contrast(np.ones((1, 3)), [[1, 0, 0]])
    with pytest.raises(ValueError, match="one of each"):
        query_contrast(np.ones((2, 3)), [[1, 0, 0]])
