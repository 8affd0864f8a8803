"""Attention-gated learning: attentional feedback from the answer x reward prediction error x activity.

Feedback starts at the answer and comes down the ladder, g_l = (R_z' e + W_{l+1}' g_{l+1}) * f'(a_l), and
Delta W_l = + g_l z_{l-1}'. With reward e has one entry, delta = r - q_s at the chosen answer: only what the
choice was made by is told how much better than expected it went. With labels every answer gives feedback,
weighted by its error; then the update is the gradient of -1/2 |t - v|^2. With `feedback="tied"` R and W are
the way down (transport); with "learned" weights of their own are, which get the same product (Kolen-Pollack).
Needs the scalar delta. Use it when answers are rewarded one at a time, or as the default. Source: Roelfsema &
van Ooyen (2005), AGREL; Pozzi, Bohte & Roelfsema (2020), BrainProp; Rombouts, Bohte & Roelfsema (2015),
AuGMEnT, for what waits for a late reward.
"""

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.kolen_pollack import READOUT, shapes, together
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, descend, outer


class AttentionGated(Rule):
    """See the module's docstring.

    Args:
        feedback: "tied" or "learned".
        decay: of W, R and the feedback weights, where those are learned; above 0 their difference dies out.
        feedback_start: size of their first draw, over 1 / sqrt(fan-in).
    """

    per_class = (READOUT,)
    mirrored = True

    def __init__(
        self, feedback: str = "tied", decay: float = 3e-3, feedback_start: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__(seed)
        if feedback not in ("tied", "learned"):
            raise ValueError(f"feedback={feedback!r}: possible are 'tied', 'learned'")
        for name, value in {"decay": decay, "feedback_start": feedback_start}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value!r}: a finite number of at least 0 is needed")
        self.learned, self.decay, self.feedback_start = feedback == "learned", decay, feedback_start

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            weight_transport=not self.learned, global_scalar=True, update_locking=True, signed_errors=True
        )

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        return shapes(ladder, classes) if self.learned else {}

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw) * (self.feedback_start / shape[-1] ** 0.5)

    def attend(
        self, ladder: Ladder, climb: Climb, error: Tensor, readout: Tensor, step: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        if not self.learned:
            return super().attend(ladder, climb, error, readout)
        at_phi = error.to(climb.phi) @ self.state[READOUT].to(climb.phi)
        # the expansion's weights are forward weights, and no way down
        return descend(ladder, climb, at_phi, lambda k: self.state[f"feedback_{k}"].to(climb.phi), False)

    def accompany(self, ladder: Ladder, updates: Updates, readout: Tensor) -> Updates:
        return together(self.state, ladder, updates, readout, self.decay) if self.learned else updates

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        drives, gated = self.attend(ladder, climb, teaching.error, teaching.readout)
        error = teaching.error.to(climb.phi)
        moves = outer(ladder, gated, [climb.below, *climb.states[:-1]], climb.lateral)
        updates = Updates(moves, error.T @ climb.phi / len(error), drives)
        return self.accompany(ladder, updates, teaching.readout)
