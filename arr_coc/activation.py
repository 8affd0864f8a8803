"""What a rung makes of its pre-activation, and the slope that comes with it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Activation:
    """z = f(a) and f'(a), elementwise; `slope_at` is f' told from z, which costs no second f."""

    f: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    slope_at: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "relu": Activation(torch.relu, lambda a: (a > 0).to(a), lambda z: (z > 0).to(z)),
    "tanh": Activation(torch.tanh, lambda a: 1 - torch.tanh(a) ** 2, lambda z: 1 - z**2),
}
