"""Agreement with `quantus` 0.6.0 on what it computes correctly: no ties, no empty truths, no signed
masses."""

from typing import Any

import numpy as np
import pytest

from arr_coc.eval import relevance_metrics as rm
from arr_coc.eval.relevance_randomised import spatial_entropy
from arr_coc.training.scenes import cell_mask

quantus = pytest.importorskip("quantus")

TRUTHS = np.array([cell_mask(3, c) for c in range(9)])
MAPS = np.random.default_rng(0).random((9, 12, 12))


def said(metric: Any, maps: np.ndarray) -> list[float]:
    """Scores of maps (9, 12, 12) for the truths, without a model."""
    judge = metric(abs=False, normalise=False, disable_warnings=True)
    shown, labels = maps[:, None], np.zeros(len(maps), int)
    found = judge(
        model=None, x_batch=shown, y_batch=labels, a_batch=shown, s_batch=TRUTHS[:, None].astype(int)
    )
    return [float(v) for v in found]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("PointingGame", rm.pointing),
        ("RelevanceMassAccuracy", rm.mass_accuracy),
        ("RelevanceRankAccuracy", rm.rank_accuracy),
        ("AUC", rm.auroc),
    ],
)
def test_localisation_is_quantuss(theirs: str, ours: Any) -> None:
    expected = [ours(r, g) for r, g in zip(MAPS, TRUTHS, strict=True)]
    assert said(getattr(quantus, theirs), MAPS) == pytest.approx(expected)


def test_auroc_is_quantuss_under_ties_too() -> None:
    tied = np.floor(MAPS * 4)
    assert said(quantus.AUC, tied) == pytest.approx(
        [rm.auroc(r, g) for r, g in zip(tied, TRUTHS, strict=True)]
    )


def test_its_complexity_is_the_spatial_entropy_in_nats() -> None:
    judge = quantus.Complexity(abs=True, normalise=False, disable_warnings=True)
    shown = MAPS[:, None]
    found = judge(model=None, x_batch=shown, y_batch=np.zeros(9, int), a_batch=shown)
    assert list(found) == pytest.approx([spatial_entropy(r) * np.log(2) for r in MAPS])
