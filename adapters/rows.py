"""Rows of attention: what some queries make of all keys, computed beside whatever kernel the model uses."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arr_coc.relevance.score import SMALLEST

EARLY = 1  # the block whose attention says where a question looks, as in FastV (Chen et al., 2024)


def row_logits(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    scaling: float,
    causal: bool,
    softcap: float | None = None,
) -> Tensor:
    """q k' scaling + mask of the chosen query rows, in float32, -inf where a row sees no key.

    Args:
        query: (B, H, Q, d).
        key: (B, H', K, d) with H a multiple of H' (grouped heads).
        mask: additive or boolean (B or 1, 1, Q, K), a key mask (B, K), or None.
        rows: (R,), indices into Q; negative ones count from the end.
        causal: with no mask, whether row t sees the keys up to t only.
        softcap: s, where logits go through s tanh(logits / s) first.

    Returns:
        (B, H, R, K).
    """
    rows = rows.to(query.device) % query.shape[2]
    q = query[:, :, rows].float()  # (B, H, R, d)
    groups = query.shape[1] // key.shape[1]
    k = key.float() if groups == 1 else key.float().repeat_interleave(groups, 1)
    logits = q @ k.mT * scaling  # (B, H, R, K)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None and mask.dim() == 2:
        logits = logits.masked_fill(~mask.bool()[:, None, None, : key.shape[2]], -torch.inf)
    elif mask is not None:
        picked = mask[:, :, rows, : key.shape[2]]
        logits = (
            logits.masked_fill(~picked, -torch.inf) if picked.dtype == torch.bool else logits + picked.float()
        )
    if causal and (mask is None or mask.dim() == 2) and query.shape[2] > 1:
        position = rows + key.shape[2] - query.shape[2]
        later = torch.arange(key.shape[2], device=query.device)[None] > position[:, None]
        logits = logits.masked_fill(later, -torch.inf)
    return logits


def attention_rows(*asked: Any) -> Tensor:
    """softmax of `row_logits`, mean over heads, (B, R, K); 0 for a row that sees nothing."""
    return torch.nan_to_num(row_logits(*asked).softmax(-1)).mean(1)


def steered_rows(
    bias: "Bias",
    output: Tensor,
    weights: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *how: Any,
) -> tuple[Tensor, Tensor | None]:
    """A kernel's output (B, Q, H, d) and weights (B, H, Q, K) with the steered rows computed anew, as
    softmax(logits + bias) v; all other rows stay the kernel's own, bit for bit."""
    rows, added, steered = bias.over(query.shape[0], query.shape[2], key.shape[2])
    if not len(rows):
        return output, weights
    logits = row_logits(query, key, mask, rows, *how) + added.to(query.device)
    attention = torch.nan_to_num(logits.softmax(-1))  # (B, H, R, K)
    values = value.float().repeat_interleave(query.shape[1] // value.shape[1], 1)
    pooled = (attention @ values).transpose(1, 2).to(output)  # (B, R, H, d)
    rows, chosen = rows.to(output.device), steered.to(output.device)[:, :, None, None]
    output = output.clone()
    output[:, rows] = torch.where(chosen, pooled, output[:, rows])
    if weights is not None:
        weights = weights.clone()
        new = torch.where(chosen.transpose(1, 2), attention.to(weights), weights[:, :, rows])
        weights[:, :, rows] = new
    return output, weights


@dataclass(frozen=True)
class Bias:
    """What is added to the logits of some rows at the keys of visual tokens.

    Args:
        added: (B, N).
        place: of the N tokens among the keys, (B, N); None: they are the last ones.
        last: position behind which rows are steered, (B,); None: the first row alone, a class token's.
        length: of the sequence that `last` counts in; a shorter one goes on from it.
    """

    added: Tensor
    place: Tensor | None = None
    last: Tensor | None = None
    length: int = 0

    def over(self, batch: int, queries: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, (R,); what is added to their logits, (B, 1, R, K); which of them are steered, (B, R)."""
        each = batch // len(self.added)  # beams
        added = self.added.repeat_interleave(each, 0)
        if self.place is None:
            if keys <= added.shape[1]:
                raise ValueError("no class token pools here, so there is no row of attention to steer")
            place = torch.arange(keys - added.shape[1], keys, device=added.device).expand_as(added)
        else:
            place = self.place.repeat_interleave(each, 0)
        row = torch.zeros(batch, keys, device=added.device).scatter_add(1, place, added)
        if self.last is None:
            steered = torch.ones(batch, 1, dtype=torch.bool, device=added.device)
            return torch.zeros(1, dtype=torch.long), row[:, None, None], steered
        last = self.last.repeat_interleave(each, 0) if queries >= self.length else torch.full((batch,), -1)
        rows = torch.arange(int(last.min()) + 1, queries)
        steered = rows.to(added.device) > last.to(added.device).unsqueeze(1)
        return rows, row[:, None, None] * steered[:, None, :, None], steered


def agreed(rows: Tensor) -> Tensor:
    """One row of attention for the rows of several blocks, (L, ...) -> (...): their geometric mean.

    Attention is a precision, and relevance adds logs of precisions: what several blocks look at counts for
    more than what one of them looks at and another does not.
    """
    return rows[0] if len(rows) == 1 else rows.clamp_min(SMALLEST).log().mean(0).exp()
