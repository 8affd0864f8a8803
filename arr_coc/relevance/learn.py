"""Learn: the three-factor relevance update, and the key that keeps one context from overwriting another."""

import math

import torch
from torch import Tensor, nn

from arr_coc.relevance.spread import Grid, gather, on_grid


def token_feedback(
    relevance: Tensor,
    features: Tensor,
    feedback: Tensor,
    grid: Grid = None,
    radius: int = 0,
) -> Tensor:
    """(f_n - x)' u, (B, N): how much better than now the answer would be if only token n were relevant.

    d value / d gamma_n = r_n times it. Where relevance is spread before it pools (`spread`), f_n' u is the
    mean over the neighbours of n.

    Args:
        relevance: r as settled, before it is spread, (B, N).
        features: f, (B, N, F).
        feedback: u, the feedback that reaches x = sum_n r_n f_n, (B, F).
        grid: rows and columns of the tokens, for the spread; see `on_grid`.
        radius: of the spread.
    """
    score = torch.bmm(features, feedback.unsqueeze(-1)).squeeze(-1)  # f_n' u, (B, N)
    score = on_grid(gather, score, grid, radius)
    return score - (relevance * score).sum(1, keepdim=True)


def relevance_direction(relevance: Tensor, features: Tensor, score: Tensor) -> Tensor:
    """sum_n r_n s_n f_n / sqrt d, (B, F): what attention (r_n) and activity (f_n) give, s `token_feedback`.

    Times the context and the reward prediction error this is the gradient of the chosen value with respect to
    U, at lambda = 0 and inside the clamp: d gamma_n / d U = c f_n' / sqrt d.
    """
    return torch.bmm((relevance * score).unsqueeze(1), features).squeeze(1) / math.sqrt(features.shape[-1])


class ContextKey(nn.Module):
    """Q = (rho I + sum c c')^-1, and the key Q c / (c' Q c) of a context.

    Text contexts are correlated, and an update along c itself changes what every correlated context finds
    relevant. The key has c' key = 1 and is all but orthogonal to the contexts met before: a presynaptic
    precision. Repeating c leaves the direction of Q c as it is (Sherman-Morrison), so the key of a cue does
    not turn while it is learned.

    Args:
        width: C.
        ridge: rho.
    """

    state_names = ("inverse_correlation", "mean", "count", "met")
    _LIMIT = 1024  # texts that are told apart; a life with more of them learns those as variations

    def __init__(self, width: int, ridge: float = 1.0) -> None:
        super().__init__()
        self.ridge = ridge
        self.inverse_correlation: Tensor
        self.mean: Tensor
        self.count: Tensor
        self.register_buffer("inverse_correlation", torch.eye(width, dtype=torch.float64) / ridge)
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.met: Tensor  # (K, C), the texts met, unit length
        self.register_buffer("met", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def observe(self, context: Tensor) -> None:
        """Count contexts (B, C) in, one rank-one step each (B <= C rank-B step, the same to rounding)."""
        c = context.to(self.inverse_correlation)
        total = int(self.count) + len(c)
        self.mean += (c - self.mean).sum(0) / total
        self.count.fill_(total)
        q_c = self.inverse_correlation @ c.T  # (C, B)
        inner = torch.eye(len(c), dtype=c.dtype, device=c.device) + c @ q_c
        self.inverse_correlation -= q_c @ torch.linalg.solve(inner, q_c.T)
        self.inverse_correlation.copy_((self.inverse_correlation + self.inverse_correlation.T) / 2)

    def meet(self, context: Tensor) -> bool:
        """Whether this text, (C,) of unit length, is met for the first time (then it is remembered)."""
        c = context.to(self.met)
        if len(self.met) >= self._LIMIT or bool((self.met @ c > 1 - 1e-5).any()):
            return False
        self.met = torch.cat([self.met, c.unsqueeze(0)])
        return True

    def key(self, context: Tensor) -> Tensor:
        """Q c / (c' Q c), (B, C), in float64; a context of length 0 has the key 0."""
        c = context.to(self.inverse_correlation)
        q_c = c @ self.inverse_correlation
        return q_c / (c * q_c).sum(1, keepdim=True).clamp_min(torch.finfo(q_c.dtype).tiny)

    def merge(self, other: "ContextKey") -> None:
        """Count in what another one has counted: sums of c c' add, and Q is the inverse of their sum.

        A text that both have met was counted once more by each (`meet`), and is taken out again once.

        Raises:
            ValueError: if the prior differs.
        """
        if self.ridge != other.ridge:
            raise ValueError(f"cannot merge ridge {other.ridge} into ridge {self.ridge}")
        twice = [c for c in other.met if not self.meet(c) and bool((self.met @ c > 1 - 1e-5).any())]
        out = torch.stack(twice) if twice else self.met[:0]
        eye = torch.eye(len(self.mean), dtype=torch.float64, device=self.mean.device)
        both = torch.linalg.inv(self.inverse_correlation) + torch.linalg.inv(other.inverse_correlation)
        self.inverse_correlation.copy_(torch.linalg.inv(both - self.ridge * eye - out.T @ out))
        total = self.mean * self.count + other.mean * other.count - out.sum(0)
        self.count += int(other.count) - len(out)
        self.mean.copy_(total / max(int(self.count), 1))
