"""What every learning rule is given and gives back."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
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
            `Ladder.weights()`, "relevance" and "readout"); for rules that need the ladder as a whole.
        rivals: the classes that take part in the error, (C,) bool; None for all.
        error_of: the error that other values (B, C) would have got; for rules whose states move while they
            learn. None: the same whatever the values.
        step: samples learned before; what a rule draws at random depends on it and on its seed alone.
    """

    error: Tensor
    target: Tensor
    readout: Tensor
    values: Tensor
    relevance: Tensor
    forward: Callable[[dict[str, Tensor]], Tensor] | None = None
    rivals: Tensor | None = None
    error_of: Callable[[Tensor], Tensor] | None = None
    step: int = 0

    def error_at(self, values: Tensor) -> Tensor:
        """The error of other values than those of the climb, (B, C)."""
        return self.error if self.error_of is None else self.error_of(values)


@dataclass(frozen=True)
class Updates:
    """Ascent directions: add a step times them.

    Args:
        ladder: by the names of `Ladder.weights()`, batch mean.
        readout: dR for `readout="delta"`, (C, D), batch mean.
        drive_feedback: what reaches x_l of all rungs side by side, (B, L * width); relevance learns from it.
        relevance: dU itself, (C, F), from a rule that has it; then `drive_feedback` is not used.
        own: of the rule's own plastic tensors, by their names in its `state`.
        notes: what is worth telling about the step: iterations, residuals.
    """

    ladder: dict[str, Tensor]
    readout: Tensor
    drive_feedback: Tensor | None = None
    relevance: Tensor | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)

    def finite(self) -> bool:
        """Whether no update holds NaN or infinity."""
        given = [self.readout, self.drive_feedback, self.relevance, *self.ladder.values(), *self.own.values()]
        return all(bool(torch.isfinite(t).all()) for t in given if t is not None)


@dataclass(frozen=True)
class Ledger:
    """What a rule needs to know that a synapse does not have at hand, in a ladder that is read at its top.

    (Where `reads="all"`, the readout is a synapse away from every rung, and what an answer feeds back reaches
    each of them straight, by the readout's own weights.)

    Args:
        weight_transport: the forward weights of other synapses, on the way down.
        two_phases: a second pass with a teaching signal, told apart from the first.
        global_scalar: one number that all synapses hear.
        error_vector_broadcast: the whole output error, at every rung.
        update_locking: no rung changes before the pass through all of them is over.
        iterative_settling: states that relax before anything is learned.
        layer_wide_matrix: a matrix over a whole layer that is not its weights.
        stored_activations: activations of an earlier phase or step, kept until the update.
        signed_errors: units that tell too much from too little.
    """

    weight_transport: bool = False
    two_phases: bool = False
    global_scalar: bool = False
    error_vector_broadcast: bool = False
    update_locking: bool = False
    iterative_settling: bool = False
    layer_wide_matrix: bool = False
    stored_activations: bool = False
    signed_errors: bool = False


class Rule:
    """`step` turns one climb and its teaching signal into updates. It keeps no graph and changes nothing.

    What a rule keeps (feedback weights, thresholds) is in `state`, by the names of `shapes`; a tensor named
    in `per_class` has one row per class, drawn when the class appears, the same whenever that is.

    Args:
        seed: of all that the rule draws.
    """

    per_class: ClassVar[tuple[str, ...]] = ()
    mirrored: ClassVar[bool] = False  # own tensors `feedback_*` get what the weights get that they stand for

    @property
    def grows(self) -> bool:
        """Whether, with these options, V_l learns from what frozen columns send, and a column that is frozen
        goes on as it was."""
        return True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.state: dict[str, Tensor] = {}
        self.gone = 0  # classes that were taken back: no later one gets the row that one of those had drawn

    @property
    def ledger(self) -> Ledger:
        """What these options need."""
        raise NotImplementedError

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        """The tensors that the rule keeps for this ladder and so many classes."""
        return {}

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        """The first values of a tensor of `shapes`, or of one row of it if it is in `per_class`; float32."""
        return torch.zeros(shape)

    def prepare(self, ladder: Ladder, classes: int) -> None:
        """Make room for what is kept: once for the ladder, and again when a class appears."""
        like = ladder.weight(0)
        for name, shape in self.shapes(ladder, classes).items():
            have = self.state.get(name)
            if name not in self.per_class:
                if have is None:
                    self.state[name] = self.start(name, shape, self.draw(name)).to(like)
                continue
            met = 0 if have is None else len(have)
            if have is None or met < shape[0]:
                rows = [
                    self.start(name, shape[1:], self.draw(name, k + self.gone)) for k in range(met, shape[0])
                ]
                new = torch.stack(rows).to(like) if rows else like.new_zeros(shape)
                self.state[name] = new if have is None else torch.cat([have, new])

    def forget(self, classes: int) -> None:
        """Drop the rows of classes from this number on."""
        for name in self.state.keys() & set(self.per_class):
            self.state[name] = self.state[name][:classes]

    def keep(self, rows: Tensor, classes: int) -> None:
        """Leave only the rows of these classes, (K,) ascending, of so many."""
        self.gone += classes - len(rows)
        for name in self.state.keys() & set(self.per_class):
            tensor = self.state[name]
            self.state[name] = tensor[rows[rows < len(tensor)].to(tensor.device)]

    def grow(self, place: Tensor, before: int, after: int) -> None:
        """Keep what lives where phi does, (..., before), for a phi of which an entry is now at `place`; what
        belongs to rungs starts anew with the column, and so does what is new in phi."""
        kept = {name: tensor for name, tensor in self.state.items() if tensor.shape[-1:] == (before,)}
        self.state = {}
        for name, tensor in kept.items():
            new = self.start(name, (*tensor.shape[:-1], after), self.draw(name, "grown", after)).to(tensor)
            self.state[name] = new.index_copy(-1, place.to(tensor.device), tensor)

    def draw(self, *what: Any) -> torch.Generator:
        """A generator for what these words and numbers name, the same in every process."""
        text = repr((self.seed, *what)).encode()
        return torch.Generator().manual_seed(zlib.crc32(text))

    def infer(self, ladder: Ladder, climb: Climb) -> Climb:
        """The pass that is answered from: the climb as it is, unless the rule lets its states settle."""
        return climb

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        """The updates that this climb and its teaching signal ask for."""
        raise NotImplementedError

    def attend(
        self, ladder: Ladder, climb: Climb, error: Tensor, readout: Tensor, step: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        """What answers weighted by `error` (B, C) feed back to the drives (B, L * width) and, gated, to each
        rung (B, width): down R and W, unless the rule has a way down of its own."""
        return descend(ladder, climb, (error @ readout).to(climb.phi))

    def accompany(self, ladder: Ladder, updates: Updates, readout: Tensor) -> Updates:
        """The same updates with those of the rule's own tensors that go with them, for an update of W and R
        (C, D) that was worked out elsewhere, as for a late reward."""
        return updates


def outer(
    ladder: Ladder, post: list[Tensor], below: list[Tensor], lateral: Sequence[Tensor] = ()
) -> dict[str, Tensor]:
    """Delta W_l = post_l' z_{l-1} / B and Delta b_l = mean post_l, by the names of `Ladder.weights()`; Delta
    V_l as Delta W_l.

    Args:
        post: one signal per rung, (B, width). below: what entered each rung, z_{l-1}, (B, ...).
        lateral: of the climb: what entered it from frozen columns.
    """
    updates = {}
    for level, (p, z) in enumerate(zip(post, below, strict=True)):
        share = p / len(z)  # smaller than what is made of it
        updates[f"weight_{level}"] = share.T @ z
        updates[f"bias_{level}"] = share.sum(0)
        if level and lateral:
            updates[f"lateral_{level}"] = share.T @ lateral[level].to(share)
    return updates


def descend(
    ladder: Ladder,
    climb: Climb,
    at_phi: Tensor,
    back: Callable[[int], Tensor] | None = None,
    expands: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Feedback at phi (B, D) brought down to the drives (B, L * width) and, gated, to each rung (B, width).

    g_l = (what reaches z_l from phi + g_{l+1} B_{l+1}) * f'(a_l).

    Args:
        back: B_l by l, as W_l (width, width); None: W_l itself.
        expands: whether it also comes down the fixed weights of the expansion.
    """
    _, at_z, at_hidden = ladder.split(at_phi)
    if not expands:
        at_hidden.zero_()  # a part of at_phi
    gated: list[Tensor] = []
    from_above: Tensor | float = 0.0
    for level in reversed(range(ladder.depth)):
        g = (at_z[level] + from_above) * ladder.activation.slope_at(climb.states[level])
        gated.insert(0, g)
        if level:
            from_above = g @ (ladder.weight(level) if back is None else back(level))
    return to_drives(ladder, climb, at_phi, gated), gated


def to_drives(ladder: Ladder, climb: Climb, at_phi: Tensor, post: list[Tensor]) -> Tensor:
    """What reaches the drives x_l, (B, L * width): from the readout, the expansion and each rung.

    Args:
        at_phi: feedback where phi lives, (B, D). post: at each a_l, (B, width).
    """
    drives = torch.cat(post, 1)
    if ladder.reads == "top":
        return drives
    at_x, _, at_hidden = ladder.split(at_phi)
    drives = at_x + drives
    if at_hidden.shape[1]:
        drives = drives + ladder.from_expansion(climb.hidden, at_hidden)
    return drives
