"""Score: attention x context x features, in the log domain."""

import math

import torch
from torch import Tensor

SMALLEST = 1e-12  # attention weights below this count as this: log 0 has no place in a score


def log_precision(
    attention: Tensor,
    context: Tensor,
    features: Tensor,
    weight: Tensor,
    own: Tensor | None = None,
    mask: Tensor | None = None,
    further: Tensor | None = None,
    *,
    attention_gain: float = 1.0,
    own_gain: Tensor | float = 1.0,
    clamp: float = 20.0,
) -> Tensor:
    """gamma_n = g_a log a_n + g_o own_n + c' U f_n / sqrt d + further_n, less its mean over tokens, clamped.

    If token j sends the error e_j = v_j - z with precision exp(q.k_j / sqrt d), then z + sum_j Pi_j e_j
    settles at the softmax attention output: attention is a precision, and log a_n is where a log-precision
    starts.

    Args:
        attention: a, (B, N), not negative.
        context: c, (B, C).
        features: f, (B, N, F).
        weight: U, (C, F).
        own: the model's own score of the tokens for the context, (B, N).
        own_gain: g_o, one number or one per sample, (B,).
        mask: which tokens exist, (B, N) bool; the others get -inf.
        further: what was predicted and what time has associated (`in_time`), (B, N).

    Returns:
        gamma, (B, N): mean 0 over the tokens that exist (before clamping), -inf elsewhere.

    Raises:
        ValueError: if a sample has no token.
    """
    gamma = attention_gain * attention.clamp_min(SMALLEST).log()
    if own is not None:
        gamma = gamma + (own_gain.to(own).unsqueeze(1) if isinstance(own_gain, Tensor) else own_gain) * own
    query = context @ weight / math.sqrt(features.shape[-1])  # (B, F)
    gamma = gamma + torch.bmm(features, query.unsqueeze(-1)).squeeze(-1)  # (B, N)
    if further is not None:
        gamma = gamma + further
    if mask is None:
        return (gamma - gamma.mean(1, keepdim=True)).clamp(-clamp, clamp)
    count = mask.sum(1, keepdim=True)
    if (count == 0).any():
        raise ValueError("a sample has no visual token left after masking")
    mean = gamma.masked_fill(~mask, 0.0).sum(1, keepdim=True) / count
    return (gamma - mean).clamp(-clamp, clamp).masked_fill(~mask, -torch.inf)
