"""How sure a number is: Student-t over seeds, paired differences, Holm's correction, binomial error.

The unit is the seed: orders of one seed share their samples, so they are averaged first and are not counted
as repetitions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """mean +- half, from n seeds; `sd` is the standard deviation between seeds."""

    mean: float
    half: float
    sd: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.half:.4f} (n = {self.n})"


@dataclass(frozen=True)
class Difference:
    """Of a paired comparison: the interval of a - b, and the two-sided p value of its mean being zero."""

    interval: Interval
    p: float


def over_seeds(values: ArrayLike) -> Array:
    """Mean over orders first: (S, O) -> (S,); (S,) stays as it is."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"values of shape {scores.shape}: (seeds,) or (seeds, orders) is needed")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite: a run is missing or broken")
    return scores.mean(1) if scores.ndim == 2 else scores


def student_t(values: ArrayLike, level: float = 0.95) -> Interval:
    """mean +- t_{(1 + level)/2, n-1} sd / sqrt(n) over seeds; five seeds give 1.24 sd at .95.

    Args:
        values: (seeds,) or (seeds, orders); orders are averaged first.
        level: of confidence, between 0 and 1.
    Raises:
        ValueError: fewer than two seeds, a wrong shape or level, a value that is not finite.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: between 0 and 1, as in 0.95")
    seeds = over_seeds(values)
    n = len(seeds)
    if n < 2:
        raise ValueError("1 seed: an interval over seeds needs at least 2")
    sd = float(seeds.std(ddof=1))
    return Interval(float(seeds.mean()), float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / n**0.5, sd, n)


def paired(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Difference:
    """a - b on the same seeds and orders: its Student-t interval and the two-sided p value of the t test.

    Raises:
        ValueError: for shapes that differ; and as `student_t`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired scores of shapes {first.shape}, {second.shape}: the same runs are needed")
    interval = student_t(first - second, level)
    if interval.sd == 0:  # the same difference on every seed
        return Difference(interval, 1.0 if interval.mean == 0 else 0.0)
    t = abs(interval.mean) * interval.n**0.5 / interval.sd
    return Difference(interval, float(2 * stats.t.sf(t, interval.n - 1)))


def holm(p: ArrayLike) -> Array:
    """Adjusted p: the running max over rising p of min(1, (m - rank) p), rank from 0 (Holm, 1979), (m,)."""
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"p={values.tolist()}: a list of probabilities is needed")
    order = values.argsort(kind="stable")
    steps = np.minimum(1, values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(steps) if len(values) else steps
    return adjusted


def binomial_error(score: float, n: int) -> float:
    """sqrt(p (1 - p) / n): the standard error that the size of the test set alone brings."""
    if n < 1 or not 0 <= score <= 1:
        raise ValueError(f"score={score!r} of n={n!r}: a share of at least one test sample is needed")
    return float((score * (1 - score) / n) ** 0.5)
