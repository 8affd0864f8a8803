"""One training loop for everything that learns by gradient descent, and what a strategy may add to it.

theta <- optimizer(d/dtheta [cross-entropy of the batch + extra]), one step a batch, one pass. A `Strategy` is
what continual learning adds: a term of the loss, a change of the gradient, a memory (see `penalties` and
`rehearsal`). The same strategy serves a head on frozen features and an adapter inside a model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.eval.methods_features import Method

Example = Any  # what a method needs to look at one sample again
Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Seen:
    """What a model makes of some examples.

    Args:
        scores: (R, C), one row for every prediction that is taught; an answer of several tokens has several.
        targets: the right column of each row, (R,).
        whose: the example that a row belongs to, (R,).
    """

    scores: Tensor
    targets: Tensor
    whose: Tensor

    @property
    def loss(self) -> Tensor:
        """Mean cross-entropy over the rows."""
        return nn.functional.cross_entropy(self.scores, self.targets)

    def of(self, example: int) -> Tensor:
        """The scores of one example, detached, (its rows, C)."""
        return self.scores[self.whose == example].detach()


def size_of(tensors: Sequence[Tensor]) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Strategy:
    """Nothing added: naive fine-tuning. The hooks are called in this order at every step."""

    told = False  # whether it has to hear that an experience is over

    def join(self, method: "Trained") -> None:
        """Called once, when the method's weights exist."""
        self.method = method

    def before(self, examples: list[Example]) -> None:
        """Before the model looks at them."""

    def extra(self, seen: Seen) -> Tensor | None:
        """A term of the loss."""

    def adjust(self) -> None:
        """The gradient is there; the step is not yet made."""

    def after(self, examples: list[Example], seen: Seen) -> None:
        """The step is made."""

    def over(self) -> None:
        """An experience is over."""

    @property
    def stored_samples(self) -> int:
        """Samples that are kept to be shown again."""
        return 0

    def held_bytes(self) -> int:
        """Bytes that it keeps."""
        return 0


class Trained(Method):
    """Weights, an optimizer and a strategy. A subclass says what an example is and how it is looked at.

    Args:
        trained: what learns.
        optimizer: over just that.
        strategy: None for naive fine-tuning.
    """

    def __init__(
        self, trained: Sequence[nn.Parameter], optimizer: Optimizer, strategy: Strategy | None = None
    ) -> None:
        self.trained, self.optimizer = list(trained), optimizer
        self.strategy = Strategy() if strategy is None else strategy
        self.strategy.join(self)

    def examples(self, batch: Any) -> list[Example]:
        """One per sample (or per taught token), with all that `look` needs."""
        raise NotImplementedError

    def look(self, examples: list[Example]) -> Seen:
        """A forward pass, differentiable."""
        raise NotImplementedError

    def example_bytes(self, example: Example) -> int:
        """What it costs to keep one."""
        raise NotImplementedError

    def observe(self, batch: Any) -> None:
        examples = self.examples(batch)
        self.strategy.before(examples)
        seen = self.look(examples)
        extra = self.strategy.extra(seen)
        self.optimizer.zero_grad()
        (seen.loss if extra is None else seen.loss + extra).backward()
        self.strategy.adjust()
        self.optimizer.step()
        self.strategy.after(examples, seen)

    def gradient(self) -> list[Tensor]:
        """Of every trained tensor, zero where nothing came down."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]

    def weights(self) -> list[Tensor]:
        """A copy of what is trained."""
        return [p.detach().clone() for p in self.trained]

    @contextmanager
    def as_of(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """With these weights instead, without a gradient."""
        now = self.weights()
        with torch.no_grad():
            try:
                for p, w in zip(self.trained, weights, strict=True):
                    p.copy_(w)
                yield
            finally:
                for p, w in zip(self.trained, now, strict=True):
                    p.copy_(w)

    def experience_over(self) -> None:
        self.strategy.over()

    @property
    def told_boundaries(self) -> bool:  # type: ignore[override]
        return self.strategy.told

    @property
    def stored_samples(self) -> int:  # type: ignore[override]
        return self.strategy.stored_samples

    def state_bytes(self) -> int:
        """What is trained, what the optimizer remembers and what the strategy keeps."""
        return held_bytes(self.trained, self.optimizer) + self.strategy.held_bytes()


def held_bytes(trained: Sequence[nn.Parameter], optimizer: Optimizer) -> int:
    """Of what is trained and of what its optimizer remembers."""
    held = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return size_of([*trained, *held])
