"""Protection: what is not relevant now does not move.

A synapse of the ladder or of a delta readout moves by how relevant its input is now. What a sample shows
beside the point (the other items of a scene) then leaves the weights alone that carry it, though it drives
the rungs. The relevance weight U needs none: its input is the context, and a context's key already keeps what
is learned under it from other contexts (`relevance.ContextKey`).
"""

from dataclasses import replace

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Updates


def relevant_now(relevance: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
    """p_j = sum_n r_n |f_nj| / max_n |f_nj|, (B, F) in [0, 1]: how much of a feature lies where relevance
    does.

    1 where all relevance is on the tokens that show it most, 0 where those that show it are irrelevant.

    Args:
        relevance: r, sums to 1, (B, N). features: f, (B, N, F). mask: which tokens exist, (B, N).
    """
    size = features.abs()
    if mask is not None:
        size = size * mask.unsqueeze(2)
    here = torch.bmm(relevance.unsqueeze(1), size).squeeze(1)
    return (here / size.amax(1).clamp_min(torch.finfo(size.dtype).tiny)).clamp(max=1.0)


def _at_phi(ladder: Ladder, relevant: Tensor) -> Tensor:
    """The same where phi lives, (..., D): of the drives and of every column's rungs; 1 for the expansion, the
    state and the 1."""
    rungs = relevant[..., -ladder.width :] if ladder.reads == "top" else relevant
    shown = {"top": rungs, "drives": relevant, "all": torch.cat([relevant, rungs], -1)}[ladder.reads]
    frozen = [rungs] * (ladder.columns - 1)
    rest = shown.new_ones(
        *shown.shape[:-1], ladder.phi_width - shown.shape[-1] - len(frozen) * rungs.shape[-1]
    )
    return torch.cat([shown, rest, *frozen], -1)


def protected(ladder: Ladder, updates: Updates, relevant: Tensor, mirrored: bool = False) -> Updates:
    """Each synapse's update times how relevant its input is: columns of W_l and V_l (l > 1) and of R.

    The input of W_1 is what was asked, that of b is 1: both are always relevant. Of a batch, whose updates
    are a mean, it is the mean.

    Args:
        relevant: of `relevant_now`, (B, F).
        mirrored: whether the rule's own `feedback_*` follow the weights that they stand for.
    """
    mean = relevant.mean(0)
    rungs, at_phi = mean.split(ladder.width), _at_phi(ladder, mean)
    moves, own = dict(updates.ladder), dict(updates.own)
    for level in range(1, ladder.depth):
        name, back = f"weight_{level}", f"feedback_{level}"
        moves[name] = moves[name] * rungs[level - 1].to(moves[name])
        if f"lateral_{level}" in moves:
            beside = rungs[level - 1].repeat(ladder.columns - 1)
            moves[f"lateral_{level}"] = moves[f"lateral_{level}"] * beside.to(moves[name])
        if mirrored and back in own:
            own[back] = own[back] * rungs[level - 1].to(own[back])
    if mirrored and "feedback_readout" in own:
        own["feedback_readout"] = own["feedback_readout"] * at_phi.to(own["feedback_readout"])
    readout = updates.readout * at_phi.to(updates.readout)
    return replace(updates, ladder=moves, readout=readout, own=own)


def protected_climb(ladder: Ladder, climb: Climb, relevant: Tensor, phi: bool) -> Climb:
    """States, and phi if it is asked for, times how relevant each is: what a late reward multiplies with.

    The products that it then teaches (`Eligibility.moves`) are those of `protected`, sample by sample.
    """
    rungs = relevant.split(ladder.width, -1)
    states = [z * p.to(z) for z, p in zip(climb.states, rungs, strict=True)]
    below = [rungs[0][:, :0], *(p.repeat(1, ladder.columns - 1) for p in rungs[:-1])]
    lateral = [z * p.to(z) for z, p in zip(climb.lateral, below, strict=False)]
    seen = climb.phi * _at_phi(ladder, relevant).to(climb.phi) if phi else climb.phi
    return replace(climb, states=states, phi=seen, lateral=lateral)
