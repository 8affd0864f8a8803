"""Query contrast: whether a map follows the question, whatever else it likes about the image.

With M[q, c] the mass accuracy of the map for question q in the truth of question c, of one image and disjoint
truths, C(A, B) = ([M[A, A] - M[B, A]] + [M[B, B] - M[A, B]]) / 2. A map that ignores the question has C = 0
exactly, and swap accuracy 1/2: any prior, of the centre, of contrast or of size, is subtracted with it.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arr_coc.eval.relevance_metrics import EmptyTruth

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Over pairs of questions on one image.

    Args:
        contrast: mean C, 1 at best, 0 for a map that ignores the question.
        swap_accuracy: share of pairs whose maps fit their own truths better than each other's, ties one half.
        pairs: how many.
    """

    contrast: float
    swap_accuracy: float
    pairs: int


def mass_matrix(maps: ArrayLike, truths: ArrayLike) -> Array:
    """M[q, c] = `relevance_metrics.mass_accuracy` of map q in truth c, (Q, C), of all pairs at once.

    Args:
        maps: (Q, ...). truths: (C, ...) of the same tokens.

    Raises:
        ValueError: for maps that are not finite, or other tokens. EmptyTruth: for a truth without a token.
    """
    r, g = (np.asarray(a, dtype=np.float64) for a in (maps, truths))
    if r.ndim < 2 or r.shape[1:] != g.shape[1:] or not np.isfinite(r).all():
        raise ValueError(f"maps {r.shape} and truths {g.shape}: finite maps and truths of the same tokens")
    r, g = r.reshape(len(r), -1), g.reshape(len(g), -1)
    if not (g >= 0.5).any(1).all():
        raise EmptyTruth("no token lies at least half inside one of the truths")
    r = np.maximum(r, 0)
    r[r.max(1) == 0] = 1  # without positive mass a map scores chance
    r /= r.max(1, keepdims=True)
    # row by row and no matrix product: equal maps must have equal masses to the last bit
    return np.asarray((r[:, None] * g).sum(2) / r.sum(1)[:, None])


def of_pairs(masses: ArrayLike) -> Contrast:
    """C and swap accuracy over every pair of an image's questions, of M (Q, Q).

    Raises:
        ValueError: for fewer than two questions, or a matrix that is not square.
    """
    m = np.asarray(masses, dtype=np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or len(m) < 2:
        raise ValueError(f"masses of shape {m.shape}: a square matrix of two or more questions is needed")
    # each truth's mass is compared with itself, so that maps which are equal differ by exactly nothing
    each = [((m[a, a] - m[b, a]) + (m[b, b] - m[a, b])) / 2 for a, b in combinations(range(len(m)), 2)]
    c = np.array(each)
    return Contrast(float(c.mean()), float(((c > 0) + 0.5 * (c == 0)).mean()), len(c))


def query_contrast(maps: ArrayLike, truths: ArrayLike) -> Contrast:
    """C over every pair of questions on one image.

    Args:
        maps: (Q, ...), one a question. truths: likewise, disjoint.

    Raises:
        ValueError: for truths that overlap, and as `mass_accuracy`.
    """
    asked, held = (np.asarray(a, dtype=np.float64) for a in (maps, truths))
    if asked.shape != held.shape:
        raise ValueError(f"maps {asked.shape} and truths {held.shape}: one of each a question is needed")
    if ((held > 0).sum(0) > 1).any():
        raise ValueError("two truths share a token: contrast needs disjoint ones")
    return of_pairs(mass_matrix(asked, held))
