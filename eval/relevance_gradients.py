"""Gradient baselines: what the score's gradient with respect to attention says, by one backward pass a text.

The tower is frozen and stays so: gradients are taken with respect to attention probabilities
(`explicit_attention`) and to nothing else. Both reduce their papers' rules to a vision tower whose class
token, or pooling head, is compared with a text. They need the whole graph of a forward pass in memory;
arr-coc does not.
"""

import torch
from torch import Tensor

from arr_coc.eval.explicit_attention import Record, explicit
from arr_coc.eval.relevance_baselines import Eye, image_embedding


def chefer_self(maps: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """R <- R + mean_heads((dA * A)+) R, R_0 = I, over the blocks from the bottom (Chefer et al., 2021, eqs.
    5, 6): (B, N, N) from A and its gradients, (B, H, N, N)."""
    n = maps[0].shape[-1]
    result = torch.eye(n, dtype=maps[0].dtype, device=maps[0].device).expand(len(maps[0]), n, n)
    for a, da in zip(maps, gradients, strict=True):
        result = result + (da * a).clamp_min(0).mean(1) @ result
    return result


def normalised(relevance: Tensor) -> Tensor:
    """R^ - I with rows that sum to one, plus I (the same, eqs. 8, 9); a row without relevance stays the
    identity's."""
    one = torch.eye(relevance.shape[-1], dtype=relevance.dtype, device=relevance.device)
    rest = relevance - one
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total.clamp_min(torch.finfo(rest.dtype).tiny), 0) + one


def gradient_attention(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """Gradient x attention (Chefer et al., 2021): the class token's row of `chefer_self` for the cosine to
    the text.

    A pooling head is their bi-modal rule with the pooling query as the other modality, whose own relevance is
    the identity: R_qi = mean_heads((dA * A)+) R^_ii.
    """
    result = []
    with torch.enable_grad(), explicit(eye.body) as record:
        seen = image_embedding(eye, pixels)
        wanted = [*record.maps] if record.pool is None else [*record.maps, record.pool]
        for q in range(texts.shape[1]):
            score = (seen * texts[:, q]).sum()
            again = q + 1 < texts.shape[1]
            gradients = list(torch.autograd.grad(score, wanted, retain_graph=again))
            with torch.no_grad():
                through = chefer_self(record.maps, gradients[: len(record.maps)])
                if record.pool is not None:
                    head = (gradients[-1] * record.pool).clamp_min(0).mean(1)
                    row = (head @ normalised(through))[:, 0]
                else:
                    row = through[:, 0] if through.shape[1] > eye.patches else through.mean(1)
                result.append(row[:, -eye.patches :])
    return torch.stack(result, 1)


def _head(eye: Eye, record: Record, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the tower's head makes of a block's tokens, unit length (B, P), and the pooling map it used, if
    any."""
    head = eye.body.head
    if head.pool is None:
        one = tokens[:, :1] if tokens.shape[1] > eye.patches else tokens.mean(1, keepdim=True)
        return head(one)[:, 0], None
    x = tokens
    for part in head.parts:
        x = part(x)
        x = x[0] if isinstance(x, tuple) else x
    x = x if head.projection is None else head.projection(x)
    return torch.nn.functional.normalize(x.float(), dim=-1), record.pool


def layer_gradients(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """LeGrad-style (Bousselham et al., 2024): mean over blocks, heads and queries of (ds_l / dA_l)+, with s_l
    the cosine of the text and what the head makes of block l's tokens.

    A_l is the block's attention where the class token answers, and the pooling head's over block l's tokens
    where there is one. Every block counts (the paper's code leaves the lower ones out), and no map is
    stretched to 0 and 1.
    """
    depth, total = len(eye.body.tower.blocks), None
    with torch.enable_grad(), explicit(eye.body) as record:
        image_embedding(eye, pixels)
        blocks = list(zip(record.maps, record.tokens, strict=True))
        for a, tokens in blocks:
            seen, pool = _head(eye, record, tokens)
            wanted = a if pool is None else pool
            of_texts = []
            for q in range(texts.shape[1]):
                score = (seen * texts[:, q]).sum()
                (da,) = torch.autograd.grad(score, wanted, retain_graph=True)
                of_texts.append(da.clamp_min(0).mean((1, 2))[:, -eye.patches :])
            layer = torch.stack(of_texts, 1) / depth
            total = layer if total is None else total + layer
    assert total is not None
    return total
