"""The mix that is learned from rewards: what it is scored on, and that it finds what pays."""

from types import SimpleNamespace

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
    right = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0.0]])
    probe = sm.Asked(np.array([0, 0, 1, 2]), torch.eye(4), right)
    fresh = sm.Mixture(4, start=GRID[1])
    scores = sm.scored(fresh, probe)
    assert scores.bound.tolist() == [0.5, 1, 1, 0.75]
    assert scores.learned.tolist() == [0.5, 0, 0, 0.25]  # nothing learned: everywhere what it starts from
    assert scores.fixed[0].tolist() == [0.5, 0, 0, 0.25]


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


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--seeds", "3"], "at least two"),
        (["--images", "0"], "one picture or more"),
        (["--k", "0"], "1 to 144 tokens"),
        (["--k", "145"], "1 to 144 tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    asked: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sm.main(asked)
    assert words in capsys.readouterr().err


def test_the_start_counts_until_something_is_learned_and_questions_come_in_a_random_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, met = questions((0, 2, 4)), []
    monkeypatch.setattr(
        sm.Mixture, "learn", lambda self, context, mix, reward: met.append(int(context.argmax()))
    )
    assert sm.taught(both, seed=3, start=GRID[1]).best(torch.eye(3)[0]) == GRID[1]
    assert sorted(met) == both.kind.tolist() != met  # each once; a kind is not over before the next begins
    assert len(set(met[:10])) > 1


def test_each_mix_of_the_grid_is_asked_in_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    class Told:
        """Knows the kind by its context; right where the mix that chose is that kind's."""

        def evidence(self, samples: list) -> list:
            return [SimpleNamespace(context=torch.tensor([float(s.image)])) for s in samples]

        def right(self, samples: list, seen: list, chosen: list) -> np.ndarray:
            return np.array([float(mix == GRID[s.image]) for s, mix in zip(samples, chosen, strict=True)])

    def scenes(kind: str, images: int, seed: int, split: str) -> list:
        return [SimpleNamespace(image=list(sm.KINDS).index(kind))] * (images + (split == "test"))

    monkeypatch.setattr(sm, "scenes_of", scenes)
    monkeypatch.setattr(sm, "own", lambda seen, k, mix: mix)
    found = sm.asked(Told(), 2, 0, "test", 8)  # type: ignore[arg-type]
    assert found.kind.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.context.flatten().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found.right.tolist() == [[float(g == kind) for g in range(len(GRID))] for kind in found.kind]
