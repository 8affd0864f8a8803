"""Several adapters that answer one after another, each on what the one before made of the model's scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from arr_coc.answer import Answer
from arr_coc.learner import Learner
from arr_coc.percept import Percept


class Answering(Protocol):
    """What a body asks for answers: a `Learner`, or several of them `InTurn`."""

    @property
    def classes(self) -> list[str]: ...

    def answer(self, percept: Percept) -> Any: ...

    def fuse(self, own_logits: Tensor, keys: list[str] | Tensor, answer: Any) -> Tensor: ...

    def probabilities(self, fused: Tensor, keys: list[str] | Tensor, answer: Any) -> Tensor: ...


@dataclass(frozen=True)
class Answers:
    """What several adapters make of one percept; relevance (B, N) and surprise (B,) are their means."""

    parts: list[Answer]

    @property
    def relevance(self) -> Tensor:
        return torch.stack([part.relevance for part in self.parts]).mean(0)

    @property
    def surprise(self) -> Tensor:
        return torch.stack([part.surprise for part in self.parts]).mean(0)


class InTurn:
    """Answers like one `Learner`; it learns nothing.

    Args:
        learners: in the order in which they answer.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = list(learners)
        self.classes = list(dict.fromkeys(name for one in self.learners for name in one.classes))

    def answer(self, percept: Percept) -> Answers:
        """Every adapter's answer to the percept."""
        return Answers([one.answer(percept) for one in self.learners])

    def fuse(self, own_logits: Tensor, keys: list[str] | Tensor, answers: Answers) -> Tensor:
        """`Learner.fuse` of each in turn, (B, K); rows, where they are given, are those of `classes`."""
        for one, answer in zip(self.learners, answers.parts, strict=True):
            own_logits = one.fuse(own_logits, self._rows(one, keys), answer)
        return own_logits

    def probabilities(self, fused: Tensor, keys: list[str] | Tensor, answers: Answers) -> Tensor:
        """As `Learner.probabilities`, by the confidence of whichever is trusted most, (B, K)."""
        parts = [(one, self._rows(one, keys), a) for one, a in zip(self.learners, answers.parts, strict=True)]
        trust = torch.stack([one.trusted(known, answer) for one, known, answer in parts])
        told = [one.probabilities(fused, known, answer) for one, known, answer in parts]
        most = trust.argmax(0).to(fused.device)
        return torch.stack(told)[most, torch.arange(len(fused), device=fused.device)]

    def _rows(self, one: Learner, keys: list[str] | Tensor) -> list[str] | Tensor:
        if not isinstance(keys, Tensor):
            return keys
        # one entry more, so that the row -1 (no class) stays -1
        own = torch.cat([one.readout.rows(self.classes), one.readout.weight.new_full((1,), -1).long()])
        return own.to(keys.device)[keys]
