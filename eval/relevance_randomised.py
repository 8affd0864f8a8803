"""Randomisation: a map that explains a model must change when every weight of it is drawn anew.

eMPRT = (H(r^) - H(r)) / H(r), H the discrete entropy of a map's values and r^ the map of the model after all
its weights were drawn anew (efficient model parameter randomisation test, Hedström et al., 2024): positive
where what the model knew had made the map simpler. `spatial_entropy` is the other reading, how widely a map
is spread over the tokens; each says its name beside its number.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

Array = NDArray[np.float64]
BINS = 100


def discrete_entropy(relevance: ArrayLike, bins: int = BINS) -> float:
    """-sum_b p_b log2 p_b over equal-width bins of the map's values, in bits; 0 for a constant map."""
    r = _finite(relevance)
    if bins < 2:
        raise ValueError(f"bins={bins}: two or more are needed")
    span = float(r.max() - r.min())
    if span == 0:
        return 0.0
    counts = np.bincount(np.minimum((bins * ((r - r.min()) / span)).astype(int), bins - 1), minlength=bins)
    return _bits(counts / counts.sum())


def spatial_entropy(relevance: ArrayLike) -> float:
    """-sum_n p_n log2 p_n with p = r+ / sum(r+), in bits: log2 n for an even map, 0 for a single token; a map
    without positive mass counts as even."""
    r = np.maximum(_finite(relevance), 0)
    return float(np.log2(r.size)) if r.max() == 0 else _bits((r / r.max()) / (r / r.max()).sum())


@dataclass(frozen=True)
class Rise:
    """Over maps of one model and its randomised twins.

    Args:
        before, after: mean entropy, bits. rise: mean of (after - before) / before over the pairs that have an
            entropy to rise from.
        undefined: pairs whose map had entropy 0, left out of `rise`.
    """

    before: float
    after: float
    rise: float
    undefined: int


def entropy_rise(
    before: Sequence[ArrayLike],
    after: Sequence[ArrayLike],
    entropy: Callable[[ArrayLike], float] = discrete_entropy,
) -> Rise:
    """eMPRT of maps (N, ...) and of the same images' maps once the weights were drawn anew, (N, ...).

    Raises:
        ValueError: for other numbers of maps, none, or where no map has any entropy to begin with.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"{len(before)} maps before and {len(after)} after: as many of each, one or more")
    h = np.array([[entropy(a), entropy(b)] for a, b in zip(before, after, strict=True)])
    known = h[:, 0] > 0
    if not known.any():
        raise ValueError("every map is constant or a single value: there is no entropy to rise from")
    rise = float(((h[known, 1] - h[known, 0]) / h[known, 0]).mean())
    return Rise(float(h[:, 0].mean()), float(h[:, 1].mean()), rise, int((~known).sum()))


@contextmanager
def redrawn(model: Any, seed: int, parts: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Inside, every floating-point weight is another one; then the old ones come back, bit for bit.

    A module that can draw its own weights (`reset_parameters`) does; of the others, a weight w is drawn from
    N(mean(w), var(w)), one value from N(w, 1).

    Args:
        parts: draw these modules' weights only; the whole model's by default.
    """
    roots = list(parts) or [model]
    saved = {id(p): (p, p.detach().clone()) for root in roots for p in (*root.parameters(), *root.buffers())}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            done: set[int] = set()
            for root in roots:
                for module in root.modules():
                    own = [p for p in module.parameters(recurse=False) if id(p) not in done]
                    if own and callable(getattr(module, "reset_parameters", None)):
                        module.reset_parameters()  # type: ignore[operator]
                    elif own:
                        for p in own:
                            spread = float(p.float().std()) if p.numel() > 1 else 1.0
                            centre = float(p.float().mean())
                            p.copy_(torch.randn_like(p, dtype=torch.float32) * spread + centre)
                    done.update(id(p) for p in own)
        yield
    finally:
        with torch.no_grad():
            for old, before in saved.values():
                old.copy_(before)


def _finite(relevance: ArrayLike) -> Array:
    r = np.asarray(relevance, dtype=np.float64).ravel()
    if r.size == 0 or not np.isfinite(r).all():
        raise ValueError(
            f"relevance of shape {np.shape(relevance)}: finite values of one token or more are needed"
        )
    return r


def _bits(p: Array) -> float:
    p = p[p > 0]
    return float(max(-(p * np.log2(p)).sum(), 0.0))
