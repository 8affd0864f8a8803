"""How well a relevance map points at what was asked for: plain functions on one map and its truth.

A map r has one number per token, a truth g the share of each token that lies inside what was asked for (bools
serve), and B = {g >= .5}. A constant map scores chance everywhere. Equal cells: if an image is tiled into m
equal cells and every cell is asked for, a map that ignores the question has mean pointing, mass and rank
accuracy 1/m and AUROC 1/2 exactly. An empty truth has no score: it raises, so that a caller counts it.

Beside it: two questions on one image (relevance_contrast), tokens dropped (relevance_faithfulness), weights
drawn anew (relevance_randomised) and relevance as a probability (relevance_calibration).
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


def average_precision(relevance: ArrayLike, truth: ArrayLike) -> float:
    """sum over distinct thresholds of (recall gained) x precision; tied tokens enter together, so a constant
    map scores |B| / n, its chance."""
    r, _, inside = _checked(relevance, truth)
    order = np.argsort(-r, kind="stable")
    last = np.append(np.diff(r[order]) != 0, True)  # where a run of ties ends
    hits = inside[order].cumsum()[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / inside.sum())


def shuffled_auroc(relevance: ArrayLike, truth: ArrayLike, others: ArrayLike) -> float:
    """P(r inside B > r at a token of another sample's truth) + P(equal) / 2 (after Zhang et al., 2008).

    A prior that every sample's truth shares, such as the centre, gains nothing: the negatives have it as
    well.

    Args:
        relevance, truth: of this sample, of one shape.
        others: truths of other samples, (S, *that shape); a token counts as often as they hold it, and not at
            all where it lies inside this truth.

    Raises:
        ValueError: if the others hold no token outside this truth, or are of another shape.
    """
    r, g, inside = _checked(relevance, truth)
    rest = np.asarray(others, dtype=np.float64)
    if rest.ndim < 2 or rest[0].size != g.size:
        raise ValueError(f"others of shape {rest.shape}: truths of {g.size} tokens, one a row, are needed")
    weight = (rest.reshape(len(rest), -1) >= 0.5).sum(0) * ~inside
    if not weight.any():
        raise ValueError("the other samples' truths lie inside this one: nothing to tell it from")
    order = np.argsort(r, kind="stable")
    values, first, count = np.unique(r[order], return_index=True, return_counts=True)
    below = np.concatenate([[0.0], weight[order].cumsum()])
    at = np.searchsorted(values, r[inside])
    beaten = below[first[at]]
    tied = below[first[at] + count[at]] - beaten
    return float((beaten + tied / 2).mean() / weight.sum())
