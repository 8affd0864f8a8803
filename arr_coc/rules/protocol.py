"""What every learning rule is given and gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from arr_coc.ladder import Climb, Ladder


@dataclass(frozen=True)
class Teaching:
    """The teaching signal at the answer.

    Args:
        error: what is fed back from the answers: with labels t - softmax(s v) or t - v; with reward only the
            chosen entry differs from 0 and is r - q_s, (B, C).
        target: t, one-hot, (B, C).
        readout: R, the weights that the answer's feedback comes down by, (C, D).
        values: v before the update, (B, C).
        relevance: U, (C, F).
        forward: the values as a differentiable function of named copies of the plastic tensors (those of
            `Ladder.weights()`, "relevance" and "readout"); for the backprop baseline only.
        rivals: the classes that take part in the error, (C,) bool; None for all.
    """

    error: Tensor
    target: Tensor
    readout: Tensor
    values: Tensor
    relevance: Tensor
    forward: Callable[[dict[str, Tensor]], Tensor] | None = None
    rivals: Tensor | None = None


@dataclass(frozen=True)
class Updates:
    """Ascent directions: add a step times them.

    Args:
        ladder: by the names of `Ladder.weights()`, batch mean.
        drive_feedback: what reaches x_l of all rungs side by side, (B, L * width); relevance learns from it.
        relevance: dU itself, (C, F), from a rule that has it; then `drive_feedback` is not used.
        readout: dR for `readout="delta"`, (C, D), batch mean.
    """

    ladder: dict[str, Tensor]
    readout: Tensor
    drive_feedback: Tensor | None = None
    relevance: Tensor | None = None


@dataclass(frozen=True)
class Ledger:
    """What a rule needs to know that a synapse does not have at hand."""

    weight_transport: bool = False
    two_phases: bool = False
    global_scalar: bool = False
    error_vector_broadcast: bool = False
    update_locking: bool = False
    iterative_settling: bool = False
    layer_wide_matrix: bool = False
    stored_activations: bool = False
    signed_errors: bool = False


class Rule(Protocol):
    """`step` turns one climb and its teaching signal into updates. It keeps no graph and changes nothing."""

    ledger: Ledger

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates: ...
