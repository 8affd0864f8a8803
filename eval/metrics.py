"""What a continual learner is scored by: plain functions on a matrix of scores.

R[t][j] is the score on probe j (1..T) after experience t (1..T), and R[0][j] before any learning: an array of
T + 1 rows and T columns, where probe j is column j - 1. It is indexed by probe and step, never by the
experience that a training sample came from: that is what breaks such measures on online streams. What was not
scored is NaN or None, a cell or a whole row; a measure that reads such a cell raises `Unscored`.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Scores = Array | Sequence[Sequence[float | None] | Array | None]


class Unscored(ValueError):
    """A measure reads a cell that was never scored."""


def _matrix(scores: Scores, least: int = 1) -> Array:
    """R as (T + 1, T) float64, with at least `least` experiences."""
    if not isinstance(scores, np.ndarray):
        scores = [[np.nan] * (len(scores) - 1) if row is None else row for row in scores]
    matrix = np.asarray(scores, dtype=np.float64)  # None becomes NaN
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] + 1:
        raise ValueError(
            f"scores of shape {matrix.shape}: (T + 1, T) is needed, row 0 from before any learning"
        )
    if matrix.shape[1] < least:
        raise ValueError(f"{matrix.shape[1]} experience(s): this measure needs at least {least}")
    return matrix


def _mean(cells: ArrayLike) -> float:
    values = np.asarray(cells, dtype=np.float64)
    if not np.isfinite(values).all():
        raise Unscored("a cell that this measure reads was never scored (it is None, NaN or infinite)")
    return float(values.mean())


def _step(matrix: Array, step: int | None) -> int:
    last = matrix.shape[1]
    step = last if step is None else step
    if not 2 <= step <= last:
        raise ValueError(f"step={step}: forgetting exists after experience 2 to {last}")
    return step


# The whole matrix, and its last row


def final_accuracy(scores: Scores) -> float:
    """mean_j R[T][j]."""
    return _mean(_matrix(scores)[-1])


def average_incremental_accuracy(scores: Scores) -> float:
    """mean_t of mean_{j<=t} R[t][j]: probes count alike, whatever their size."""
    matrix = _matrix(scores)
    return _mean([_mean(matrix[t, :t]) for t in range(1, len(matrix))])


def learning_accuracy(scores: Scores) -> float:
    """mean_i R[i][i]: each probe right after its experience."""
    return _mean(np.diagonal(_matrix(scores)[1:]))


def mtil_average(scores: Scores) -> float:
    """Mean of rows 1..T over all probes, unseen ones included (Zheng et al., 2023)."""
    return _mean(_matrix(scores)[1:])


def balanced_accuracy(right: ArrayLike, count: ArrayLike) -> float:
    """mean_c right_c / count_c over the classes c that occur: the mean recall, a class counts as any other.

    Args:
        right: answers that are right by class, (C,).
        count: samples by class, (C,); a class without any is passed over.
    """
    hit, n = (np.asarray(x, dtype=np.float64) for x in (right, count))
    if hit.shape != n.shape or hit.ndim != 1 or not ((hit >= 0) & (hit <= n)).all() or not n.any():
        raise ValueError(
            f"{hit.tolist()} right of {n.tolist()}: as many counts, none above its own, are needed"
        )
    return _mean(hit[n > 0] / n[n > 0])


def expected_calibration_error(count: ArrayLike, confidence: ArrayLike, right: ArrayLike) -> float:
    """sum_b |sum of confidence - right answers| / n over bins b of confidence of equal width (Guo et al.,
    2017).

    Args:
        count: answers in each bin, (B,). confidence: their summed confidence, (B,). right: how many are
            right, (B,).
    """
    n, p, hit = _binned(count, confidence, right)
    return float(np.abs(p - hit).sum() / n.sum())


def chance_calibration_error(count: ArrayLike, confidence: ArrayLike) -> float:
    """sum_b E|X_b - n_b p_b| / n, X_b binomial (n_b, p_b): the expected calibration error that chance alone
    gives so many answers of a learner that is exactly as often right as it says.

    E|X - n p| = 2 (1 - p) (m + 1) P(X = m + 1), m the integer part of n p (de Moivre; Diaconis and Zabell,
    1991). That ECE has this bias, which falls with the answers in a bin, is from Roelofs et al. (2022).

    Args:
        count: answers in each bin, (B,). confidence: their summed confidence, (B,).
    """
    n, told, _ = _binned(count, confidence, np.zeros(np.shape(count)))
    n, told = n[n > 0], told[n > 0]
    p = np.minimum(told / n, 1.0)
    above = np.floor(n * p) + 1
    return float((2 * (1 - p) * above * stats.binom.pmf(above, n, p)).sum() / n.sum())


def _binned(count: ArrayLike, confidence: ArrayLike, right: ArrayLike) -> tuple[np.ndarray, ...]:
    """Raises:
    ValueError: for what answers in bins cannot come to."""
    n, p, hit = (np.asarray(x, dtype=np.float64) for x in (count, confidence, right))
    fits = n.shape == p.shape == hit.shape and n.ndim == 1
    if not fits or not n.any() or not ((p >= 0) & (p <= n + 1e-9) & (hit >= 0) & (hit <= n)).all():
        raise ValueError(
            f"{hit.tolist()} right of {n.tolist()} and a summed confidence of {p.tolist()}: as many of each, "
            "none above its count, are needed"
        )
    return n, p, hit


# Transfer


def bwt_gem(scores: Scores) -> float:
    """1/(T-1) sum_{i<T} (R[T][i] - R[i][i]): negative is forgetting (Lopez-Paz and Ranzato, 2017)."""
    after = _matrix(scores, least=2)[1:]
    return _mean((after[-1] - np.diagonal(after))[:-1])


def bwt_coin(scores: Scores) -> float:
    """1/T sum_{i<=T} (R[T][i] - R[i][i]): (T-1)/T of `bwt_gem`, the last task counting as 0 (CoIN, 2024).

    It is MFN, here `final_accuracy`, minus `learning_accuracy`. Their MAA is `average_incremental_accuracy`.
    """
    after = _matrix(scores, least=2)[1:]
    return _mean(after[-1] - np.diagonal(after))


def fwt_gem(scores: Scores) -> float:
    """1/(T-1) sum_{i>=2} (R[i-1][i] - R[0][i]): gained before being taught (Lopez-Paz and Ranzato, 2017).

    The baseline R[0] is never left out; it must have been scored.
    """
    matrix = _matrix(scores, least=2)
    return _mean([matrix[i, i] - matrix[0, i] for i in range(1, matrix.shape[1])])


def transfer_zscl(scores: Scores) -> float:
    """mean_{i>=2} of mean_{1<=j<i} R[j][i]: per probe first, then over probes (Zheng et al., 2023)."""
    after = _matrix(scores, least=2)[1:]
    return _mean([_mean(after[:i, i]) for i in range(1, len(after))])


def transfer_rowmean(scores: Scores) -> float:
    """mean_{j<T} of mean_{i>j} R[j][i]: per step first, which is another number than `transfer_zscl`."""
    after = _matrix(scores, least=2)[1:]
    return _mean([_mean(after[j, j + 1 :]) for j in range(len(after) - 1)])


# Forgetting: five definitions that are told apart by name


def forgetting_by_step(scores: Scores) -> Array:
    """F[i][j] = R[j][j] - R[i][j] for j < i, else 0: Avalanche's, per step, (T, T)."""
    after = _matrix(scores)[1:]
    return np.tril(np.diagonal(after)[None, :] - after, -1)  # (T, T)


def forgetting_first(scores: Scores, step: int | None = None) -> float:
    """mean_{j<k} (R[j][j] - R[k][j]) at step k, the last by default: equals -`bwt_gem` at the end."""
    matrix = _matrix(scores, least=2)
    step = _step(matrix, step)
    return _mean(forgetting_by_step(matrix)[step - 1, : step - 1])


def forgetting_max(scores: Scores, step: int | None = None) -> float:
    """1/(k-1) sum_{j<k} (max_{1<=l<k} R[l][j] - R[k][j]) (Chaudhry et al., 2018).

    May be negative; for a model with knowledge of its own it credits what was known before j was taught.
    """
    matrix = _matrix(scores, least=2)
    step = _step(matrix, step)
    return _mean(matrix[1:step, : step - 1].max(0) - matrix[step, : step - 1])


def forgetting_max_from_taught(scores: Scores, step: int | None = None) -> float:
    """1/(k-1) sum_{j<k} (max_{j<=l<k} R[l][j] - R[k][j]): nothing counts from before j was taught."""
    matrix = _matrix(scores, least=2)
    step = _step(matrix, step)
    return _mean([matrix[j + 1 : step, j].max() - matrix[step, j] for j in range(step - 1)])


def forgetting_max_incl_last(scores: Scores, step: int | None = None) -> float:
    """`forgetting_max` with row k inside the maximum too (Mammoth, PILOT): never negative."""
    matrix = _matrix(scores, least=2)
    step = _step(matrix, step)
    return _mean(matrix[1 : step + 1, : step - 1].max(0) - matrix[step, : step - 1])


def cumulative_forgetting(cumulative: Scores) -> float:
    """1/(T-1) sum_{k<T} (max_{k<=t<T} C[t][k] - C[T][k]) (Soutif-Cormerais et al., 2021).

    The fair one for a growing set of answers.

    Args:
        cumulative: C as (T + 1, T), see `cumulative_row`; cells with t < k are not read.
    """
    matrix = _matrix(cumulative, least=2)
    count = matrix.shape[1]
    return _mean([matrix[k + 1 : count, k].max() - matrix[count, k] for k in range(count - 1)])


def cumulative_row(
    values: ArrayLike, labels: ArrayLike, experience: ArrayLike, met: Sequence[Sequence[int]]
) -> Array:
    """C[t][k], k = 1..T: accuracy on the union of probes 1..k with answers restricted to those of 1..k.

    Args:
        values: what the learner at step t gives every answer for every probe sample, (n, A).
        labels: the right column of `values` for each sample, (n,).
        experience: which probe a sample belongs to, 0..T-1, (n,).
        met: for each k the columns that may be answers up to experience k, its probes' labels among them.
    Returns:
        (T,) scores.
    Raises:
        ValueError: for shapes that disagree, or a probe without samples.
    """
    scores = np.asarray(values, dtype=np.float64)
    right, turn = np.asarray(labels), np.asarray(experience)
    if scores.ndim != 2 or right.shape != scores.shape[:1] or turn.shape != right.shape:
        raise ValueError(
            f"values {scores.shape}, labels {right.shape}, experience {turn.shape}: "
            "(n, A), (n,), (n,) are needed"
        )
    row = np.empty(len(met))
    for k, allowed in enumerate(met):
        columns, mine = np.asarray(allowed), turn <= k
        if not (turn == k).any():
            raise ValueError(f"probe {k + 1} of {len(met)} has no samples")
        if not np.isin(right[mine], columns).all():
            raise ValueError(f"up to experience {k + 1} a label is not among the answers met")
        row[k] = (columns[scores[mine][:, columns].argmax(1)] == right[mine]).mean()
    return row


# Against other learners, and against the model before


def joint_gap(joint: float, final: float) -> float:
    """joint - final: what one pass costs against all data at once, with the same features and capacity."""
    return float(joint) - float(final)


def order_residual(reference: ArrayLike, *others: ArrayLike) -> float:
    """max |W' - W| / |W| (Frobenius) over other class orders; rows of the weights in the same class order.

    With the weights of one worker as the reference, and of n merged ones beside it, this is `merge_residual`.
    """
    first = np.asarray(reference, dtype=np.float64)
    weights = [np.asarray(o, dtype=np.float64) for o in others]
    if not weights or any(w.shape != first.shape for w in weights):
        raise ValueError(
            f"weights of shape {first.shape} beside {[w.shape for w in weights]}: all alike is needed"
        )
    size = float(np.linalg.norm(first))
    if size == 0:
        raise ValueError("the reference weights are all zero: nothing was learned")
    return max(float(np.linalg.norm(w - first)) for w in weights) / size


merge_residual = order_residual


def zero_shot_retention(before: float, after: float) -> float:
    """after / before on held-out classes, the candidates being the *union* of learned and held-out texts.

    Both scores take the same union: with held-out candidates alone the ratio is trivially 1.
    """
    if not before > 0:
        raise ValueError(f"before={before!r}: a model that knew nothing has nothing to retain")
    return float(after) / float(before)


def harmonic_mean(learned: float, held_out: float) -> float:
    """2 a b / (a + b) of the learned and the held-out score; 0 if one of them is."""
    if min(learned, held_out) < 0:
        raise ValueError(f"learned={learned!r}, held_out={held_out!r}: scores are not negative")
    return 2 * learned * held_out / (learned + held_out) if learned and held_out else 0.0


# Over evaluations every rho steps (De Lange et al., 2023)


def _evaluations(scores: ArrayLike, ended: Sequence[int]) -> Array:
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[1] != len(ended):
        raise ValueError(f"scores {matrix.shape} and {len(ended)} ends: (evaluations, T) and T are needed")
    if list(ended) != sorted(set(ended)) or ended[0] < 0 or ended[-1] != len(matrix) - 1:
        raise ValueError(f"ended={list(ended)}: rising rows of {len(matrix)}, the last one the last")
    return matrix


def average_anytime_accuracy(scores: ArrayLike, ended: Sequence[int]) -> float:
    """Mean over evaluations of the mean over the probes whose experience has begun.

    Args:
        scores: one row per evaluation, every rho steps, (N, T).
        ended: the row at which each experience ended, (T,); the last is N - 1.
    """
    matrix = _evaluations(scores, ended)
    begun = [1 + sum(end < row for end in ended[:-1]) for row in range(len(matrix))]
    return _mean([_mean(matrix[row, :count]) for row, count in enumerate(begun)])


def min_acc(scores: ArrayLike, ended: Sequence[int]) -> float:
    """1/(k-1) sum_{i<k} of the lowest score on probe i at evaluations after experience i ended."""
    matrix = _evaluations(scores, ended)
    if len(ended) < 2:
        raise ValueError("1 experience: min_acc needs at least 2")
    return _mean([matrix[end + 1 :, i].min() for i, end in enumerate(ended[:-1])])


def wc_acc(scores: ArrayLike, ended: Sequence[int]) -> float:
    """(1/k) current + (1 - 1/k) min_acc: what is known for sure at the end."""
    matrix = _evaluations(scores, ended)
    return _mean(matrix[-1, -1]) / len(ended) + (1 - 1 / len(ended)) * min_acc(scores, ended)


def forgetting_so_far(scores: ArrayLike) -> float:
    """mean_j (max_l E[l][j] - E[N][j]): how far each probe is below its best, the first evaluation included.

    Needs no ends of experiences; what was known before anything was learned counts as known.

    Args:
        scores: one row per evaluation, (N, T).
    """
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"scores {matrix.shape}: (evaluations, probes) is needed, at least one of each")
    return _mean(matrix.max(0) - matrix[-1])


_OF_ONE: list[Callable[[Scores], float]] = [
    final_accuracy,
    average_incremental_accuracy,
    learning_accuracy,
    mtil_average,
]
_OF_TWO: list[Callable[[Scores], float]] = [
    bwt_gem,
    bwt_coin,
    fwt_gem,
    transfer_zscl,
    transfer_rowmean,
    forgetting_first,
    forgetting_max,
    forgetting_max_from_taught,
    forgetting_max_incl_last,
]


def summary(scores: Scores) -> dict[str, float]:
    """Every measure of this module that reads R alone, by name; what needs unscored cells is left out."""
    matrix, found = _matrix(scores), dict[str, float]()
    for measure in [*_OF_ONE, *(_OF_TWO if matrix.shape[1] > 1 else [])]:
        with suppress(Unscored):
            found[measure.__name__] = measure(matrix)
    return found
