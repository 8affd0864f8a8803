"""Attention written out, so that its probabilities can be read, differentiated and changed.

A = softmax(q k' s + mask), o = A v, for every attention of a vision tower's blocks and for the head that
pools. Inside `explicit`, each keeps its A (B, H, Q, K) as part of the graph; weights need no gradient for
that: the first A is made a leaf. Configs and hooks are as before afterwards, and no parameter's requires_grad
is touched.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import AttentionInterface

from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.structure import attention_in

_NAME = "arr_coc_explicit"
Change = Callable[[int, Tensor], Tensor]


@dataclass
class Record:
    """What one pass through a tower left behind.

    Args:
        maps: A of each block, (B, H, N, N), from the bottom.
        tokens: output of each block, (B, N, d).
        pool: A of the pooling head, (B, H, 1, N); None where the class token answers.
        change: (block number, A) -> A, for perturbations by hand; the pooling head's number is -1.
    """

    maps: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    pool: Tensor | None = None
    change: Change | None = None

    def keep(self, block: int, probabilities: Tensor) -> Tensor:
        """Take a map in: as a leaf where no gradient reaches it and some are recorded."""
        if torch.is_grad_enabled() and not probabilities.requires_grad:
            probabilities = probabilities.detach().requires_grad_()
        return probabilities if self.change is None else self.change(block, probabilities)


def multihead(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """q, k, v and A of a batch-first nn.MultiheadAttention over `key` as its own value: A (B, H, Q, K), v (B,
    H, K, d).

    Raises:
        ValueError: for one with separate widths, added keys or another layout.
    """
    if module.in_proj_weight is None or module.bias_k is not None or not module.batch_first:
        raise ValueError("a pooling head of one width, batch first and without added keys is needed")
    width, heads = module.embed_dim, module.num_heads
    bias = module.in_proj_bias
    biases = (None,) * 3 if bias is None else bias.split(width)
    given = zip((query, key, key), module.in_proj_weight.split(width), biases, strict=True)
    q, k, v = (F.linear(x, w, b).unflatten(2, (heads, -1)).transpose(1, 2) for x, w, b in given)
    return (q @ k.mT * (width // heads) ** -0.5).softmax(-1), v


def pooled(module: nn.MultiheadAttention, probabilities: Tensor, value: Tensor) -> Tensor:
    """out_proj of A v, heads side by side, (B, Q, d)."""
    return module.out_proj((probabilities @ value).transpose(1, 2).flatten(2))


@contextmanager
def explicit(body: DualEncoderBody, change: Change | None = None) -> Iterator[Record]:
    """Inside, passes through the body's vision tower are recorded; the last one counts.

    Args:
        body: of a dual encoder (CLIP- or SigLIP-shaped): one attention a block, dispatched by transformers.
        change: see `Record`.

    Raises:
        ValueError: for blocks without exactly one attention module that can be written out.
        RuntimeError: inside another of its kind.
    """
    if _NAME in AttentionInterface._global_mapping:
        raise RuntimeError("attention is written out already: one tower at a time")
    record = Record(change=change)
    modules: list[Any] = []
    for place, block in enumerate(body.tower.blocks):
        found = [m for _, m in attention_in(block)]
        if len(found) != 1:
            raise ValueError(
                f"block {place} has {len(found)} attention modules; one that dispatches is needed"
            )
        modules += found
    numbers = {module: place for place, module in enumerate(modules)}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        logits = query @ key.mT * (kwargs.get("scaling") or query.shape[-1] ** -0.5)
        logits = logits if attention_mask is None else logits + attention_mask
        place = numbers[module]
        if place == 0:
            record.maps.clear()
            record.tokens.clear()
        probabilities = record.keep(place, logits.softmax(-1))
        record.maps.append(probabilities)
        return (probabilities @ value).transpose(1, 2).contiguous(), probabilities

    def after_block(module: nn.Module, args: Any, output: Any) -> None:
        record.tokens.append(output[0] if isinstance(output, tuple) else output)

    def after_pool(module: Any, args: Any, output: Any) -> Any:
        probabilities, value = multihead(module, args[0], args[1])
        record.pool = record.keep(-1, probabilities)
        return pooled(module, record.pool, value), record.pool.mean(1)

    before = [(module, module.config) for module in modules]
    hooks: list[Any] = []
    try:
        AttentionInterface.register(_NAME, attend)
        for module in modules:
            module.config = copy.copy(module.config)
            module.config._attn_implementation_internal = _NAME  # the setter would change the sub-configs
        hooks += [block.register_forward_hook(after_block) for block in body.tower.blocks]
        if body.head.pool is not None:
            hooks.append(body.head.pool.register_forward_hook(after_pool))
        yield record
    finally:
        for hook in hooks:
            hook.remove()
        for module, config in before:
            module.config = config
        AttentionInterface._global_mapping.pop(_NAME, None)
