"""Temporal: which feature of a frame announces that what is asked for will be found, learned from time alone.

    s > 0 after the feature:   + A_plus  exp(-s / tau_plus)
    s > 0 before it:           - A_minus exp(-s / tau_minus)

for every pair of a feature (pre) and a match (post), s apart; at the same time they make no pair. Two traces
hold all that is needed of the past, x <- x exp(-dt / tau_plus) + pre and y <- y exp(-dt / tau_minus) + post:

    Delta S = A_plus post x' - A_minus y pre'

summed over time is the sum over all pairs. With equal sides (the default) a feature that is always there, or
comes at any time, is associated with nothing.
Source: Bi & Poo (1998); Song, Miller & Abbott (2000); Morrison, Diesmann & Gerstner (2008) for the traces.
"""

import math

import torch
from torch import Tensor, nn


class TemporalAssociation(nn.Module):
    """S, (C, F) in float64: what is learned of contexts and the features of the frames before and after them.

    A token announces c' (S / t) Q f_n nats of a match, t the frames met, f_n its features less the mean of
    the frame, and Q = (rho v I + E[f f'])^-1 their inverse second moment (a presynaptic precision, v its mean
    variance): what looks like everything else says little.

    pre is the mean of f_n, each weighing |f_n|^2: what stands out in the frame. post is the key of the
    context times the match, sum_n r_n gamma_n, how many nats what is relevant stands above the mean of the
    frame, less its mean over time.

    Args:
        context_width: C. feature_width: F.
        tau: of both sides, in frames. penalty: A_minus, where A_plus is 1. ridge: rho.
    """

    state_names = ("association", "feature_trace", "match_trace", "second_moment", "matches", "count")

    def __init__(
        self,
        context_width: int,
        feature_width: int,
        tau: float = 3.0,
        penalty: float = 1.0,
        ridge: float = 0.1,
    ) -> None:
        super().__init__()
        self.tau_plus = self.tau_minus = tau
        self.a_plus, self.a_minus, self.ridge = 1.0, penalty, ridge
        self.association: Tensor
        self.feature_trace: Tensor  # x, (F,)
        self.match_trace: Tensor  # y, (C,)
        self.second_moment: Tensor  # sum of f f', a mean over the tokens of each frame, (F, F)
        self.matches: Tensor  # their sum and number, (2,)
        self.count: Tensor  # t
        wide = torch.float64
        self.register_buffer("association", torch.zeros(context_width, feature_width, dtype=wide))
        self.register_buffer("feature_trace", torch.zeros(feature_width, dtype=wide))
        self.register_buffer("match_trace", torch.zeros(context_width, dtype=wide))
        self.register_buffer("second_moment", torch.zeros(feature_width, feature_width, dtype=wide))
        self.register_buffer("matches", torch.zeros(2, dtype=wide))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def pair(self, pre: Tensor, post: Tensor, dt: float = 1.0) -> None:
        """Time goes on by dt, then these spike: pre (F,) and post (C,), of any size and sign."""
        pre, post = pre.to(self.association), post.to(self.association)
        self.feature_trace *= math.exp(-dt / self.tau_plus)
        self.match_trace *= math.exp(-dt / self.tau_minus)
        self.association += self.a_plus * torch.outer(post, self.feature_trace)
        self.association -= self.a_minus * torch.outer(self.match_trace, pre)
        self.feature_trace += pre
        self.match_trace += post

    def observe(self, features: Tensor, match: float, key: Tensor | None, mask: Tensor | None = None) -> None:
        """A frame has come.

        Args:
            features: (N, F).
            match: how well what was asked for was found.
            key: of what was asked, (C,); None where nothing was: no match, but the features leave a trace.
        """
        f = apart(features.to(self.association), mask)
        size = (f**2).sum(1)
        standing_out = (size / size.sum().clamp_min(torch.finfo(size.dtype).tiny)) @ f
        tokens = len(f) if mask is None else int(mask.sum())
        self.second_moment += f.T @ f / tokens
        self.count += 1
        post = torch.zeros_like(self.match_trace)
        if key is not None:
            total, met = self.matches.tolist()
            post = key.to(post) * (match - total / met if met else 0.0)
            self.matches += self.matches.new_tensor([match, 1.0])
        self.pair(standing_out, post)

    def announced(self, context: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Nats of a match that each token announces for a context (C,), (N,), of features (N, F)."""
        f = apart(features.to(self.association), mask)
        if not int(self.count):
            return f.new_zeros(len(f))
        moment = self.second_moment / self.count
        prior = self.ridge * moment.diagonal().mean().clamp_min(torch.finfo(moment.dtype).tiny)
        inverse = torch.linalg.cholesky(moment + prior * torch.eye(len(moment)).to(moment))
        learned = (context.to(f) @ self.association / self.count).unsqueeze(1)
        return f @ torch.cholesky_solve(learned, inverse).squeeze(1)


def apart(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Features less their mean over the tokens that exist, (N, F); 0 for the others."""
    if mask is None:
        return features - features.mean(0)
    there = mask.unsqueeze(1).to(features)
    return (features - (features * there).sum(0) / there.sum()) * there


def match(relevance: Tensor, gamma: Tensor) -> Tensor:
    """sum_n r_n gamma_n, (B,), in nats; gamma is -inf where no token is."""
    return (relevance * torch.where(relevance > 0, gamma, 0.0)).sum(1)
