"""Faithfulness: how the answer falls as the tokens that a map calls relevant are dropped, position ids kept.

s(f) is the target's score with the f n most (MoRF) or least (LeRF) relevant of n tokens dropped (Samek et
al., 2017), normalised to (s(f) - s(1)) / (s(0) - s(1)); the area under each over f, and gap = LeRF - MoRF. A
random map has gap 0 on average. Dropping a token leaves the model what it was trained on, a sequence of
embeddings with their positions; greying pixels would not.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Kept = NDArray[np.intp]
FRACTIONS = (0.0, *(round(0.05 * k, 2) for k in range(1, 19)), 1.0)
FLAT = 1e-9


class FlatScore(ValueError):
    """Dropping everything does not lower the score, so that there is no answer to lose and no curve to
    normalise: left out, counted."""


@dataclass(frozen=True)
class Curves:
    """One (image, query), scores normalised to 1 with every token and 0 with none.

    Args:
        fractions: f, (F,). most_first, least_first: s(f), (F,). morf, lerf: areas. gap: lerf - morf.
        whole, none: s(0) and s(1) as they were.
    """

    fractions: Array
    most_first: Array
    least_first: Array
    morf: float
    lerf: float
    gap: float
    whole: float
    none: float


def kept_sets(
    relevance: ArrayLike, fractions: ArrayLike = FRACTIONS, seed: int = 0
) -> tuple[list[Kept], list[Kept]]:
    """Token indices kept at each fraction, rising, with the most and the least relevant dropped first.

    Ties fall in one random order (`seed`), so a constant map drops the same tokens in neither direction's
    favour.
    """
    r = np.asarray(relevance, dtype=np.float64).ravel()
    if r.size == 0 or not np.isfinite(r).all():
        raise ValueError(
            f"relevance of shape {np.shape(relevance)}: finite values of one token or more are needed"
        )
    shuffled = np.random.default_rng(seed).permutation(len(r))
    falling = shuffled[np.argsort(-r[shuffled], kind="stable")]
    counts = [round(float(f) * len(r)) for f in np.asarray(fractions, dtype=np.float64)]
    most = [np.sort(falling[k:]) for k in counts]
    least = [np.sort(falling[: len(r) - k]) for k in counts]
    return most, least


def area(fractions: ArrayLike, scores: ArrayLike) -> float:
    """By trapezoids, over the range of f: the mean height."""
    f, s = np.asarray(fractions, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    return float((np.diff(f) * (s[1:] + s[:-1]) / 2).sum() / (f[-1] - f[0]))


def curves(
    relevance: ArrayLike,
    score: Callable[[list[Kept]], ArrayLike],
    fractions: ArrayLike = FRACTIONS,
    seed: int = 0,
    least: float = FLAT,
) -> Curves:
    """MoRF and LeRF of one map.

    Args:
        relevance: n tokens, any shape.
        score: for K sets of kept tokens (indices, rising; the last may be empty), the target's K scores: of a
            dual encoder the cosine to the matched text minus the mean cosine to the others
            (`token_dropping.target`), of a generative model the log-probability of the answer. What it drops
            keeps its position ids.
        fractions: rising from 0 to 1.
        seed: of the order of tied tokens.
        least: s(0) - s(1) has to be this large, so that there is an answer to lose.

    Raises:
        FlatScore: where it is not. ValueError: for fractions that do not rise from 0 to 1,
            or scores that are not finite.
    """
    f = np.asarray(fractions, dtype=np.float64)
    if f.ndim != 1 or len(f) < 2 or f[0] != 0 or f[-1] != 1 or (np.diff(f) <= 0).any():
        raise ValueError(f"fractions={f.tolist()}: they rise from 0 to 1")
    top_gone, bottom_gone = kept_sets(relevance, f, seed)
    found = np.asarray(score(top_gone + bottom_gone), dtype=np.float64)
    if found.shape != (2 * len(f),) or not np.isfinite(found).all():
        raise ValueError(f"scores of shape {found.shape}: {2 * len(f)} finite ones are needed")
    falling, rising = found[: len(f)], found[len(f) :]
    whole, none = float(falling[0]), float(falling[-1])
    if whole - none < least:
        raise FlatScore(f"with every token {whole:.3g}, with none {none:.3g}: no answer to lose")
    falling, rising = ((s - none) / (whole - none) for s in (falling, rising))
    morf, lerf = area(f, falling), area(f, rising)
    return Curves(f, falling, rising, morf, lerf, lerf - morf, whole, none)
