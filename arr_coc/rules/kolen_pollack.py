"""Learned feedback: weights for the way down that get the same product as those for the way up.

Delta B = Delta W - decay B beside Delta W - decay W: with one step size their difference dies out, whatever B
was at first, and no weight is ever carried over. Source: Kolen & Pollack (1994); Akrout et al. (2019).
"""

from dataclasses import replace

from torch import Tensor

from arr_coc.ladder import Ladder
from arr_coc.rules.protocol import Updates

READOUT = "feedback_readout"


def shapes(ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
    """B for the readout and for every rung that has one above it, by name."""
    kept: dict[str, tuple[int, ...]] = {READOUT: (classes, ladder.phi_width)}
    return kept | {f"feedback_{level}": (ladder.width, ladder.width) for level in range(1, ladder.depth)}


def together(
    state: dict[str, Tensor], ladder: Ladder, updates: Updates, readout: Tensor, decay: float
) -> Updates:
    """Updates in which B follows, and B and what it stands for decay alike.

    Args:
        state: of the rule, with the tensors of `shapes`.
        readout: R, (C, D).
    """
    moves, own = dict(updates.ladder), dict(updates.own)
    for level in range(1, ladder.depth):
        name, back = f"weight_{level}", f"feedback_{level}"
        own[back] = moves[name] - decay * state[back].to(moves[name])
        moves[name] = moves[name] - decay * ladder.weight(level)
    product = updates.readout
    own[READOUT] = product - decay * state[READOUT].to(product)
    return replace(updates, ladder=moves, own=own, readout=product - decay * readout.to(product))
