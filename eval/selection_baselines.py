"""Ways to choose k of a picture's visual tokens, from what a model makes of them; arr-coc's own and others'.

Those of papers are written from what the papers say: FastV (Chen et al., 2024), DivPrune (Alvar et al.,
2025), VisionZip (Yang et al., 2025). All of them drop tokens before the language model, so that only the
choice differs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from arr_coc.relevance.mixture import START
from arr_coc.relevance.select import select
from arr_coc.training.scenes import TOKENS

CONTEXTUAL = 10 / 64  # share of VisionZip's tokens that are merged ones


@dataclass(frozen=True)
class Evidence:
    """What is known of one question about one picture of N tokens.

    Args:
        tokens: as the language model is given them, (N, d).
        keys: of the vision tower's last attention, (N, e).
        of_class: attention of its class token there, mean over heads, (N,).
        attention: of the question's last position over the tokens, mean over heads, a row a block, (L, N).
        relevance: arr-coc's, (N,). unworded: the same from attention alone, without the question's words.
        truth: tokens of the tile that is asked about, (N,) bool; None for pictures without tiles.
        seed: of chance.
        context: what tells kinds of questions apart, (C,).
    """

    tokens: Tensor
    keys: Tensor
    of_class: Tensor
    attention: Tensor
    relevance: Tensor
    unworded: Tensor
    truth: Tensor | None
    seed: int
    context: Tensor


@dataclass(frozen=True)
class Chosen:
    """Numbers of the kept tokens, rising, (k,), and what they are where it is not what they were, (k, d)."""

    place: Tensor
    tokens: Tensor | None = None


def top(score: Tensor, k: int) -> Chosen:
    """The k greatest; of equals the first."""
    return Chosen(score.argsort(descending=True, stable=True)[:k].sort().values)


def own(seen: Evidence, k: int, mix: float) -> Chosen:
    """`select` with arr-coc's relevance."""
    return Chosen(select(seen.tokens, None, k, mix, seen.relevance))


def grid_of(k: int) -> tuple[int, int]:
    """Rows and columns of an even grid of k points, as square as k allows."""
    rows = max(r for r in range(1, int(k**0.5) + 1) if k % r == 0)
    return rows, k // rows


def uniform(seen: Evidence, k: int) -> Chosen:
    """An even grid."""
    rows, columns = grid_of(k)
    if columns > TOKENS:  # no such grid: evenly along the rows
        return Chosen(((torch.arange(k) + 0.5) * len(seen.tokens) / k).long())
    down = ((torch.arange(rows) + 0.5) * TOKENS / rows).long()
    across = ((torch.arange(columns) + 0.5) * TOKENS / columns).long()
    return Chosen((down[:, None] * TOKENS + across).flatten().sort().values)


def centre(seen: Evidence, k: int) -> Chosen:
    """The nearest to the middle."""
    y, x = torch.meshgrid(torch.arange(TOKENS), torch.arange(TOKENS), indexing="ij")
    middle = (TOKENS - 1) / 2
    return top(-((y - middle) ** 2 + (x - middle) ** 2).flatten().float(), k)


def random(seen: Evidence, k: int) -> Chosen:
    """By chance."""
    drawn = np.random.default_rng([seen.seed, 9]).permutation(len(seen.tokens))[:k]
    return Chosen(torch.from_numpy(drawn).sort().values)


def divprune(seen: Evidence, k: int) -> Chosen:
    """max-min cosine distance, greedily: first the token whose nearest is farthest, then always the one
    farthest from those chosen."""
    unit = normalize(seen.tokens.double(), dim=1)
    far = 1 - unit @ unit.T
    first = int(far.masked_fill(torch.eye(len(far), dtype=torch.bool), torch.inf).amin(1).argmax())
    chosen, nearest = [first], far[first].clone()
    while len(chosen) < k:
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, far[chosen[-1]])
    return Chosen(torch.tensor(chosen).sort().values)


def visionzip(seen: Evidence, k: int) -> Chosen:
    """Those that the class token attends to most, and merged ones: of the others some, evenly spaced, are
    targets, and the rest are averaged into the target whose key is most like theirs."""
    merged = max(1, round(CONTEXTUAL * k)) if k < len(seen.tokens) else 0
    place = top(seen.of_class, k - merged).place
    rest = torch.ones(len(seen.tokens), dtype=torch.bool)
    rest[place] = False
    rest_place = rest.nonzero().flatten()
    if not merged:
        return Chosen(place)
    step = max(1, len(rest_place) // merged)
    target = torch.arange(0, len(rest_place), step)[:merged]
    other = torch.ones(len(rest_place), dtype=torch.bool)
    other[target] = False
    keys = normalize(seen.keys[rest_place].double(), dim=1)
    nearest = (keys[other] @ keys[target].T).argmax(1)  # (others,)
    tokens = seen.tokens[rest_place]
    sums = tokens[target].clone().index_add(0, nearest, tokens[other])
    count = torch.ones(len(target)).index_add(0, nearest, torch.ones(int(other.sum())))
    made = torch.cat([seen.tokens[place], sums / count[:, None].to(sums)])
    every = torch.cat([place, rest_place[target]])
    order = every.argsort()
    return Chosen(every[order], made[order])


def tile(seen: Evidence, k: int) -> Chosen:
    """The tile that is asked about first, by chance within it; a ceiling, which knows the answer's place."""
    assert seen.truth is not None
    noise = torch.from_numpy(np.random.default_rng([seen.seed, 10]).random(len(seen.tokens)))
    return top(seen.truth.double() + 0.5 * noise, k)


@dataclass(frozen=True)
class Way:
    """A way to choose. about: for tables. sort: "own", "rival" or "ceiling"."""

    about: str
    sort: str
    choose: Callable[[Evidence, int], Chosen]


WAYS: dict[str, Way] = {
    "arr-coc": Way("arr-coc: relevance and diversity", "own", lambda s, k: own(s, k, START)),
    "relevance": Way("relevance alone", "own", lambda s, k: own(s, k, 0.0)),
    "unworded": Way(
        "relevance without the words",
        "own",
        lambda s, k: Chosen(select(s.tokens, None, k, 0.0, s.unworded)),
    ),
    "diversity": Way("diversity alone", "own", lambda s, k: own(s, k, 1.0)),
    "random": Way("random", "rival", random),
    "uniform": Way("uniform grid", "rival", uniform),
    "centre": Way("centre", "rival", centre),
    "attention": Way("attention, all blocks", "rival", lambda s, k: top(s.attention.mean(0), k)),
    "class": Way("class token's attention", "rival", lambda s, k: top(s.of_class, k)),
    "fastv": Way("FastV-style ranking", "rival", lambda s, k: top(s.attention[1], k)),
    "divprune": Way("DivPrune-style", "rival", divprune),
    "visionzip": Way("VisionZip-style", "rival", visionzip),
    "tile": Way("the tile asked about", "ceiling", tile),
}
