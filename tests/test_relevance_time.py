"""The measurement of relevance in time: its scores by hand, its table, and a small run of it."""

import math

import pytest
import torch

from arr_coc.eval import relevance_time as rt
from arr_coc.eval.relevance_metrics import auroc


def test_missed_truth_is_the_log_of_the_mass_on_the_true_tokens() -> None:
    forecast = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4])
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    torch.testing.assert_close(rt.missed(forecast, mask), torch.tensor([math.log(2), math.log(4)]))


def test_a_table_pairs_what_is_compared_by_seed() -> None:
    scores = [
        {"pointing without": 0.5 + s, "pointing with": 0.6 + s + d}
        for s, d in ((0, 0), (0.1, 0.02), (0.2, -0.02))
    ]
    rows = rt.table(scores)
    assert [(r.name, r.than) for r in rows] == [
        ("pointing without", ""),
        ("pointing with", ""),
        ("pointing with", "pointing without"),
    ]
    difference = rows[2].difference
    assert difference is not None
    assert difference.interval.mean == pytest.approx(0.1)
    assert difference.interval.half == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-5)
    shown = rt.markdown(rows)
    assert "| pointing without | 0.600 ± 0.248 |" in shown
    assert "| pointing with - pointing without | 0.100 ± 0.050 |" in shown


@pytest.mark.slow
def test_a_small_run_scores_forecasts_and_associations() -> None:
    frames = rt.Frames()
    predicted = rt.predicted(frames, 21, count=192)
    assert predicted["missed truth, predicted"] < predicted["missed truth, same as last"]
    assert predicted["cross-entropy, predicted"] < predicted["cross-entropy, same as last"]
    assert predicted["cross-entropy, uniform"] == pytest.approx(math.log(144), abs=1e-6)
    assert predicted["surprise at a cut"] > predicted["surprise within"] + 1
    announced = rt.announced(frames, 21, learned=240, held=48)
    assert announced["mass on the sign without, planted"] == announced["mass on the sign without, shuffled"]
    assert 0 <= announced["sign, planted"] <= 1
    assert auroc([0, 0, 1], [False, False, True]) == 1
