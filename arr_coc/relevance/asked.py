"""Asked: how relevant each visual token is to a question, before a language model has read it.

    log r_n = log a_n + sum_w z_w(n),   z_w(n) = standardised over n of  e_w' (C + lambda I)^-1 (v_n - v)

a is the attention of the question's last position over the tokens, in an early layer; it knows places. The
sum runs over the question's words of content: each says where something like its embedding e_w is seen, in
units of how much the tokens v_n of this picture differ along it (C is their covariance: a precision-weighted
match). Words are joined as evidence is, by a sum of logs, so "red circle" means both.

Both terms are averaged over the tokens around each, where the tokens stand in a grid.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from arr_coc.relevance.spread import gather

SHRINK = 4.0  # lambda, in mean eigenvalues of C
FLOOR = 0.01  # of a, over N: a token that is not attended to may be relevant all the same


def word_evidence(tokens: Tensor, words: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """sum_w z_w, (N,) in float64; zeros where no word is given.

    Args:
        tokens: v, (N, d).
        words: e, (W, d), less the mean of all words of the vocabulary.
    """
    unit = normalize(tokens.double(), dim=1)
    centred = unit - unit.mean(0)  # (N, d)
    if not len(words) or len(tokens) < 2:
        return centred.new_zeros(len(tokens))
    among = centred @ centred.T / len(centred)  # N x N: fewer than d x d, and the same result
    level = among.diagonal().mean()
    among.diagonal().add_(SHRINK * level.clamp_min(torch.finfo(among.dtype).tiny))
    match = torch.linalg.solve(among, centred @ normalize(words.double(), dim=1).T).T  # (W, N)
    match = _around(match - match.mean(1, keepdim=True), grid)
    size = match.std(1, keepdim=True)
    # a word that no token differs by says nothing
    return torch.where(size > 1e-12, match / size.clamp_min(1e-12), 0.0).sum(0)


def asked(
    attention: Tensor | None, tokens: Tensor, words: Tensor, grid: tuple[int, int] | None = None
) -> Tensor:
    """r, (N,) in float64; sums to 1.

    Args:
        attention: a, (N,), of any sum; None where none can be heard.
        tokens, words: as in `word_evidence`. grid: of the tokens, row by row.
    """
    evidence = word_evidence(tokens, words, grid)
    if attention is not None:
        count = len(tokens)
        share = attention.double() / attention.double().sum().clamp_min(torch.finfo(torch.float64).tiny)
        evidence = evidence + _around((share + FLOOR / count).log()[None], grid)[0]
    return evidence.softmax(0)


def _around(score: Tensor, grid: tuple[int, int] | None) -> Tensor:
    return score if grid is None else gather(score, grid, 1)
