"""Small ladders in float64 for the tests of learning rules, and their gradients by autograd."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules import Teaching


@dataclass
class Net:
    """A ladder, one climb, and the squared error -1/2 |t - v|^2 to teach with."""

    ladder: Ladder
    drive: Tensor  # (B, L * width)
    below: Tensor  # z_0, (B, C)
    readout: Tensor  # R, (classes, D)
    target: Tensor  # (B, classes)

    @property
    def climb(self) -> Climb:
        return self.ladder.climb(self.drive, self.below, None)

    @property
    def values(self) -> Tensor:
        return self.climb.phi @ self.readout.T

    def teaching(self, **changes) -> Teaching:
        """Squared error; `changes` replace fields of it."""

        def forward(copies: dict[str, Tensor]) -> Tensor:
            return self.ladder.climb(self.drive, self.below, None, copies).phi @ copies["readout"].T

        values = self.values
        whole = Teaching(
            self.target - values,
            self.target,
            self.readout,
            values,
            torch.zeros(1, 1, dtype=torch.float64),
            forward,
            error_of=lambda v: self.target - v,
        )
        return replace(whole, **changes)


def make(
    depth: int = 3,
    width: int = 6,
    below: int = 5,
    classes: int = 4,
    batch: int = 7,
    reads: str = "top",
    activation: str = "tanh",
    gain: float = 1.0,
    drives: bool = True,
    seed: int = 0,
) -> Net:
    """A random net, float64; `gain` is that of W and R (standard deviation gain / sqrt(fan-in))."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    ladder = Ladder([width] * depth, below, 0, width, 5, seed, reads, activation, gain).double()
    for level in range(depth):
        ladder.get_buffer(f"bias_{level}").copy_(0.1 * random(width))
    drive = random(batch, depth * width) * (0.5 if drives else 0.0)
    readout = random(classes, ladder.phi_width) * (gain / ladder.phi_width**0.5)
    target = torch.eye(classes, dtype=torch.float64)[torch.randint(classes, (batch,), generator=draw)]
    return Net(ladder, drive, random(batch, below), readout, target)


def gradients(net: Net) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Ascent directions by automatic differentiation of -1/2 |t - v|^2: of W and b (batch mean), of R (batch
    mean), and of the drives (per sample, (B, L * width))."""
    with torch.enable_grad():
        copies = {n: t.clone().requires_grad_() for n, t in net.ladder.weights().items()}
        readout, drive = net.readout.clone().requires_grad_(), net.drive.clone().requires_grad_()
        values = net.ladder.climb(drive, net.below, None, copies).phi @ readout.T
        objective = -0.5 * (net.target - values).square().sum(1).mean()
        to = [*copies.values(), readout, drive]
        found = torch.autograd.grad(objective, to, materialize_grads=True)  # 0 of what is not read
    return dict(zip(copies, found[:-2], strict=True)), found[-2], found[-1] * len(net.drive)


def cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))
