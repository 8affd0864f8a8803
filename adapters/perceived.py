"""What an attached model gives back besides its model's own output."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from arr_coc.percept import Percept
from arr_coc.sequence import Text


@dataclass(frozen=True)
class Perceived:
    """One frozen forward pass: the percept, the model's own output, and names for the candidates.

    Args:
        percept: of the batch; for a generative model one entry per taught position.
        output: the model's own output, untouched.
        keys: names of the candidates (dual) or of the taught tokens, one per entry (generative).
        text: the candidates' tokens (dual) or those of the sequences (generative), where an adapter reads
            them.
    """

    percept: Percept
    output: Any
    keys: list[str]
    text: Text | None = None


@dataclass(frozen=True)
class Kept:
    """What was kept of each sample of a prompt.

    Args:
        tokens: numbers of the visual tokens, rising, one tensor a sample.
        relevance: over each sample's tokens, one tensor a sample.
        mixes: of diversity, one a sample.
        contexts: what told the kind of question, (B, C).
    """

    tokens: list[Tensor]
    relevance: list[Tensor]
    mixes: list[float]
    contexts: Tensor


GONE = -1  # no action has this number


@dataclass(frozen=True)
class Handle:
    """An action that waits for its reward.

    Args:
        number: of the action, for `ArrCocModel.reward`.
        choice: the chosen candidate rows, (B,), or the generated ids, (B, T).
        numbers: of the action, for each adapter that remembers it, by name; `number` is the first of them. A
            handle follows when one is renamed, and says GONE of one that was deleted.
        kept: what was kept of the visual tokens, where some were dropped.
    """

    number: int
    choice: Tensor
    numbers: dict[str, int] = field(default_factory=dict)
    kept: Kept | None = None


@dataclass(frozen=True)
class Prediction:
    """One image's answer: the label, a probability per text, and relevance over the visual tokens (N,)."""

    label: str
    probabilities: dict[str, float]
    relevance: Tensor


def ordinary(percept: Percept) -> Percept:
    """A copy whose tensors may enter a graph, which inference tensors may not; every entry has tokens of its
    own."""

    def copy(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.clone()

    own = percept.sample
    return replace(
        percept,
        tokens=tuple(t.clone() if own is None else t[own] for t in percept.tokens),
        sample=None,
        made=None,
        attention=percept.attention.clone(),
        context=percept.context.clone(),
        own=copy(percept.own),
        mask=copy(percept.mask),
        grids=copy(percept.grids),
        state=copy(percept.state),
    )
