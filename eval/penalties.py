"""Strategies that keep nothing but weights: online EWC, SI, LwF, O-LoRA."""

import math
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.trained import Example, Seen, Strategy, Trained, size_of


class Quadratic(Strategy):
    """lambda / 2 sum_i importance_i (theta_i - anchor_i)^2, its gradient added to that of the batch.

    Args:
        strength: lambda.
        limit: lambda importance_i is held under this; for plain SGD 1 / rate, since a step beyond it
            overshoots the anchor and diverges.
    """

    told = True

    def __init__(self, strength: float, limit: float = math.inf) -> None:
        self.strength, self.limit = strength, limit

    def join(self, method: Trained) -> None:
        super().join(method)
        self.anchor = method.weights()
        self.importance = [torch.zeros_like(w) for w in self.anchor]

    def _stiffness(self) -> list[Tensor]:
        return [(self.strength * i).clamp(max=self.limit) for i in self.importance]

    def penalty(self) -> float:
        """Its value now."""
        parts = zip(self._stiffness(), self.method.trained, self.anchor, strict=True)
        return sum(float((s * (p.detach() - a) ** 2).sum()) for s, p, a in parts) / 2

    def adjust(self) -> None:
        found = self.method.gradient()
        self.watch(found)
        parts = zip(self.method.trained, found, self._stiffness(), self.anchor, strict=True)
        for p, g, s, a in parts:
            p.grad = g + s * (p.detach() - a)

    def watch(self, gradient: list[Tensor]) -> None:
        """The gradient of the batch alone."""

    def held_bytes(self) -> int:
        return size_of([*self.anchor, *self.importance])


class OnlineEWC(Quadratic):
    """F <- decay F + mean over the experience's steps of g^2, g the gradient of the batch; anchor <- theta.

    One pass and no stored sample: the Fisher information is estimated on the way, from the batches' own
    gradients as in EWC++ (Chaudhry et al. 2018), and added up as in online EWC (Schwarz et al. 2018).

    Args:
        decay: gamma, what earlier experiences still count.
    """

    def __init__(self, strength: float, decay: float = 1.0, limit: float = math.inf) -> None:
        super().__init__(strength, limit)
        self.decay = decay

    def join(self, method: Trained) -> None:
        super().join(method)
        self._squares, self._steps = [torch.zeros_like(w) for w in self.anchor], 0

    def watch(self, gradient: list[Tensor]) -> None:
        for total, g in zip(self._squares, gradient, strict=True):
            total += g**2
        self._steps += 1

    def over(self) -> None:
        for kept, total in zip(self.importance, self._squares, strict=True):
            kept.mul_(self.decay).add_(total / max(self._steps, 1))
            total.zero_()
        self._steps, self.anchor = 0, self.method.weights()

    def held_bytes(self) -> int:
        return super().held_bytes() + size_of(self._squares)


class SynapticIntelligence(Quadratic):
    """omega = -sum_t g_t (theta_t+1 - theta_t): what a weight's way has taken off the loss.

    When an experience is over, importance += max(0, omega) / ((theta - anchor)^2 + damping) and anchor <-
    theta. g is the gradient of the batch alone. The paper's c is lambda / 2. Source: Zenke et al. (2017).

    Args:
        damping: xi.
    """

    def __init__(self, strength: float, damping: float = 1e-3, limit: float = math.inf) -> None:
        super().__init__(strength, limit)
        self.damping = damping

    def join(self, method: Trained) -> None:
        super().join(method)
        self.path = [torch.zeros_like(w) for w in self.anchor]

    def watch(self, gradient: list[Tensor]) -> None:
        self._gradient, self._start = [g.clone() for g in gradient], self.method.weights()

    def after(self, examples: list[Example], seen: Seen) -> None:
        parts = zip(self.path, self._gradient, self.method.trained, self._start, strict=True)
        for path, g, p, start in parts:
            path -= g * (p.detach() - start)

    def over(self) -> None:
        now = self.method.weights()
        for kept, path, p, a in zip(self.importance, self.path, now, self.anchor, strict=True):
            kept += path.clamp(min=0) / ((p - a) ** 2 + self.damping)
            path.zero_()
        self.anchor = now

    def held_bytes(self) -> int:
        return super().held_bytes() + size_of(self.path)


class LearningWithoutForgetting(Strategy):
    """strength KL(softmax(z' / T) || softmax(z / T)), over the classes met before this experience.

    z' are the scores of the same batch by the weights as they were when the last experience ended; the mean
    over the rows. Source: Li and Hoiem (2016), whose cross-entropy has the same gradient.

    Args:
        temperature: T.
    """

    told = True

    def __init__(self, strength: float, temperature: float = 2.0) -> None:
        self.strength, self.temperature = strength, temperature
        self.teacher: list[Tensor] = []
        self.known = torch.zeros(0, dtype=torch.long)  # columns met before this experience
        self._met: set[int] = set()
        self._taught: Tensor | None = None

    def before(self, examples: list[Example]) -> None:
        if self.teacher:
            with self.method.as_of(self.teacher):
                self._taught = self.method.look(examples).scores

    def extra(self, seen: Seen) -> Tensor | None:
        return None if self._taught is None else self.distillation(seen.scores, self._taught)

    def distillation(self, scores: Tensor, taught: Tensor) -> Tensor:
        """The term itself, for scores now and then, (R, C) each."""
        now, then = ((s[:, self.known] / self.temperature).log_softmax(1) for s in (scores, taught))
        return self.strength * (then.exp() * (then - now)).sum(1).mean()

    def after(self, examples: list[Example], seen: Seen) -> None:
        self._met |= set(seen.targets.tolist())

    def over(self) -> None:
        self.teacher, self.known = self.method.weights(), torch.tensor(sorted(self._met))

    def held_bytes(self) -> int:
        return size_of(self.teacher)


class OrthogonalLora(Strategy):
    """strength sum over layers and earlier experiences i of sum |A_i A'|; each experience has its own LoRA.

    When an experience is over its B A is added to the layer's weight, which is what keeping it beside the
    others and frozen computes, and a new one starts: A as at the start of a layer, B at zero, the optimizer
    anew. Source: Wang et al. (2023), O-LoRA; their further L2 term is left out.

    Args:
        seed: of the new A.
    """

    told = True

    def __init__(self, strength: float, seed: int = 0) -> None:
        self.strength, self.seed = strength, seed
        self.earlier: list[list[Tensor]] = []  # per layer, A of each experience, (r, d)
        self._held = 0

    def join(self, method: Trained) -> None:
        super().join(method)
        inside = getattr(method, "model", None)
        found = [] if inside is None else inside.modules()
        self.layers: list[Any] = [m for m in found if hasattr(m, "lora_A") and hasattr(m, "base_layer")]
        if not self.layers:
            raise ValueError("O-LoRA needs layers with LoRA, and this method has none")
        self.earlier = [[] for _ in self.layers]

    @staticmethod
    def overlap(now: Tensor, earlier: list[Tensor]) -> Tensor:
        """sum_i sum |A_i A'|, 0 where the rows of A are orthogonal to all rows before."""
        return sum(((a @ now.T).abs().sum() for a in earlier), now.new_zeros(()))

    def extra(self, seen: Seen) -> Tensor | None:
        if not self.earlier[0]:
            return None
        pairs = zip(self.layers, self.earlier, strict=True)
        terms = [self.overlap(layer.lora_A["default"].weight, a) for layer, a in pairs]
        return self.strength * torch.stack(terms).sum()

    @torch.no_grad()
    def over(self) -> None:
        draw = torch.Generator().manual_seed(self.seed + len(self.earlier[0]) + 1)
        for layer, earlier in zip(self.layers, self.earlier, strict=True):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            self._held += size_of([a, b])
            layer.base_layer.weight += layer.get_delta_weight("default")
            earlier.append(a.detach().clone())
            torch.nn.init.kaiming_uniform_(a, a=math.sqrt(5), generator=draw)
            b.zero_()
        self.method.optimizer.state.clear()

    def held_bytes(self) -> int:
        """A and B of the experiences that are over."""
        return self._held
