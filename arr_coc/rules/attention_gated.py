"""Attention-gated learning: attentional feedback from the answer x reward prediction error x activity.

Feedback starts at the answer and comes down the ladder, g_l = (R_z' e + W_{l+1}' g_{l+1}) * relu'(a_l), and
Delta W_l = + g_l z_{l-1}'. With reward e has one entry, delta = r - q_s at the chosen answer: only what the
choice was made by is told how much better than expected it went. With labels every answer gives feedback,
weighted by its error; then the update is the gradient of -1/2 |t - v|^2. Needs R and W for the way down
(transport) and the scalar delta. Use it when answers are rewarded one at a time, or as the default. Source:
Roelfsema & van Ooyen (2005), AGREL; Pozzi, Bohte & Roelfsema (2020), BrainProp.
"""

from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Teaching, Updates


def descend(ladder: Ladder, climb: Climb, at_phi: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Feedback at phi (B, D) brought down to the drives (B, L * width) and, gated, to each rung (B,
    width)."""
    at_x, at_z, at_hidden = ladder.split(at_phi)
    weights = ladder.weights()
    gated: list[Tensor] = []
    from_above: Tensor | float = 0.0
    for level in reversed(range(ladder.depth)):
        g = (at_z[level] + from_above) * (climb.pre_activations[level] > 0)
        gated.insert(0, g)
        from_above = g @ weights[f"weight_{level}"]
    drives = at_x + (at_hidden * (climb.hidden > 0)) @ ladder.expand_weight
    for level, g in enumerate(gated):
        drives[:, level * ladder.width : (level + 1) * ladder.width] += g
    return drives, gated


class AttentionGated:
    """See the module's docstring."""

    ledger = Ledger(weight_transport=True, global_scalar=True, update_locking=True, signed_errors=True)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        feedback = (teaching.error @ teaching.readout).to(climb.phi)  # (B, D)
        drives, gated = descend(ladder, climb, feedback)
        below = [climb.below, *climb.states[:-1]]
        ladder_updates = {}
        for level, (g, z) in enumerate(zip(gated, below, strict=True)):
            ladder_updates[f"weight_{level}"] = g.T @ z / len(z)
            ladder_updates[f"bias_{level}"] = g.mean(0)
        error = teaching.error.to(climb.phi)
        return Updates(ladder_updates, error.T @ climb.phi / len(error), drive_feedback=drives)
