"""MeZO: zeroth-order optimisation, two forward passes and no way down at all.

g = (loss(theta + eps z) - loss(theta - eps z)) / (2 eps) with z ~ N(0, I) from a seed, Delta theta = -g z,
the mean over `samples` directions. E[g z] is the gradient as eps goes to 0, but cos(g z, gradient) is only
about sqrt(n / (n + P + 1)) for n directions and P weights: many steps, none dearer than an answer. z is drawn
again from its seed and never stored. Needs one number, g, that every weight hears, and two phases. Use it
where nothing but answers can be had, as for weights inside a backbone (`zeroth_order_step`), and as the
honest rival without a backward pass. Source: Spall (1992), SPSA; Malladi et al. (2023), MeZO.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates


class MeZO(Rule):
    """See the module's docstring.

    Args:
        loss: "squared", 1/2 |t - v|^2, or "cross_entropy" of softmax(scale v).
        scale: inverse temperature under cross-entropy.
        eps: length of the two probes along z.
        samples: directions averaged in a step.
    """

    def __init__(
        self,
        loss: str = "squared",
        scale: float = 1.0,
        eps: float = 1e-3,
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if loss not in ("squared", "cross_entropy"):
            raise ValueError(f"loss={loss!r}: possible are 'squared', 'cross_entropy'")
        if not (0 < eps < math.inf and 0 < scale < math.inf):
            raise ValueError(f"eps={eps!r}, scale={scale!r}: finite numbers above 0 are needed")
        if samples < 1:
            raise ValueError(f"samples={samples!r}: a whole number of at least 1 is needed")
        self.loss, self.scale, self.eps, self.samples = loss, scale, eps, samples

    @property
    def ledger(self) -> Ledger:
        return Ledger(two_phases=True, global_scalar=True, update_locking=True)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        if teaching.forward is None:
            raise ValueError(
                "mezo needs the ladder as a function of its weights; with reward alone there is none"
            )
        names = {**ladder.weights(), "relevance": teaching.relevance, "readout": teaching.readout}
        plain = {n: t.to(ladder.weight(0).dtype) for n, t in names.items()}
        total = {n: torch.zeros_like(t) for n, t in plain.items()}
        for sample in range(self.samples):
            z = {n: self._direction(n, t, teaching.step, sample) for n, t in plain.items()}
            losses = [
                self._loss(teaching, {n: t + sign * self.eps * z[n] for n, t in plain.items()})
                for sign in (1.0, -1.0)
            ]
            g = (losses[0] - losses[1]) / (2 * self.eps)
            for n in total:
                total[n] -= (g / self.samples).to(total[n]) * z[n]
        readout, relevance = total.pop("readout"), total.pop("relevance")
        return Updates(total, readout, relevance=relevance)

    def _direction(self, name: str, like: Tensor, step: int, sample: int) -> Tensor:
        drawn = torch.randn(like.shape, generator=self.draw("z", name, step, sample), dtype=like.dtype)
        return drawn.to(like.device)

    def _loss(self, teaching: Teaching, copies: dict[str, Tensor]) -> Tensor:
        assert teaching.forward is not None
        values = teaching.forward(copies).double()
        target = teaching.target.to(values)
        if teaching.rivals is not None:
            values, target = values[:, teaching.rivals], target[:, teaching.rivals]
        if self.loss == "squared":
            return 0.5 * (target - values).square().sum(1).mean()
        return -(target * (self.scale * values).log_softmax(1)).sum(1).mean()


@torch.no_grad()
def zeroth_order_step(
    parameters: Iterable[Tensor],
    loss: Callable[[], float | Tensor],
    eps: float = 1e-3,
    rate: float = 1e-6,
    seed: int = 0,
    exact: bool = True,
) -> float:
    """One MeZO step on any chosen tensors of a model, in place: theta -= rate g z.

    Args:
        parameters: floating-point tensors, changed in place; z is drawn in their order.
        loss: of the model as it stands; called twice.
        seed: of z; another one for every step.
        exact: keep a copy of the tensors while they are probed, so that they come back bit for bit. Without
            it z is drawn again and taken off: no memory, and an error of the last bits.

    Returns:
        g.

    Raises:
        ValueError: for no parameters, some that are not floating point, or numbers that cannot be.
        FloatingPointError: for a loss that is not finite; the tensors are then as they were before, as after
            any error that `loss` raises.
    """
    tensors = list(parameters)
    if not tensors or not all(t.is_floating_point() for t in tensors):
        raise ValueError(f"{len(tensors)} parameters were given; at least one is needed, floating point all")
    if not (0 < eps < math.inf and 0 <= rate < math.inf):
        raise ValueError(f"eps={eps!r} has to be above 0 and rate={rate!r} at least 0")
    kept = [t.clone() for t in tensors] if exact else []

    def move(by: float) -> None:
        draw = torch.Generator().manual_seed(seed)
        for t in tensors:
            z = torch.randn(t.shape, generator=draw, dtype=torch.float32).to(t.device)
            t.copy_(t.float() + by * z if t.dtype != torch.float64 else t + by * z.double())

    def back(by: float) -> None:
        if not exact:
            move(by)
        for t, before in zip(tensors, kept, strict=False):
            t.copy_(before)

    move(eps)
    away, losses = -eps, []
    try:
        losses.append(float(loss()))
        back(-eps)
        move(-eps)
        away = eps
        losses.append(float(loss()))
    finally:
        back(away)
    if not all(map(math.isfinite, losses)):
        raise FloatingPointError(f"the losses at theta +- eps z are {losses}; nothing was changed")
    g = (losses[0] - losses[1]) / (2 * eps)
    if rate:
        move(-rate * g)
    return g
