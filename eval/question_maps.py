"""Baselines of relevance for a generative model: (B, n) maps of the visual tokens, for the answer's first
token.

All of them are asked where arr-coc is: at the position that writes that token, behind the whole question. The
model is frozen and stays so; gradients are taken with respect to attention probabilities and to nothing else.
Each is from its paper's formula, reduced to a decoder whose visual tokens stand in its own sequence.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.eval.overlay import centre_prior
from arr_coc.eval.relevance_baselines import local_contrast, rolled
from arr_coc.eval.relevance_gradients import chefer_self


@dataclass(frozen=True)
class Prompts:
    """Questions as a LLaVA-shaped model takes them, one picture each.

    Args:
        model: bare. inputs: of its forward pass, (B, T), padded on the left. first: the reference answers'
            first tokens, (B,). where: positions of the visual tokens, (B, n). grid: their rows and columns.
        words: which positions hold the question's words, (B, T) bool.
    """

    model: Any
    inputs: dict[str, Tensor]
    first: Tensor
    where: Tensor
    grid: tuple[int, int]
    words: Tensor

    @property
    def decoder(self) -> Any:
        return self.model.model.language_model

    def placed(self, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The inputs with position ids said, so that tokens under a mask (B, T) go and the others stay."""
        mask = self.inputs["attention_mask"] if mask is None else mask
        positions = (self.inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        return {**self.inputs, "attention_mask": mask, "position_ids": positions}

    def picked(self, row: Tensor) -> Tensor:
        """The visual tokens' part of a row over the sequence, (B, T) -> (B, n)."""
        return row.gather(1, self.where)


Baseline = Callable[[Prompts, torch.Generator], Tensor]


def prompts_of(model: Any, processor: Any, inputs: dict[str, Tensor], answers: list[str]) -> Prompts:
    """Prompts of a LLaVA-shaped model.

    Raises:
        ValueError: where samples do not have the same number of visual tokens, in a square.
    """
    shown = inputs["input_ids"] == model.config.image_token_id
    counts = set(shown.sum(1).tolist())
    side = round(max(counts) ** 0.5)
    if len(counts) > 1 or side * side != max(counts):
        raise ValueError(f"{sorted(counts)} visual tokens: the same square number is needed in every sample")
    where = shown.nonzero()[:, 1].reshape(len(shown), -1)
    tokenizer = processor.tokenizer
    first = torch.tensor([tokenizer(a, add_special_tokens=False)["input_ids"][0] for a in answers])
    behind = (
        torch.arange(shown.shape[1]) > where[:, -1:]
    )  # the question, and the words that call for an answer
    return Prompts(model, inputs, first, where, (side, side), behind & inputs["attention_mask"].bool())


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Inside, the language model's attention is written out, and its probabilities are handed over."""
    parts = {name: getattr(model.config, name) for name in ("text_config", "vision_config")}
    before = {name: part._attn_implementation for name, part in parts.items()}
    model.set_attn_implementation(dict.fromkeys(parts, "eager"))
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class Looked:
    """One pass. maps: A of each block, (B, H, T, T), from the bottom. states: output of each block, (B, T,
    d). logits: at the last position, (B, V)."""

    maps: list[Tensor]
    states: list[Tensor]
    logits: Tensor


def looked(asked: Prompts, graph: bool = False) -> Looked:
    """A pass with everything kept; with `graph` the maps are part of one, whatever the weights require."""

    def leaf(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    states: list[Tensor] = []
    hooks = [
        block.register_forward_hook(
            lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in asked.decoder.layers
    ]
    if graph:
        hooks.append(asked.decoder.layers[0].register_forward_pre_hook(leaf, with_kwargs=True))
    try:
        with eager(asked.model), torch.set_grad_enabled(graph):
            out = asked.model(**asked.placed(), output_attentions=True, use_cache=False, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    return Looked(list(out.attentions), states, out.logits[:, -1])


def random(asked: Prompts, draw: torch.Generator) -> Tensor:
    """Uniform draws."""
    return torch.rand(asked.where.shape, generator=draw)


def uniform(asked: Prompts, draw: torch.Generator) -> Tensor:
    """1 / n."""
    return torch.full(asked.where.shape, 1 / asked.where.shape[1])


def centre(asked: Prompts, draw: torch.Generator) -> Tensor:
    """A Gaussian over the grid, spread a quarter of its side."""
    return torch.from_numpy(centre_prior(asked.grid[0])).float().flatten().expand(asked.where.shape)


def contrast(asked: Prompts, draw: torch.Generator) -> Tensor:
    """`local_contrast` of the patches."""
    return local_contrast(asked.inputs["pixel_values"], asked.grid)


def raw_attention(asked: Prompts, draw: torch.Generator) -> Tensor:
    """The answering position's row of the last block, heads averaged."""
    return asked.picked(looked(asked).maps[-1].mean(1)[:, -1])


def middle_attention(asked: Prompts, draw: torch.Generator) -> Tensor:
    """The same of the block in the middle, where such models look before they write."""
    maps = looked(asked).maps
    return asked.picked(maps[len(maps) // 2].mean(1)[:, -1])


def rollout(asked: Prompts, draw: torch.Generator) -> Tensor:
    """The answering position's row of attention rollout (Abnar & Zuidema, 2020)."""
    return asked.picked(rolled(looked(asked).maps)[:, -1])


def gradient_attention(asked: Prompts, draw: torch.Generator) -> Tensor:
    """Gradient x attention (Chefer et al., 2021): the answering position's row of R <- R + mean_heads((dA *
    A)+) R for the logit of the answer's first token."""
    seen = looked(asked, graph=True)
    score = seen.logits.gather(1, asked.first.unsqueeze(1)).sum()
    gradients = torch.autograd.grad(score, seen.maps)
    with torch.no_grad():
        return asked.picked(chefer_self(seen.maps, list(gradients))[:, -1])


def layer_gradients(asked: Prompts, draw: torch.Generator) -> Tensor:
    """LeGrad-style (Bousselham et al., 2024): mean over blocks and heads of (ds_l / dA_l)+ in the answering
    position's row, s_l the logit of the answer's first token that the model's own head reads off block l."""
    seen = looked(asked, graph=True)
    total = torch.zeros(asked.where.shape)
    head = asked.model.lm_head.weight[asked.first]  # (B, d)
    for a, state in zip(seen.maps, seen.states, strict=True):
        score = (asked.decoder.norm(state[:, -1]) * head).sum()
        (da,) = torch.autograd.grad(score, a, retain_graph=True)
        total = total + asked.picked(da.clamp_min(0).mean(1)[:, -1])
    return total / len(seen.maps)


@torch.no_grad()
def patch_text(asked: Prompts, draw: torch.Generator) -> Tensor:
    """Cosine of each visual token, as the language model is given it, with the mean embedding of the
    question's words."""
    kept: list[Tensor] = []
    hook = asked.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: kept.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        asked.model(**asked.placed(), use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    words = (kept[0] * asked.words.unsqueeze(2)).sum(1) / asked.words.sum(1, keepdim=True)  # (B, d)
    tokens = kept[0].gather(1, asked.where.unsqueeze(2).expand(-1, -1, kept[0].shape[2]))
    return torch.nn.functional.cosine_similarity(tokens, words.unsqueeze(1), dim=2)


@torch.no_grad()
def occlusion(asked: Prompts, draw: torch.Generator, cells: int = 2) -> Tensor:
    """By how much the answer's first token loses log-probability when a cell's tokens are dropped, positions
    kept: a ceiling that is told the cells and pays a pass for each."""

    def said(mask: Tensor | None = None) -> Tensor:
        out = asked.model(**asked.placed(mask), use_cache=False, logits_to_keep=1)
        return out.logits[:, -1].log_softmax(1).gather(1, asked.first.unsqueeze(1))[:, 0]

    whole, found = said(), torch.zeros(asked.where.shape)
    side = asked.grid[0] // cells
    row, column = (
        torch.arange(asked.where.shape[1]) // asked.grid[1],
        torch.arange(asked.where.shape[1]) % asked.grid[1],
    )
    for cell in range(cells * cells):
        inside = (row // side == cell // cells) & (column // side == cell % cells)
        mask = asked.inputs["attention_mask"].clone()
        mask.scatter_(1, asked.where[:, inside], 0)
        found[:, inside] = (whole - said(mask)).unsqueeze(1)
    return found
