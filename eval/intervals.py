"""How sure a number is: Student-t over seeds, paired differences, Holm's correction, binomial error, and the
bootstrap over images.

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


@dataclass(frozen=True)
class Range:
    """mean, and the interval from low to high that resampling gives it; n units were resampled."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 above zero, -1 below, 0 where the interval holds it."""
        return int(self.low > 0) - int(self.high < 0)

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}] (n = {self.n})"


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    groups: ArrayLike | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Range:
    """mean(a - b) and its percentile interval over resampled images (Efron, 1979), a and b scored on the same
    ones.

    Args:
        a, b: (images,).
        groups: (images,), where images that share something (a Latin square of items) are drawn together.
        resamples: how many. level: of confidence. seed: of the draws.

    Raises:
        ValueError: for shapes that differ, fewer than two units, or a value that is not finite.
    """
    d = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if np.shape(a) != np.shape(b) or d.ndim != 1 or not np.isfinite(d).all():
        raise ValueError(
            f"scores of shapes {np.shape(a)}, {np.shape(b)}: the same images, finite, are needed"
        )
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"level={level!r}, resamples={resamples!r}: such as 0.95 and 2000")
    units = np.arange(len(d)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if units.shape != d.shape or len(np.unique(units)) < 2:
        raise ValueError(f"{len(np.unique(units))} units of {len(d)} images: a bootstrap needs at least 2")
    total, size = (np.bincount(units, weights=w) for w in (d, np.ones_like(d)))
    drawn = np.random.default_rng(seed).integers(0, len(total), (resamples, len(total)))
    means = total[drawn].sum(1) / size[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Range(float(d.mean()), float(low), float(high), len(total))
