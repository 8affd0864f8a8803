"""Settle: relevance as the equilibrium of a log-precision and lateral support between similar tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Settled:
    """A settled relevance, how long it took and how still it stands.

    Args:
        relevance: r, (B, N), rows sum to 1.
        iterations: steps of the fixed-point map (0 for the closed form).
        residual: max |r' - r| of the last step.
    """

    relevance: Tensor
    iterations: int
    residual: float


def similarity(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """S = F F' / max_n sum_m |F F'|_nm of unit-length features: positive semi-definite, norm at most 1; (B,
    N, N)."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    if mask is not None:
        unit = unit * mask.unsqueeze(-1)
    gram = unit @ unit.mT
    return gram / gram.abs().sum(-1).amax(-1)[:, None, None].clamp_min(1e-12)


def energy(relevance: Tensor, gamma: Tensor, support: Tensor, lateral: float) -> Tensor:
    """sum r log r - gamma' r - lambda/2 r' S r, (B,). With S positive semi-definite, `settle` never raises
    it."""
    held = torch.where(relevance > 0, gamma, 0.0)  # 0 * -inf is 0 here: a masked token carries no energy
    entropy = torch.special.xlogy(relevance, relevance).sum(1)
    quadratic = torch.einsum("bn,bnm,bm->b", relevance, support, relevance)
    return entropy - (held * relevance).sum(1) - 0.5 * lateral * quadratic


def settle(
    gamma: Tensor,
    features: Tensor,
    lateral: float = 0.0,
    mask: Tensor | None = None,
    *,
    tolerance: float = 1e-6,
    steps: int = 200,
) -> Settled:
    """r <- softmax(gamma + lambda S r) until |r' - r| < tolerance.

    The softmax's Jacobian has norm at most 1/2 and S at most 1, so the map contracts by lambda/2 < 1 on every
    image.

    Args:
        gamma: log-precision, (B, N), -inf where no token is.
        features: the tokens that support each other, (B, N, F).
        lateral: lambda in [0, 2). With 0 the closed form, one softmax, is returned.
    """
    relevance = gamma.softmax(1)
    if lateral == 0:
        return Settled(relevance, 0, 0.0)
    support = similarity(features, mask)
    residual = torch.full_like(relevance[:, 0], torch.inf)
    step = 0
    while step < steps:
        step += 1
        moved = (gamma + lateral * (support @ relevance.unsqueeze(-1)).squeeze(-1)).softmax(1)
        # each sample stands where it stood still, however long its neighbours in the batch go on
        moved = torch.where((residual < tolerance).unsqueeze(1), relevance, moved)
        change = (moved - relevance).abs().amax(1)
        residual = torch.where(residual < tolerance, residual, change)
        relevance = moved
        if bool((residual < tolerance).all()):
            break
    return Settled(relevance, step, float(residual.max()))


def concentration(relevance: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - H(r) / log N, (B,), of r (B, N): 0 for an even spread, 1 for a single token. N is the number of
    tokens that exist, where a mask (B, N) says which do."""
    entropy = -torch.special.xlogy(relevance, relevance).sum(1)
    if mask is None:
        return 1 - entropy / torch.log(torch.tensor(float(relevance.shape[1])))
    return 1 - entropy / mask.sum(1).to(entropy).log().clamp_min(torch.finfo(entropy.dtype).tiny)
