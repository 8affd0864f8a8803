"""Attention-gated learning: attentional feedback from the answer x reward prediction error x activity.

Feedback starts at the answer and comes down the ladder, g_l = (R_z' e + W_{l+1}' g_{l+1}) * f'(a_l), and
Delta W_l = + g_l z_{l-1}'. With reward e has one entry, delta = r - q_s at the chosen answer: only what the
choice was made by is told how much better than expected it went. With labels every answer gives feedback,
weighted by its error; then the update is the gradient of -1/2 |t - v|^2. Needs R and W for the way down
(transport) and the scalar delta. Use it when answers are rewarded one at a time, or as the default. Source:
Roelfsema & van Ooyen (2005), AGREL; Pozzi, Bohte & Roelfsema (2020), BrainProp.
"""

from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, outer, to_drives


def descend(ladder: Ladder, climb: Climb, at_phi: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Feedback at phi (B, D) brought down to the drives (B, L * width) and, gated, to each rung (B,
    width)."""
    _, at_z, _ = ladder.split(at_phi)
    gated: list[Tensor] = []
    from_above: Tensor | float = 0.0
    for level in reversed(range(ladder.depth)):
        g = (at_z[level] + from_above) * ladder.activation.slope(climb.pre_activations[level])
        gated.insert(0, g)
        from_above = g @ ladder.weight(level)
    return to_drives(ladder, climb, at_phi, gated), gated


class AttentionGated(Rule):
    """See the module's docstring."""

    @property
    def ledger(self) -> Ledger:
        return Ledger(weight_transport=True, global_scalar=True, update_locking=True, signed_errors=True)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        feedback = (teaching.error @ teaching.readout).to(climb.phi)  # (B, D)
        drives, gated = descend(ladder, climb, feedback)
        error = teaching.error.to(climb.phi)
        below = [climb.below, *climb.states[:-1]]
        return Updates(outer(ladder, gated, below), error.T @ climb.phi / len(error), drive_feedback=drives)
