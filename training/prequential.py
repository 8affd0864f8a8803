"""Prequential figures: every sample is a test before it is a lesson."""

import math

import torch
from torch import Tensor

_NAMES = ("loss", "accuracy", "surprise")


def log_loss(scores: Tensor, right: Tensor) -> Tensor:
    """-log max(p, eps) of the right candidate, (B,), p = softmax(scores), eps that of float32.

    A candidate that was held impossible costs 15.9 and not the whole mean, as in scikit-learn's log_loss.

    Args:
        scores: over the candidates, (B, K). right: the right one's column, (B,).
    """
    each = torch.nn.functional.cross_entropy(scores.double(), right, reduction="none")
    return each.clamp_max(-math.log(torch.finfo(torch.float32).eps))


class Prequential:
    """Sums over samples of what was answered before each was learned: log loss, hits, surprise."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(_NAMES) + 1, dtype=torch.float64)

    def add(self, scores: Tensor, right: Tensor, surprise: Tensor) -> Tensor:
        """Count samples in; returns their mean log loss.

        Args:
            scores: over the candidates, (B, K). right: the right one's column, (B,). surprise: (B,).
        """
        each = log_loss(scores, right)
        hits = scores.argmax(1) == right
        sums = (torch.ones_like(each), each, hits, surprise)
        self.sums += torch.stack([s.double().sum().cpu() for s in sums])
        return each.mean()

    def take(self) -> Tensor:
        """The sums since the last time, (count, loss, accuracy, surprise)."""
        sums, self.sums = self.sums, torch.zeros_like(self.sums)
        return sums


def means(sums: Tensor, prefix: str = "") -> dict[str, float]:
    """The figures by name; none where nothing was counted."""
    count, *rest = sums.tolist()
    return {prefix + n: value / count for n, value in zip(_NAMES, rest, strict=True)} if count else {}
