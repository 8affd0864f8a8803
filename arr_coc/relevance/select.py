"""Select: exactly k of N tokens, relevant ones and different ones.

    maximise  (1 - mix) sum_{n in Y} log r_n  +  mix log det S_Y,   |Y| = k

with S the cosines of the tokens (and a ridge). Greedy: each step takes the token that adds most,

    (1 - mix) log r_n + mix log v_n,   v_n = S_nn - S_nY S_YY^-1 S_Yn

where v_n is what of token n the chosen ones do not say already. mix = 0 takes the k most relevant tokens,
mix = 1 the k most different ones. Of equals the first is taken.

Source: Kulesza & Taskar (2012), determinantal point processes; Chen et al. (2018), the fast greedy form.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

RIDGE = 0.01  # of S: more tokens than dimensions may be chosen, and equal ones too
LEAST = -30.0  # nats below the most relevant token: what is less relevant is as good as not


def select(
    embeddings: Tensor, query: Tensor | None, k: int, mix: float = 0.5, relevance: Tensor | None = None
) -> Tensor:
    """Exactly k token numbers, rising, (k,).

    Args:
        embeddings: of the tokens, (N, d).
        query: what is asked for, (d,); relevance is then softmax_n(20 cos(token n, query)).
        k: how many, 1 to N.
        mix: of diversity, in [0, 1].
        relevance: r instead, (N,), not negative, of any sum.

    Raises:
        ValueError, TypeError: for a k or mix that cannot be, shapes that do not fit, NaN or infinity, and
            both or neither of query and relevance.
    """
    _check(embeddings, query, k, mix, relevance)
    count = len(embeddings)
    unit = normalize(embeddings.double(), dim=1)
    if relevance is None:
        assert query is not None
        log_relevance = (20 * unit @ normalize(query.double(), dim=0)).log_softmax(0)
    else:
        log_relevance = relevance.double().clamp_min(torch.finfo(torch.float64).tiny).log()
    log_relevance = (log_relevance - log_relevance.max()).clamp_min(LEAST)
    if k == count:
        return torch.arange(count, device=embeddings.device)
    if mix == 0:
        chosen = log_relevance.argsort(descending=True, stable=True)[:k]
    else:
        chosen = greedy(unit, log_relevance, k, mix)
    return chosen.sort().values


def greedy(unit: Tensor, log_relevance: Tensor, k: int, mix: float) -> Tensor:
    """The k tokens in the order in which they are taken, (k,); see `select`.

    Args:
        unit: (N, d) of length 1, float64. log_relevance: (N,), finite.
    """
    left = unit.new_full((len(unit),), 1 + RIDGE)  # v
    factor = unit.new_zeros(k, len(unit))  # rows of the Cholesky factor of S_Y, over all tokens
    taken = torch.zeros(len(unit), dtype=torch.bool, device=unit.device)
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    for step in range(k):
        gain = (1 - mix) * log_relevance + mix * left.log()
        gain = gain.masked_fill(taken, -torch.inf)
        best = (gain == gain.max()).nonzero()[0, 0]  # the first of equals: argmax promises none
        order[step], taken[best] = best, True
        row = unit @ unit[best]  # (N,)
        row = (row - factor[:step, best] @ factor[:step]) / left[best].sqrt()
        factor[step] = row
        left = (left - row * row).clamp_min(RIDGE * 1e-3)
    return order


def budget(keep: int | float, count: int) -> int:
    """k of a budget: itself, or for a share in (0, 1) that share of the tokens, rounded up.

    Raises:
        ValueError, TypeError: for a budget of no token, or of more than there are.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise TypeError(f"a budget is a number of tokens or a share of them, not {keep!r}")
    if isinstance(keep, float):
        if not 0 < keep <= 1:
            raise ValueError(f"a budget of {keep!r}: a share in (0, 1] or a whole number is needed")
        return max(1, -int(-(keep * count) // 1))
    if not 1 <= keep <= count:
        raise ValueError(f"{keep} tokens are to be kept of {count}: 1 to {count} are needed")
    return keep


def _check(embeddings: Tensor, query: Tensor | None, k: int, mix: float, relevance: Tensor | None) -> None:
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2 or not embeddings.numel():
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise ValueError(f"embeddings are {shape}; (N, d) with at least one token is needed")
    if (query is None) == (relevance is None):
        raise ValueError("one of query and relevance is needed, and not both")
    given = query if relevance is None else relevance
    name, place = ("query", 1) if relevance is None else ("relevance", 0)
    assert given is not None
    if tuple(given.shape) != (embeddings.shape[place],):
        raise ValueError(f"{name} has shape {tuple(given.shape)}; ({embeddings.shape[place]},) is needed")
    for said, tensor in (("embeddings", embeddings), (name, given)):
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{said} hold NaN or infinity")
    if relevance is not None and bool((relevance < 0).any()):
        raise ValueError("relevance is negative somewhere; it is a share of the whole")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k={k!r}: a whole number is needed")
    if not 1 <= k <= len(embeddings):
        raise ValueError(f"k={k}: 1 to {len(embeddings)} tokens can be selected")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix={mix!r}: a number in [0, 1] is needed")
