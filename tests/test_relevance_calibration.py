"""Calibration and randomisation against closed forms, scikit-learn and weights compared bit for bit."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

import tiny
from arr_coc.eval import relevance_randomised as rr
from arr_coc.eval.relevance_calibration import calibration, fit_sigmoid, mass_kept, sparsification


def drawn(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes whose log odds are 3 x - 1."""
    draw = np.random.default_rng(0)
    x = draw.normal(2, 0.7, n)
    return x, (draw.random(n) < expit(3 * x - 6)).astype(float)


def test_the_sigmoid_is_scikit_learns_and_near_the_one_drawn_from() -> None:
    x, y = drawn()
    found = fit_sigmoid(x, y, ridge=0.0)
    other = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(x[:, None], y)
    assert found.slope == pytest.approx(float(other.coef_[0, 0]), rel=1e-4)
    assert found.offset == pytest.approx(float(other.intercept_[0]), rel=1e-4)
    assert (found.slope, found.offset) == pytest.approx((3, -6), abs=0.4)


def test_a_separable_split_has_a_finite_sigmoid() -> None:
    found = fit_sigmoid([0.0, 1.0, 2.0, 3.0], [0, 0, 1, 1])
    assert np.isfinite([found.slope, found.offset]).all()
    assert (found([0.0, 3.0]).round() == [0, 1]).all()


def test_calibration_by_hand() -> None:
    """Two bins: p .1 .3 with y 0 1 and p .6 .8 with y 1 1: |.2 - .5| and |.7 - 1|, halves."""
    found = calibration([0.6, 0.1, 0.8, 0.3], [1, 0, 1, 1], bins=2)
    assert found.ece == pytest.approx(0.3)
    assert found.brier == pytest.approx((0.01 + 0.49 + 0.16 + 0.04) / 4)
    assert found.base == pytest.approx(0.75 * 0.25)
    assert found.confidence == pytest.approx([0.2, 0.7])
    assert found.frequency == pytest.approx([0.5, 1.0])


def test_a_fitted_map_is_calibrated_on_another_split_and_an_overconfident_one_is_not() -> None:
    x, y = drawn()
    p = fit_sigmoid(x[:2000], y[:2000])(x[2000:])
    fitted, bold = calibration(p, y[2000:]), calibration((p > 0.5).astype(float), y[2000:])
    assert fitted.ece < 0.04 < bold.ece
    assert fitted.brier < bold.brier
    assert fitted.brier < fitted.base
    assert set(fitted.count.tolist()) <= {133, 134}  # fifteen bins of equal mass
    even = calibration(np.full(2000, y[2000:].mean()), y[2000:])
    assert even.brier == pytest.approx(even.base)


def test_mass_kept() -> None:
    assert mass_kept([1.0, 3.0, -5.0, 4.0], (0, 1, 2, 4)) == pytest.approx([0, 0.5, 7 / 8, 1])
    assert mass_kept(np.zeros(4), (1, 2)) == pytest.approx([0.25, 0.5])
    with pytest.raises(ValueError, match="0 to 4"):
        mass_kept(np.ones(4), (5,))


def test_mass_kept_beside_accuracy_kept() -> None:
    """Sample 0 needs its first token, sample 1 needs two."""
    maps = [[0.5, 0.3, 0.2], [0.25, 0.15, 0.6]]
    needs = [{0}, {2, 0}]
    mass, right = sparsification(maps, lambda i, kept: needs[i] <= set(kept.tolist()), (3, 2, 1))
    assert mass == pytest.approx([1, 0.825, 0.55])
    assert right == pytest.approx([1, 1, 0.5])


def test_tied_tokens_are_kept_in_no_places_favour() -> None:
    _, right = sparsification([np.ones(10)] * 400, lambda i, kept: 0 in kept, (5,))
    assert abs(float(right[0]) - 0.5) < 0.1


def test_what_has_no_calibration_is_refused() -> None:
    with pytest.raises(ValueError, match="alike"):
        fit_sigmoid([1.0, 2.0], [1, 1])
    with pytest.raises(ValueError, match="probabilities"):
        calibration([1.5, 0.2], [1, 0], bins=1)
    with pytest.raises(ValueError, match="15 bins"):
        calibration([0.5, 0.2], [1, 0])
    with pytest.raises(ValueError, match="outcomes of 0 or 1"):
        fit_sigmoid([1.0, 2.0], [0.5, 1])


def test_entropies_are_closed_forms() -> None:
    assert rr.discrete_entropy(np.ones(9)) == 0
    assert rr.discrete_entropy(np.arange(8.0), bins=8) == pytest.approx(3)
    assert rr.discrete_entropy([0, 0, 0, 1.0], bins=4) == pytest.approx(0.75 * np.log2(4 / 3) + 0.25 * 2)
    assert rr.spatial_entropy(np.ones(16)) == pytest.approx(4)
    assert rr.spatial_entropy(np.eye(16)[3]) == 0
    assert rr.spatial_entropy(-np.ones(16)) == pytest.approx(4)
    assert rr.spatial_entropy([0.5, 0.25, 0.25, 0]) == pytest.approx(1.5)
    values = np.random.default_rng(0).normal(size=500)
    counts = np.histogram(values, 100)[0]
    p = counts[counts > 0] / 500
    assert rr.discrete_entropy(values) == pytest.approx(float(-(p * np.log2(p)).sum()))


def test_rise_is_relative_to_the_map_of_the_trained_model() -> None:
    found = rr.entropy_rise(
        [[0.5, 0.25, 0.25, 0], np.eye(4)[0]], [np.ones(4), np.ones(4)], rr.spatial_entropy
    )
    assert found.rise == pytest.approx((2 - 1.5) / 1.5)
    assert (found.before, found.after, found.undefined) == (0.75, 2, 1)
    assert rr.entropy_rise([np.arange(5.0)], [np.arange(5.0)]).rise == 0
    with pytest.raises(ValueError, match="no entropy"):
        rr.entropy_rise([np.ones(4)], [np.ones(4)])
    with pytest.raises(ValueError, match="as many"):
        rr.entropy_rise([np.ones(4)], [])


def test_every_weight_is_drawn_anew_and_comes_back_bit_for_bit() -> None:
    model, inputs = tiny.dual("siglip"), tiny.dual_inputs()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    with torch.no_grad():
        said = model(**inputs).logits_per_image
        with rr.redrawn(model, 0):
            inside = {n: p.clone() for n, p in model.named_parameters()}
            once = model(**inputs).logits_per_image
        with rr.redrawn(model, 0):
            assert torch.equal(once, model(**inputs).logits_per_image)  # the seed decides
        with pytest.raises(RuntimeError, match="inside"), rr.redrawn(model, 1):
            raise RuntimeError("inside")
    assert not torch.allclose(said, once)
    weights = [n for n, p in inside.items() if p.dim() > 1 or n.startswith("logit")]
    assert all(not torch.equal(inside[n], before[n]) for n in weights)
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert torch.equal(said, model(**inputs).logits_per_image)
