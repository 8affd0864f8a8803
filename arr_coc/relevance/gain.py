"""Gain: how far the model's own relevance is believed under a context, learned with everything else."""

import torch
from torch import Tensor, nn

MOST = 2.0  # the largest gain


class OwnGain(nn.Module):
    """g(c) = start + c' w, kept in [0, 2]: the weight of the model's own score in the log-precision.

    A model knows well what "red" asks for and nothing of "dax", but it scores both. Under labels or rewards g
    rises where its own score points at what brings the answer, and falls where it does not:

        Delta w = eta min(1, |delta|) rho key(c)

    rho (`own_correlation`) is d value / d g (at lambda = 0, inside the clamp) over both standard deviations,
    so the step has no unit. Where g is high there is little left to learn, and the step of U is multiplied
    by `openness` = (1 - g / 2)^2.

    Args:
        width: C, of a context.
        start: g of a context that nothing was learned for, in [0, 2].
    """

    state_names = ("weight",)

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.weight: Tensor
        self.register_buffer("weight", torch.zeros(width, dtype=torch.float64))

    def forward(self, context: Tensor) -> Tensor:
        """g(c), (B,), of contexts (B, C)."""
        return (self.start + context.to(self.weight) @ self.weight).clamp(0.0, MOST)

    def openness(self, context: Tensor) -> Tensor:
        """(1 - g / 2)^2, (B,): 1 where the model's own score says nothing, 0 where it is fully believed."""
        return (1 - self(context) / MOST) ** 2

    def move(self, context: Tensor, key: Tensor, step: Tensor) -> None:
        """Change g of these contexts (B, C) by `step` (B,), one after another, no further than [0, 2].

        Args:
            key: of each context, (B, C), with c' key = 1.
        """
        for c, k, s in zip(context.split(1), key.to(self.weight), step.to(self.weight), strict=True):
            unbounded = self.start + (c.to(self.weight) @ self.weight)
            self.weight += k * ((unbounded + s).clamp(0.0, MOST) - unbounded)

    def reset(self, context: Tensor, key: Tensor) -> None:
        """g(c) = start again for one context (1, C)."""
        self.weight -= key.to(self.weight)[0] * (context.to(self.weight) @ self.weight)


def own_correlation(relevance: Tensor, score: Tensor, own: Tensor) -> Tensor:
    """rho, (B,): the correlation of `score` and the model's own score over the tokens, each weighing r_n.

    Args:
        relevance: r, (B, N). score: `token_feedback`, (B, N). own: (B, N).
    """
    centred = own - (relevance * own).sum(1, keepdim=True)
    together = (relevance * score * centred).sum(1)
    alone = (relevance * score**2).sum(1) * (relevance * centred**2).sum(1)
    return together / alone.clamp_min(torch.finfo(alone.dtype).tiny).sqrt()
