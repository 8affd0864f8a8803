"""The global scalars that a rule multiplies in."""

import torch
from torch import Tensor


def reward_prediction_error(reward: Tensor, predicted: Tensor) -> Tensor:
    """delta = r - q_s: how much better the chosen answer was than it was thought to be, (B,)."""
    return reward - predicted


def surprise_gate(surprise: Tensor, mean: float, spread: float, sign: str) -> Tensor:
    """2 sigma(+-z) with z the standardised surprise, (B,) in (0, 2): 1 for the usual, by `sign` more or less
    for the odd.

    Precision rewards what is reliable, not what is surprising; so both signs exist ("boost", "damp") and
    "off" is 1.
    """
    if sign == "off":
        return torch.ones_like(surprise)
    z = (surprise - mean) / max(spread, 1e-6)
    return 2 * torch.sigmoid(z if sign == "boost" else -z)


def max_boltzmann(values: Tensor, explore: float, generator: torch.Generator) -> Tensor:
    """The best answer with probability 1 - explore, else a draw from softmax(values); (B, C) -> (B,)."""
    greedy = values.argmax(1)
    drawn = torch.multinomial(values.double().cpu().softmax(1), 1, generator=generator).squeeze(1)
    odd = torch.rand(len(values), generator=generator) < explore
    return torch.where(odd.to(greedy.device), drawn.to(greedy.device), greedy)
