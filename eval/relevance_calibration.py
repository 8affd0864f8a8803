"""Calibration: relevance read as the probability that a token lies in what was asked for.

p = sigma(a x + b) with x the map's value (its logarithm, for a map that sums to one), a and b fitted by
maximum likelihood on *another* split (Platt, 1999); then the Brier score mean (p - y)^2 and the expected
calibration error over 15 bins of equal mass (Nixon et al., 2019). `sparsification` is the other use: how much
of the map's mass the top tokens keep, beside how much accuracy they keep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit

Array = NDArray[np.float64]
BINS = 15


@dataclass(frozen=True)
class Sigmoid:
    """p = sigma(slope x + offset)."""

    slope: float
    offset: float

    def __call__(self, x: ArrayLike) -> Array:
        return np.asarray(expit(self.slope * np.asarray(x, dtype=np.float64) + self.offset))


@dataclass(frozen=True)
class Calibration:
    """Of probabilities p for outcomes y.

    Args:
        brier: mean (p - y)^2. ece: expected calibration error. base: brier of the base rate alone, y (1 - y).
        confidence, frequency, count: mean p, mean y and how many, per bin.
    """

    brier: float
    ece: float
    base: float
    confidence: Array
    frequency: Array
    count: NDArray[np.int64]


def fit_sigmoid(x: ArrayLike, inside: ArrayLike, ridge: float = 1e-6) -> Sigmoid:
    """Slope and offset of least mean cross-entropy, plus `ridge` slope'^2 / 2 on standardised x, without
    which a split that the map separates has no finite answer.

    Raises:
        ValueError: for values that are not finite, other lengths, or outcomes that are all alike.
    """
    v, y = _pair(x, inside)
    if y.min() == y.max():
        raise ValueError("every token of the fitting split is alike: there is nothing to fit")
    mean, scale = float(v.mean()), float(v.std()) or 1.0
    z = (v - mean) / scale

    def loss(w: Array) -> tuple[float, Array]:
        t = w[0] * z + w[1]
        error = (expit(t) - y) / len(y)
        value = float((np.logaddexp(0, t) - y * t).mean() + ridge * w[0] ** 2 / 2)
        return value, np.array([(error * z).sum() + ridge * w[0], error.sum()])

    w = minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-10}).x
    return Sigmoid(float(w[0]) / scale, float(w[1] - w[0] * mean / scale))


def calibration(p: ArrayLike, inside: ArrayLike, bins: int = BINS) -> Calibration:
    """Brier score and expected calibration error of probabilities for outcomes.

    ece = sum_b n_b / n |mean p - mean y| over bins of as nearly equal mass as whole tokens allow, in the
    order of p.

    Raises:
        ValueError: for probabilities outside 0 to 1, fewer outcomes than bins, and as `fit_sigmoid`.
    """
    v, y = _pair(p, inside)
    if v.min() < 0 or v.max() > 1:
        raise ValueError(f"p reaches from {v.min():.3g} to {v.max():.3g}: probabilities are needed")
    if not 1 <= bins <= len(v):
        raise ValueError(f"{bins} bins for {len(v)} tokens: 1 to {len(v)} are possible")
    parts = np.array_split(np.argsort(v, kind="stable"), bins)
    count = np.array([len(i) for i in parts])
    confidence, frequency = (np.array([of[i].mean() for i in parts]) for of in (v, y))
    ece = float((count * np.abs(confidence - frequency)).sum() / len(v))
    rate = float(y.mean())
    brier = float(((v - y) ** 2).mean())
    return Calibration(brier, ece, rate * (1 - rate), confidence, frequency, count)


def mass_kept(relevance: ArrayLike, counts: Sequence[int]) -> Array:
    """sum of the k largest r+ / sum r+, for each k, (K,); k / n for a map without positive mass."""
    r = np.maximum(np.asarray(relevance, dtype=np.float64).ravel(), 0)
    if any(not 0 <= k <= len(r) for k in counts):
        raise ValueError(f"counts={list(counts)}: 0 to {len(r)} tokens can be kept")
    if r.max() == 0:
        r = np.ones_like(r)
    total = np.concatenate([[0.0], np.sort(r)[::-1].cumsum()])
    return np.asarray(total[list(counts)] / total[-1])


def sparsification(
    maps: Sequence[ArrayLike], correct: Callable[[int, NDArray[np.int64]], bool], counts: Sequence[int]
) -> tuple[Array, Array]:
    """Mean mass kept and mean accuracy kept by the k most relevant tokens, for each k, (K,) and (K,).

    Args:
        maps: one a sample. correct: for sample i and the indices kept, rising, whether it is still answered
            right.
        counts: k, such as n, n/3, 2n/9, n/9, n/18.
    """
    mass = np.mean([mass_kept(r, counts) for r in maps], 0)
    right = np.zeros((len(maps), len(counts)))
    for i, r in enumerate(maps):
        flat = np.asarray(r, dtype=np.float64).ravel()
        shuffled = np.random.default_rng(i).permutation(len(flat))  # ties fall in no place's favour
        falling = shuffled[np.argsort(-flat[shuffled], kind="stable")]
        right[i] = [correct(i, np.sort(falling[:k])) for k in counts]
    return mass, right.mean(0)


def _pair(x: ArrayLike, inside: ArrayLike) -> tuple[Array, Array]:
    v, y = (np.asarray(a, dtype=np.float64).ravel() for a in (x, inside))
    if v.shape != y.shape or v.size == 0 or not np.isfinite(v).all() or not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"{v.size} finite values and {y.size} outcomes of 0 or 1: one of each a token is needed"
        )
    return v, y
