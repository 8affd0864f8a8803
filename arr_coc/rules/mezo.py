"""MeZO: zeroth-order optimisation, two forward passes and no way down at all.

g = (loss(theta + eps z) - loss(theta - eps z)) / (2 eps) with z ~ N(0, I) from a seed, Delta theta = -g z,
the mean over `samples` directions. E[g z] is the gradient as eps goes to 0, but cos(g z, gradient) is only
about sqrt(n / (n + P + 1)) for n directions and P weights: many steps, each of two answers. z can be drawn
again from its seed. Needs one number, g, that every weight hears, and two phases. Use it where nothing but
answers can be had, as for weights inside a backbone (`zeroth_order_step`), and as the honest rival without a
backward pass. Source: Spall (1992), SPSA; Malladi et al. (2023), MeZO.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates

Group = Sequence[tuple[str | int, Tensor]]


class MeZO(Rule):
    """See the module's docstring.

    Args:
        loss: "squared", 1/2 |t - v|^2, or "cross_entropy" of softmax(scale v).
        scale: s, the inverse temperature under cross-entropy.
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
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples={samples!r}: a whole number of at least 1 is needed")
        self.loss, self.scale, self.eps, self.samples = loss, scale, eps, samples

    @property
    def ledger(self) -> Ledger:
        return Ledger(two_phases=True, global_scalar=True, update_locking=True)

    @torch.no_grad()
    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        if teaching.forward is None:
            raise ValueError(
                "mezo needs the ladder as a function of its weights; with reward alone there is none"
            )
        names = {**ladder.weights(), "relevance": teaching.relevance, "readout": teaching.readout}
        plain = {n: t.to(ladder.weight(0).dtype) for n, t in names.items()}
        total = {n: torch.zeros_like(t) for n, t in plain.items()}
        for sample in range(self.samples):
            z = {n: _direction(self.draw("z", n, teaching.step, sample), t) for n, t in plain.items()}
            up, down = (
                self._loss(teaching.forward({n: t + by * z[n] for n, t in plain.items()}), teaching)
                for by in (self.eps, -self.eps)
            )
            g = (up - down) / (2 * self.eps)
            for n in total:
                total[n] -= (g / self.samples).to(total[n]) * z[n]
        readout, relevance = total.pop("readout"), total.pop("relevance")
        return Updates(total, readout, relevance=relevance)

    def _loss(self, values: Tensor, teaching: Teaching) -> Tensor:
        values = values.double()  # the two losses differ little
        target = teaching.target.to(values)
        if teaching.rivals is not None:
            values, target = values[:, teaching.rivals], target[:, teaching.rivals]
        if self.loss == "squared":
            return 0.5 * (target - values).square().sum(1).mean()
        return -(target * (self.scale * values).log_softmax(1)).sum(1).mean()


def _direction(draw: torch.Generator, like: Tensor) -> Tensor:
    """z ~ N(0, 1) of the shape of `like`, in its precision and at least float32."""
    kind = torch.promote_types(like.dtype, torch.float32)
    return torch.randn(like.shape, generator=draw, dtype=kind, device=draw.device).to(like.device)


@torch.no_grad()
def zeroth_order_step(
    parameters: Iterable[Tensor] | Mapping[str, Tensor],
    loss: Callable[[], float | Tensor],
    eps: float = 1e-3,
    rate: float = 1e-6,
    seed: int = 0,
    keep: str = "all",
) -> list[float]:
    """One MeZO step on any chosen tensors of a model, in place: theta -= rate g z.

    theta + eps z is rounded, so what it was cannot be had back from z alone. `keep` says what is paid to have
    it back bit for bit; besides that, any choice takes the room of z of the largest tensor, twice in 16 bits.

    Args:
        parameters: floating-point tensors. z belongs to a place in the order, or to a name where they are
            named: `{n: model.get_parameter(n) for n in names}`.
        loss: of the model as it stands; without dropout (`model.eval()`), on the same samples every time.
        seed: of z; another one for every step. z is drawn on the tensor's own device.
        keep: "all": a copy of all the tensors in the host's memory, two losses. "each": the tensors are
            probed one after another, a copy of one at a time, two losses per tensor, and less noise.
            "none", as published: z is taken off again, two losses; the last bits of every tensor are lost.

    Returns:
        g: one for all the tensors together, or with "each" one per tensor.

    Raises:
        ValueError: for no parameters, some that are not floating point, or options that cannot be.
        FloatingPointError: for a loss that is not finite. After this and any error that `loss` raises the
            tensors are what they were, bit for bit (with "none": but for the last bits).
    """
    named = list(parameters.items() if isinstance(parameters, Mapping) else enumerate(parameters))
    if not named or not all(isinstance(t, Tensor) and t.is_floating_point() for _, t in named):
        raise ValueError(f"{len(named)} parameters: at least one is needed, and floating-point tensors all")
    if not (0 < eps < math.inf and 0 <= rate < math.inf):
        raise ValueError(f"eps={eps!r}, rate={rate!r}: eps has to be above 0, rate at least 0, both finite")
    if keep not in ("all", "each", "none"):
        raise ValueError(f"keep={keep!r}: possible are 'all', 'each', 'none'")

    def move(group: Group, by: float) -> None:
        for name, t in group:
            known = Rule(seed).draw("z", name).initial_seed()
            draw = torch.Generator(t.device).manual_seed(known)
            t.copy_(_direction(draw, t).mul_(by).add_(t))  # unnamed: gone before the next one is drawn

    def probe(group: Group, by: float) -> float:
        """The loss at theta + by z; the tensors are put back."""
        kept = [] if keep == "none" else [t.to("cpu", copy=True) for _, t in group]
        try:
            move(group, by)
            return float(loss())
        finally:
            if keep == "none":
                move(group, -by)
            for (_, t), before in zip(group, kept, strict=False):
                t.copy_(before)

    groups = [[pair] for pair in named] if keep == "each" else [named]
    found = []
    for group in groups:
        losses = [probe(group, eps), probe(group, -eps)]
        found.append((losses[0] - losses[1]) / (2 * eps))
        if not math.isfinite(found[-1]):
            raise FloatingPointError(f"the losses at theta +- eps z are {losses}; nothing was changed")
    if rate:  # theta + 0 z would make 0 of -0
        for group, g in zip(groups, found, strict=True):
            move(group, -rate * g)
    return found
