"""The mix that is learned from rewards: what it is scored on, and that it finds what pays."""

import numpy as np
import pytest
import torch

from arr_coc.eval import selection_mix as sm
from arr_coc.relevance.mixture import GRID


def questions(best: tuple[int, int, int], each: int = 150) -> sm.Asked:
    """Three kinds, each answered right with one mix of the grid alone; their contexts are orthogonal."""
    kind = np.repeat(np.arange(3), each)
    right = np.zeros((len(kind), len(GRID)))
    right[np.arange(len(kind)), np.array(best)[kind]] = 1
    return sm.Asked(kind, torch.eye(3)[torch.from_numpy(kind)], right)


def test_what_pays_for_each_kind_is_learned_and_scored_by_kind() -> None:
    both = questions((0, 2, 4))
    scores = sm.scored(sm.taught(both, seed=3), both)
    assert scores.learned.tolist() == [1, 1, 1, 1]
    assert scores.bound.tolist() == [1, 1, 1, 1]
    assert scores.fixed[2].tolist() == [0, 1, 0, pytest.approx(1 / 3)]
    assert [GRID.index(m) for m in scores.chosen[::150]] == [0, 2, 4]


def test_the_bound_takes_each_kinds_best_and_weighs_kinds_by_their_questions() -> None:
    right = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0.0]])
    probe = sm.Asked(np.array([0, 0, 1, 2]), torch.eye(4), right)
    fresh = sm.Mixture(4, start=GRID[1])
    scores = sm.scored(fresh, probe)
    assert scores.bound.tolist() == [1, 1, 1, 1]
    assert scores.learned.tolist() == [0.5, 0, 0, 0.25]  # nothing learned: everywhere what it starts from
    assert scores.fixed[0].tolist() == [1, 0, 0, 0.5]


def test_the_table_pairs_by_seed() -> None:
    both = questions((0, 2, 4))
    found = [sm.scored(sm.taught(both, seed=s), both) for s in (1, 2)]
    told = sm.shown(found, "title")
    assert told.columns == ["diversity", "2x2", "3x3", "single", "all", "learned minus it"]
    assert told.rows[0] == ["learned", *["100.0 ± 0.0"] * 4, ""]
    assert told.rows[1] == [
        "fixed at 0.0",
        "100.0 ± 0.0",
        "0.0 ± 0.0",
        "0.0 ± 0.0",
        "33.3 ± 0.0",
        "+66.7 ± 0.0",
    ]


def test_one_seed_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sm.main(["--seeds", "3"])
    assert "at least two" in capsys.readouterr().err
