"""Asked: how relevant each visual token is to a question's words, before a language model has read them.

    m_w(n) = e_w' (C + lambda I)^-1 (v_n - v),   less its mean over n
    z_w(n) = max(0, 1 - tau^2 / s_w^2) m_w(n) / sd_n m_w(n),   s_w^2 = e_w' C (C + lambda I)^-1 e_w

Each word of content, e_w, says where something like it is seen, in units of how much the tokens v_n of this
picture differ along it (C is their covariance: a precision-weighted match). s_w^2 is how much of the word
what tells the tokens apart accounts for (ridge regression's share, 0 to 1), tau^2 its mean over words that
name nothing ("the", "what"): those match by chance, so a word counts as far as it is accounted for better
than they are (the Wiener filter's gain for signal and noise of these variances). Where a model's tokens and
words share no space every match is chance, and a word keeps less than a tenth of its weight on average.

Words are joined as evidence is, by a sum of logs, so "red circle" means both; and so is where the question's
last position looks in an early layer, which knows places:

    log r_n = log (a_n + floor / N) + sum_w z_w(n)

Both terms are averaged over the tokens around each, where the tokens stand in a grid.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from arr_coc.relevance.spread import Grid, gather, on_grid

SHRINK = 4.0  # lambda, in mean eigenvalues of C
FLOOR = 0.01  # of a, over N: a token that is not attended to may be relevant all the same


def word_evidence(
    tokens: Tensor,
    words: Tensor,
    plain: Tensor,
    said: Tensor | None = None,
    there: Tensor | None = None,
    grid: Grid = None,
) -> Tensor:
    """sum_w z_w, (B, N), of mean 0 over the tokens that there are; zeros where no word is given.

    Args:
        tokens: v, (B, N, d).
        words: e, (B, W, d), less the mean of all words of the vocabulary.
        plain: words that name nothing, (P, d), less that mean; without any, tau is 0.
        said: which of the words there are, (B, W) bool; None: all.
        there: which of the tokens there are, (B, N) bool; None: all.
        grid: of the tokens, row by row (see `spread.on_grid`).
    """
    there = torch.ones_like(tokens[..., 0], dtype=torch.bool) if there is None else there
    mask, count = there.unsqueeze(2), there.sum(1)[:, None, None].clamp_min(1)

    def centred(value: Tensor) -> Tensor:  # (B, N, k)
        return (value - (value * mask).sum(1, keepdim=True) / count) * mask

    x = centred(normalize(tokens, dim=2))
    among = x @ x.mT / count  # N x N: fewer than d x d, and the same result
    level = among.diagonal(dim1=1, dim2=2).sum(1) / count.flatten()
    least = torch.finfo(among.dtype).tiny ** 0.5
    among.diagonal(dim1=1, dim2=2).add_((SHRINK * level).clamp_min(least).unsqueeze(1))
    every = torch.cat([plain.to(x).expand(len(x), -1, -1), words.to(x)], 1)
    raw = x @ normalize(every, dim=2).mT  # (B, N, P + W)
    match = centred(_around(torch.cholesky_solve(raw, torch.linalg.cholesky(among)), grid))
    per = (count - 1).clamp_min(1)
    explained = (_around(raw, grid) * match).sum(1, keepdim=True) / per  # (B, 1, P + W)
    chance, signal = explained.split([len(plain), words.shape[1]], 2)
    chance = chance.mean(2, keepdim=True) if len(plain) else torch.zeros_like(chance.sum(2, keepdim=True))
    match = match[..., len(plain) :]
    size = (match.square().sum(1, keepdim=True) / per).sqrt()
    told = (size > 1e-12) & (signal > 0)  # a word that no token differs by says nothing
    told = told if said is None else told & said.unsqueeze(1)
    gain = (1 - chance / signal.clamp_min(1e-24)).clamp_min(0) / size.clamp_min(1e-12)
    return (match * torch.where(told, gain, 0.0)).sum(2)


def asked(
    attention: Tensor | None,
    evidence: Tensor,
    there: Tensor | None = None,
    grid: Grid = None,
) -> Tensor:
    """r, (B, N) in float64; sums to 1, and is 0 where no token is.

    Args:
        attention: a, (B, N), of any sum; None where none can be heard.
        evidence: `word_evidence`. there, grid: as there.
    """
    score = evidence.double()
    there = torch.ones_like(score, dtype=torch.bool) if there is None else there
    if attention is not None:
        share = attention.double().masked_fill(~there, 0.0)
        share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        floor = FLOOR / there.sum(1, keepdim=True).clamp_min(1)
        score = score + _around((share + floor).log().unsqueeze(2), grid).squeeze(2)
    return score.masked_fill(~there, -torch.inf).softmax(1)


def _around(score: Tensor, grid: Grid) -> Tensor:
    """(B, N, k), each averaged over the tokens around it."""
    if grid is None or not score.shape[2]:
        return score
    each = score.shape[2]
    grid = grid.repeat_interleave(each, 0) if isinstance(grid, Tensor) else grid
    return on_grid(gather, score.mT.reshape(-1, score.shape[1]), grid, 1).reshape(len(score), each, -1).mT
