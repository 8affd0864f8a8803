"""How well a relevance map points at what was asked for: plain functions on one map and its truth.

A map r has one number per token, a truth g the share of each token that lies inside what was asked for (bools
serve), and B = {g >= .5}. A constant map scores chance everywhere. Equal cells: if an image is tiled into m
equal cells and every cell is asked for, a map that ignores the question has mean pointing, mass and rank
accuracy 1/m and AUROC 1/2 exactly. An empty truth has no score: it raises, so that a caller counts it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


class EmptyTruth(ValueError):
    """Nothing was asked for in this image: it is left out of a mean, and counted."""


def _checked(relevance: ArrayLike, truth: ArrayLike) -> tuple[Array, Array, NDArray[np.bool_]]:
    """r, g and B, flat: (n,) each."""
    r, g = np.asarray(relevance, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if r.shape != g.shape or r.size == 0:
        raise ValueError(f"relevance {r.shape} and truth {g.shape}: the same tokens are needed")
    if not np.isfinite(r).all():
        raise ValueError("relevance has a NaN or infinite token")
    if not ((g >= 0) & (g <= 1)).all():
        raise ValueError("truth: shares of 0 to 1, or bools, are needed")
    inside = g.ravel() >= 0.5
    if not inside.any():
        raise EmptyTruth("no token lies at least half inside the truth")
    return r.ravel(), g.ravel(), inside


def pointing(relevance: ArrayLike, truth: ArrayLike) -> float:
    """|argmax(r) and B| / |argmax(r)|: the expectation where several tokens share the maximum."""
    r, _, inside = _checked(relevance, truth)
    return float(inside[r == r.max()].mean())


def pointing_chance(truth: ArrayLike) -> float:
    """|B| / n."""
    return pointing(np.zeros(np.shape(truth)), truth)


def mass_accuracy(relevance: ArrayLike, truth: ArrayLike) -> float:
    """sum(r+ g) / sum(r+), r+ = max(r, 0); mean(g), which is chance, for a map without positive mass."""
    r, g, _ = _checked(relevance, truth)
    top = r.max()
    if top <= 0:
        return float(g.mean())
    positive = np.maximum(r, 0) / top  # neither overflows nor underflows
    return float((positive * g).sum() / positive.sum())


def mass_lift(relevance: ArrayLike, truth: ArrayLike) -> float:
    """`mass_accuracy` / mean(g): how many times chance."""
    return mass_accuracy(relevance, truth) / float(np.mean(np.asarray(truth, dtype=np.float64)))


def rank_accuracy(relevance: ArrayLike, truth: ArrayLike) -> float:
    """Share of the top K = |B| tokens inside B, expected over random orders of tied tokens."""
    r, _, inside = _checked(relevance, truth)
    count = int(inside.sum())
    edge = np.sort(r)[-count]
    above, tied = r > edge, r == edge
    return float(inside[above].sum() + (count - above.sum()) * inside[tied].mean()) / count


def auroc(relevance: ArrayLike, truth: ArrayLike) -> float:
    """P(r inside B > r outside) + P(equal) / 2, by mid-ranks.

    Raises:
        ValueError: if every token lies inside the truth.
    """
    r, _, inside = _checked(relevance, truth)
    hits, misses = int(inside.sum()), int((~inside).sum())
    if misses == 0:
        raise ValueError("every token lies inside the truth: nothing to tell it from")
    return float((rankdata(r)[inside].sum() - hits * (hits + 1) / 2) / (hits * misses))
