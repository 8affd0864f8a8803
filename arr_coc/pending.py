"""Actions that wait for their reward: a bounded set of eligibilities."""

import difflib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arr_coc.answer import Answer
from arr_coc.placing import placed


@dataclass(frozen=True)
class Eligibility:
    """What one answer leaves behind until its reward comes: no token, only what the update will need.

    Args:
        phi: what the readout saw, (D,).
        scene: what the whole scene looked like, (2 width + 1,).
        context: as U saw it, (C,).
        direction: sum_n r_n s_n f_n / sqrt d for the chosen answer, (F,).
        gates: attentional feedback to each rung's pre-activation for the chosen answer, (L, width).
        states: z_l, (L, width); with K frozen columns, z_l of those beside it, (L, (1 + K) * width).
        row: of the chosen answer in the readout.
        predicted: q_s, its value.
        asked: where the context came from (see `Percept`).
        own: rho of the own gain (see `OwnGain`); None where the model has no score of its own.
    """

    phi: Tensor
    scene: Tensor
    context: Tensor
    direction: Tensor
    gates: Tensor
    states: Tensor
    row: int
    predicted: float
    asked: str
    own: float | None

    def moves(self, delta: float) -> dict[str, Tensor]:
        """Delta W_l = delta g_l z_{l-1}', Delta b_l = delta g_l and Delta V_l = delta g_l [z_{l-1} of frozen
        columns]', by the names of `Ladder.weights()`."""
        width = self.gates.shape[1]
        below = [self.context.to(self.states), *self.states[:-1, :width]]
        found = {}
        for level in range(1, len(self.gates)) if self.states.shape[1] > width else ():
            beside = self.states[level - 1, width:]
            found[f"lateral_{level}"] = torch.outer(delta * self.gates[level], beside)
        for level, (gate, z) in enumerate(zip(self.gates, below, strict=True)):
            found[f"weight_{level}"] = torch.outer(delta * gate, z)
            found[f"bias_{level}"] = delta * gate
        return found

    def at(self, row: int) -> "Eligibility":
        """The same for a readout in which its answer has another row."""
        return replace(self, row=row)

    def grown(self, place: Tensor, width: int, states: int) -> "Eligibility":
        """The same for a phi (`width`,) in which its entries stand at `place`, and rungs that it did not go
        through: `states` wide, and not to be moved."""
        return replace(
            self,
            phi=placed(self.phi, place, width),
            gates=torch.zeros_like(self.gates),
            states=self.states.new_zeros(len(self.states), states),
        )

    def finite(self) -> bool:
        """Whether nothing in it is NaN or infinite."""
        tensors = (self.phi, self.scene, self.context, self.direction, self.gates, self.states)
        numbers = math.isfinite(self.predicted) and math.isfinite(self.own or 0.0)
        return numbers and all(bool(torch.isfinite(t).all()) for t in tensors)


def left_by(
    answer: Answer,
    chosen: Tensor,
    predicted: Tensor,
    gates: list[Tensor],
    direction: Tensor,
    rho: Tensor | None,
    asked: str,
) -> list[Eligibility]:
    """What the answers of a batch leave behind, one `Eligibility` each, with tensors of its own.

    Args:
        chosen: rows in the readout, (B,). predicted: their values, (B,). gates: per rung, (B, width).
        direction: (B, F). rho: (B,).
    """
    climb = answer.climb
    states = torch.stack(climb.states, 1)  # (B, L, width)
    if climb.lateral:  # what enters a rung stands beside what its own column sends it; the top sends nothing
        beside = [*climb.lateral[1:], torch.zeros_like(climb.lateral[-1])]
        states = torch.cat([states, torch.stack(beside, 1)], 2)
    return [
        Eligibility(
            answer.climb.phi[i].clone(),
            answer.scene[i].clone(),
            answer.context[i].clone(),
            direction[i].clone(),
            torch.stack([g[i] for g in gates]),
            states[i].clone(),
            int(chosen[i]),
            float(predicted[i]),
            asked,
            None if rho is None else float(rho[i]),
        )
        for i in range(len(chosen))
    ]


class Pending:
    """Eligibilities by the number of their action, one group per sample; the oldest go when there are too
    many.

    Args:
        limit: actions kept at a time.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.next = limit, 0
        self.groups: dict[int, list[list[Eligibility]]] = {}

    def add(self, groups: list[list[Eligibility]]) -> int:
        """Keep an action's eligibilities; returns its number."""
        number, self.next = self.next, self.next + 1
        self.groups[number] = groups
        while len(self.groups) > self.limit:
            del self.groups[min(self.groups)]
        return number

    def get(self, number: int) -> list[list[Eligibility]]:
        """The eligibilities of an action.

        Raises:
            KeyError: if it is unknown, was rewarded before, or had to make room.
        """
        if number in self.groups:
            return self.groups[number]
        if not 0 <= number < self.next:
            raise KeyError(f"action {number} is unknown: {self.next} actions were taken, numbered from 0")
        near = difflib.get_close_matches(str(number), [str(n) for n in self.groups], n=1, cutoff=0.0)
        waiting = f"{len(self.groups)} actions wait for their reward" + (
            f", action {near[0]} among them" if near else ""
        )
        raise KeyError(
            f"action {number} was rewarded already, or dropped for newer ones (limit {self.limit}); {waiting}"
        )

    def drop(self, number: int) -> None:
        """Forget an action: it was rewarded."""
        del self.groups[number]
