"""Feedback alignment: errors come down by weights of their own, and the forward weights learn to fit them.

delta_l = (e B_R at rung l + delta_{l+1} B_{l+1}) * f'(a_l), Delta W_l = delta_l' z_{l-1}, Delta R = e' phi.
`mode`: "fa": B fixed and random. "dfa": delta_l = (e D_l) * f'(a_l), straight from the answer to every rung;
"sdfa": with sign(e); "drtp": with the target t for e, which no rung has to wait for, but which never shrinks:
f should be tanh. "usf", "brsf", "frsf": B has the signs of the forward weights, and one size for all, sizes
drawn anew at every step, or sizes drawn once. "kp" (Kolen-Pollack): B starts at random, gets the same product
as W, and both decay, so that they grow alike. Needs a way down that is not the way up: only the sign modes
transport weights, one bit of each. Use "kp" or a sign mode where depth matters, a direct mode where nothing
may wait for the rung above. Source: Lillicrap et al. (2016); Nokland (2016); Liao, Leibo & Poggio (2016);
Moskovitz, Litwin-Kumar & Abbott (2018); Akrout et al. (2019); Frenkel, Lefebvre & Bol (2021).
"""

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.kolen_pollack import READOUT, shapes, together
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, descend, outer, to_drives

DIRECT, SIGNS = ("dfa", "sdfa", "drtp"), ("usf", "brsf", "frsf")
MODES = ("fa", *DIRECT, *SIGNS, "kp")


class FeedbackAlignment(Rule):
    """See the module's docstring. All random weights have standard deviation 1 / sqrt(fan-in) of those that
    they stand for.

    Args:
        mode: one of MODES.
        decay: of W and B, and of R and its B, under "kp".
        feedback_start: size of the first draw of B, over 1 / sqrt(fan-in). Under "kp" 0 is better where steps
            are Adam's: their size does not wait until feedback fits.
    """

    per_class = (READOUT, *(f"direct_{level}" for level in range(64)))
    mirrored = True

    def __init__(
        self, mode: str = "fa", decay: float = 3e-3, feedback_start: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__(seed)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: possible are {', '.join(map(repr, MODES))}")
        if not 0 <= decay < float("inf"):
            raise ValueError(f"decay={decay!r}: a finite number of at least 0 is needed")
        if not 0 <= feedback_start < float("inf"):
            raise ValueError(f"feedback_start={feedback_start!r}: a finite number of at least 0 is needed")
        self.mode, self.decay, self.feedback_start = mode, decay, feedback_start

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            weight_transport=self.mode in SIGNS,
            error_vector_broadcast=self.mode in DIRECT,  # drtp: of the error, the target alone
            update_locking=self.mode != "drtp",
            signed_errors=True,
        )

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        if self.mode in ("usf", "brsf"):
            return {}
        if self.mode not in DIRECT:
            return shapes(ladder, classes)
        kept: dict[str, tuple[int, ...]] = {READOUT: (classes, ladder.phi_width)}
        return kept | {f"direct_{level}": (classes, ladder.width) for level in range(ladder.depth)}

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw) * (self.feedback_start / shape[-1] ** 0.5)

    def _back(self, name: str, forward: Tensor, step: int) -> Tensor:
        """B for a forward matrix, (out, in) like it."""
        if self.mode not in SIGNS:
            return self.state[name].to(forward)
        size = forward.shape[-1] ** -0.5
        if self.mode == "usf":
            return size * forward.sign()
        if self.mode == "frsf":
            return self.state[name].to(forward).abs() * forward.sign()
        drawn = torch.randn(forward.shape, generator=self.draw(name, step), dtype=forward.dtype)
        return drawn.to(forward.device).abs() * size * forward.sign()

    def attend(
        self, ladder: Ladder, climb: Climb, error: Tensor, readout: Tensor, step: int = 0
    ) -> tuple[Tensor, list[Tensor]]:
        error = error.to(climb.phi)
        at_phi = error @ self._back(READOUT, readout.to(climb.phi), step)
        if self.mode not in DIRECT:
            # the expansion's weights are forward weights, and no way down
            return descend(
                ladder, climb, at_phi, lambda k: self._back(f"feedback_{k}", ladder.weight(k), step), False
            )
        _, _, at_hidden = ladder.split(at_phi)
        at_hidden.zero_()  # a part of at_phi
        post = [
            error @ self.state[f"direct_{level}"].to(error) * ladder.activation.slope(a)
            for level, a in enumerate(climb.pre_activations)
        ]
        return to_drives(ladder, climb, at_phi, post), post

    def accompany(self, ladder: Ladder, updates: Updates, readout: Tensor) -> Updates:
        if self.mode != "kp":
            return updates
        return together(self.state, ladder, updates, readout, self.decay)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        taught = {"sdfa": error.sign(), "drtp": teaching.target.to(error)}.get(self.mode, error)
        drives, post = self.attend(ladder, climb, taught, teaching.readout, teaching.step)
        moves = outer(ladder, post, [climb.below, *climb.states[:-1]], climb.lateral)
        updates = Updates(moves, error.T @ climb.phi / len(error), drives)
        return self.accompany(ladder, updates, teaching.readout)
