"""Difference target propagation: every rung is told where to be, by feedback weights that learn.

From the answer that_L = z_L + beta Q_L' e, and down that_{l-1} = z_{l-1} + G_l(that_l) - G_l(z_l) + beta Q' e
where the answer reads rung l-1 too; Delta W_l = + ((that_l - z_l) / beta * f'(a_l)) z_{l-1}'. The feedback
G_l(y) = B_l f(a_l + y - z_l) is what rung l fires when pushed to y. Its Jacobian B_l diag f'(a_l) is the
transpose of the forward one at B_l = W_l' whatever the input; B_l y and f(B_l y) cannot be. B_l (and Q, for
the readout R) learn from noise n in the rung below, by the local difference reconstruction loss (L-DRL),
-2 <n, G(F(z + n)) - G(F(z))> / noise^2 + |J_G|^2; then updates are the gradient as beta -> 0. Or they learn
the inverse ("reconstruction"), for Gauss-Newton-like targets. Use it to go deep without transported weights;
give it batches or many `feedback_steps`, for the noise has to average out. Needs a second phase and stored
activations. Source: Lee et al. (2015), DTP; Ernoult et al. (2022), L-DRL.
"""

from typing import ClassVar

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, outer, to_drives


class TargetPropagation(Rule):
    """See the module's docstring.

    Args:
        feedback: what B_l learns: "ldrl", the transpose; "reconstruction", the inverse.
        learned_readout: Q learns R by L-DRL; without it Q is R itself, transported.
        beta: how far the targets are from the states.
        noise: standard deviation of n.
        feedback_steps: draws of n that are averaged, for each sample.
        feedback_scale: size of the feedback's updates beside the ladder's.
    """

    per_class: ClassVar[tuple[str, ...]] = ("feedback_readout",)

    def __init__(
        self,
        feedback: str = "ldrl",
        learned_readout: bool = True,
        beta: float = 0.1,
        noise: float = 0.1,
        feedback_steps: int = 8,
        feedback_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if feedback not in ("ldrl", "reconstruction"):
            raise ValueError(f"feedback={feedback!r}: possible are 'ldrl', 'reconstruction'")
        if not beta > 0:
            raise ValueError(f"beta={beta!r}: possible are numbers above 0")
        if not noise > 0:
            raise ValueError(f"noise={noise!r}: possible are numbers above 0")
        if feedback_steps != int(feedback_steps) or feedback_steps < 1:
            raise ValueError(f"feedback_steps={feedback_steps!r}: possible are whole numbers from 1")
        if not feedback_scale >= 0:
            raise ValueError(f"feedback_scale={feedback_scale!r}: possible are numbers from 0")
        self.feedback, self.learned_readout, self.beta, self.noise = feedback, learned_readout, beta, noise
        self.feedback_steps, self.feedback_scale = int(feedback_steps), feedback_scale

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            weight_transport=not self.learned_readout,
            two_phases=True,
            update_locking=True,
            stored_activations=True,
            signed_errors=True,
        )

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        """B_l by the rung that it comes from, (width, width): none into z_0. Q, (C, D)."""
        kept: dict[str, tuple[int, ...]] = {
            f"feedback_{level}": (ladder.width, ladder.width) for level in range(1, ladder.depth)
        }
        return kept | ({"feedback_readout": (classes, ladder.phi_width)} if self.learned_readout else {})

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    def moves(self, ladder: Ladder, climb: Climb, at_phi: Tensor) -> list[Tensor]:
        """that_l - z_l of every rung, (B, width) each, for feedback at phi (B, D)."""
        f = ladder.activation.f
        _, at_z, _ = ladder.split(at_phi)
        moves: list[Tensor] = []
        from_above: Tensor | float = 0.0
        for level in reversed(range(ladder.depth)):
            moves.insert(0, self.beta * at_z[level] + from_above)
            if level:
                a = climb.pre_activations[level]
                from_above = (f(a + moves[0]) - f(a)) @ self.state[f"feedback_{level}"].to(a).T
        return moves

    def learn_feedback(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> dict[str, Tensor]:
        """Half the descent of each feedback weight's loss, by its name in `state`."""
        f, slope = ladder.activation.f, ladder.activation.slope
        own: dict[str, Tensor] = {}
        for level in range(1, ladder.depth):
            back, a = self.state[f"feedback_{level}"].to(climb.phi), climb.pre_activations[level]
            n = self._normal(climb, teaching, level, ladder.width)
            moved = f(a + self.noise * n @ ladder.weight(level).T) - f(a)  # F(z + noise n) - F(z)
            sent = (f(a + moved) - f(a)).flatten(0, 1) / self.noise  # G of that, before B_l
            n = n.flatten(0, 1)
            if self.feedback == "ldrl":
                # noise at rung l, averaged: drawn, it would bound the step by 1 / width at batch 1
                decay = back * slope(a).square().mean(0)
            else:
                decay = back @ (sent.T @ sent) / len(n)
            own[f"feedback_{level}"] = n.T @ sent / len(n) - decay
        if self.learned_readout:
            n = self._normal(climb, teaching, ladder.depth, ladder.phi_width).flatten(0, 1)
            told = n @ teaching.readout.to(n).T  # how the values follow noise in phi
            own["feedback_readout"] = told.T @ n / len(n) - self.state["feedback_readout"].to(n)
        return {name: self.feedback_scale * direction for name, direction in own.items()}

    def _normal(self, climb: Climb, teaching: Teaching, level: int, width: int) -> Tensor:
        """Unit noise for what is below the rung, (feedback_steps, B, width)."""
        draw = self.draw("noise", level, teaching.step)
        return torch.randn(self.feedback_steps, len(climb.phi), width, generator=draw).to(climb.phi)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        down = self.state["feedback_readout"] if self.learned_readout else teaching.readout
        at_phi = error @ down.to(climb.phi)  # (B, D)
        post = [
            move / self.beta * ladder.activation.slope(a)
            for move, a in zip(self.moves(ladder, climb, at_phi), climb.pre_activations, strict=True)
        ]
        return Updates(
            outer(ladder, post, [climb.below, *climb.states[:-1]], climb.lateral),
            error.T @ climb.phi / len(error),
            drive_feedback=to_drives(ladder, climb, at_phi, post),
            own=self.learn_feedback(ladder, climb, teaching),
        )
