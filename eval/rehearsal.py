"""Strategies that keep samples and show them again: ER, DER++, A-GEM. arr-coc keeps none."""

from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.trained import Example, Seen, Strategy, size_of

BUFFER = 1000


class Reservoir:
    """A uniform sample of everything added so far (Vitter 1985, algorithm R).

    Args:
        size: items kept.
        seed: of what stays and what is drawn.
    """

    def __init__(self, size: int = BUFFER, seed: int = 0) -> None:
        self.size, self.met = size, 0
        self.items: list[Any] = []
        self._draw = torch.Generator().manual_seed(seed)

    def add(self, item: Any) -> None:
        self.met += 1
        if len(self.items) < self.size:
            self.items.append(item)
            return
        place = int(torch.randint(self.met, (1,), generator=self._draw))
        if place < self.size:
            self.items[place] = item

    def sample(self, count: int) -> list[Any]:
        """So many different items, or all of them."""
        return [self.items[i] for i in torch.randperm(len(self.items), generator=self._draw)[:count].tolist()]


class Rehearsal(Strategy):
    """A reservoir that every sample goes through after its step.

    Args:
        size: of the reservoir, samples.
        least: samples drawn a step: as many as the batch has, but at least so many.
        seed: of the reservoir.
    """

    def __init__(self, size: int = BUFFER, least: int = 10, seed: int = 0) -> None:
        self.memory, self.least = Reservoir(size, seed), least
        self._count = least

    def before(self, examples: list[Example]) -> None:
        self._count = max(len(examples), self.least)

    def after(self, examples: list[Example], seen: Seen) -> None:
        for i, example in enumerate(examples):
            self.memory.add((example, self.beside(i, seen)))

    def beside(self, example: int, seen: Seen) -> Tensor | None:
        """What is kept with an example."""

    def again(self) -> tuple[Seen, list[Tensor]] | None:
        """Some of the memory, looked at again, and what was kept with each; None while it is empty."""
        drawn = self.memory.sample(self._count)
        if not drawn:
            return None
        return self.method.look([example for example, _ in drawn]), [kept for _, kept in drawn]

    @property
    def stored_samples(self) -> int:
        return len(self.memory.items)

    def held_bytes(self) -> int:
        kept = [z for _, z in self.memory.items if z is not None]
        return sum(self.method.example_bytes(e) for e, _ in self.memory.items) + size_of(kept)


class ExperienceReplay(Rehearsal):
    """Cross-entropy of the batch + cross-entropy of a batch from the memory (Chaudhry et al. 2019)."""

    def extra(self, seen: Seen) -> Tensor | None:
        found = self.again()
        return None if found is None else found[0].loss


class DarkReplay(Rehearsal):
    """DER++: the batch + alpha |h(x') - z'|^2 + beta cross-entropy(x'', y''), x' and x'' drawn apart.

    z' are the scores at the step at which x' was met; the square is the mean over rows and classes. Source:
    Buzzega et al. (2020).
    """

    def __init__(self, alpha: float = 0.5, beta: float = 0.5, **further: Any) -> None:
        super().__init__(**further)
        self.alpha, self.beta = alpha, beta

    def beside(self, example: int, seen: Seen) -> Tensor:
        return seen.of(example)

    def extra(self, seen: Seen) -> Tensor | None:
        first, second = self.again(), self.again()
        if first is None or second is None:
            return None
        now, then = first
        away = torch.nn.functional.mse_loss(now.scores, torch.cat(then))
        return self.alpha * away + self.beta * second[0].loss


class AGem(Rehearsal):
    """g <- g - (g . m / m . m) m where g . m < 0, m the gradient of a batch from the memory.

    The memory is a reservoir of the whole stream, so nobody has to say when an experience is over. Source:
    Chaudhry et al. (2018), A-GEM.
    """

    def adjust(self) -> None:
        found = self.again()
        if found is None:
            return
        gradient = self.method.gradient()
        memory = torch.autograd.grad(found[0].loss, self.method.trained, allow_unused=True)
        ours = [torch.zeros_like(g) if m is None else m for g, m in zip(gradient, memory, strict=True)]
        for p, g in zip(self.method.trained, self.project(gradient, ours), strict=True):
            p.grad = g

    @staticmethod
    def project(gradient: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
        """The nearest gradient that does not raise the memory's loss to first order."""
        conflict = sum(float((g * m).sum()) for g, m in zip(gradient, memory, strict=True))
        length = sum(float((m * m).sum()) for m in memory)
        if conflict >= 0 or length == 0:
            return gradient
        return [g - (conflict / length) * m for g, m in zip(gradient, memory, strict=True)]
