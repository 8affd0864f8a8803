"""Baselines of relevance: (B, Q, n) maps of B images for Q texts each, over the n patches of a dual encoder.

Those that never look (random, uniform, centre), that look and do not listen (contrast, attention, rollout),
and that hear the text (patch-text cosine; by gradients: relevance_gradients; by leaving out: occlusion). Each
from its paper's formula. What it costs is measured beside the frozen forward pass by `relevance_exam`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters.dual_encoder import DualEncoderBody, text_embedding
from arr_coc.eval.explicit_attention import Record, explicit
from arr_coc.eval.overlay import centre_prior
from arr_coc.eval.token_dropping import cosines


@dataclass(frozen=True)
class Eye:
    """A frozen dual encoder as baselines see it.

    Args:
        model: bare, CLIP- or SigLIP-shaped. body: what was found in it. grid: rows and columns of its
            patches.
    """

    model: Any
    body: DualEncoderBody
    grid: tuple[int, int]

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]


Baseline = Callable[[Eye, Tensor, Tensor, torch.Generator], Tensor]


def open_eye(model: Any) -> Eye:
    """The eye of a dual encoder whose config says its image and patch size.

    Raises:
        ValueError: for one that does not say.
    """
    vision = model.config.vision_config
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(size, int) or not isinstance(patch, int):
        raise ValueError(
            f"image_size={size!r}, patch_size={patch!r}: whole numbers are needed in vision_config"
        )
    return Eye(model, DualEncoderBody(model, ()), (size // patch, size // patch))


def _even(eye: Eye, maps: Tensor, texts: Tensor) -> Tensor:
    """One map an image, (B, n), for each of its texts, (B, Q, n)."""
    return maps.unsqueeze(1).expand(-1, texts.shape[1], -1)


def random(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """Uniform draws, anew for every text."""
    return torch.rand(len(pixels), texts.shape[1], eye.patches, generator=draw)


def uniform(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """1 / n."""
    return _even(eye, torch.full((len(pixels), eye.patches), 1 / eye.patches), texts)


def centre(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """A Gaussian over the grid, spread a quarter of its side."""
    bell = torch.from_numpy(centre_prior(eye.grid[0])).float().flatten()
    return _even(eye, bell.expand(len(pixels), -1), texts)


def local_contrast(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Standard deviation of the pixels (B, 3, H, W) in each patch, root mean square over colours, (B, n)."""
    h, w = pixels.shape[2] // grid[0], pixels.shape[3] // grid[1]
    patches = pixels.unfold(2, h, h).unfold(3, w, w).flatten(4)  # (B, 3, rows, columns, h w)
    return patches.var(4, unbiased=False).mean(1).sqrt().flatten(1)


def contrast(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """`local_contrast` of the patches."""
    return _even(eye, local_contrast(pixels, eye.grid), texts)


@torch.no_grad()
def _looked(eye: Eye, pixels: Tensor) -> Record:
    with explicit(eye.body) as record:
        eye.model.get_image_features(pixel_values=pixels)
    return record


def pooling_row(eye: Eye, record: Record) -> Tensor:
    """Attention of whatever answers, heads averaged, over all tokens, (B, N): the pooling query's, or the
    class token's in the last block; the mean row where the tower has neither."""
    if record.pool is not None:
        return record.pool.mean(1)[:, 0]
    last = record.maps[-1].mean(1)
    return last[:, 0] if last.shape[1] > eye.patches else last.mean(1)


def raw_attention(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """`pooling_row` over the patches."""
    return _even(eye, pooling_row(eye, _looked(eye, pixels))[:, -eye.patches :], texts)


def rolled(maps: list[Tensor]) -> Tensor:
    """R_l = A~_l R_{l-1}, R_0 = I, A~ = (mean over heads of A + I) / 2, rows normalised (Abnar & Zuidema,
    2020): (B, N, N) from maps (B, H, N, N), the bottom one first."""
    n = maps[0].shape[-1]
    one = torch.eye(n, dtype=maps[0].dtype, device=maps[0].device)
    result = one.expand(len(maps[0]), n, n)
    for a in maps:
        mixed = (a.mean(1) + one) / 2
        result = mixed / mixed.sum(-1, keepdim=True) @ result
    return result


def rollout(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """The class token's row of `rolled`; with a pooling head its row of attention times `rolled`."""
    record = _looked(eye, pixels)
    through = rolled(record.maps)
    if record.pool is not None:
        row = (record.pool.mean(1) @ through)[:, 0]
    else:
        row = through[:, 0] if through.shape[1] > eye.patches else through.mean(1)
    return _even(eye, row[:, -eye.patches :], texts)


@torch.no_grad()
def patch_text(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """Cosine of each projected token of the last block with the text (the model's own head, one token at a
    time).

    Raises:
        ValueError: where the head takes no single token.
    """
    if not eye.body.head.projects:
        raise ValueError(f"no patch-text cosine: {eye.body.head.why}")
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    hook = eye.body.tower.blocks[-1].register_forward_hook(keep)
    try:
        eye.model.get_image_features(pixel_values=pixels)
    finally:
        hook.remove()
    return texts @ eye.body.head(kept[0][:, -eye.patches :]).mT


def patch_text_softmax(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator) -> Tensor:
    """softmax over the patches of `patch_text` at the model's own temperature: the same order, as shares."""
    return (patch_text(eye, pixels, texts, draw) * eye.body.head.scale).softmax(-1)


def occlusion(eye: Eye, pixels: Tensor, texts: Tensor, draw: torch.Generator, cells: int = 3) -> Tensor:
    """s - s without the cell's tokens, for each of cells x cells equal cells, s the cosine to the text: a
    ceiling, as it is told the cells and looks cells^2 + 1 times.

    Raises:
        ValueError: for a grid that the cells do not divide.
    """
    rows, columns = eye.grid
    if rows % cells or columns % cells:
        raise ValueError(f"{rows} x {columns} patches do not divide into {cells} x {cells} cells")
    place = torch.arange(eye.patches).reshape(rows, columns)
    result = torch.empty(len(pixels), texts.shape[1], eye.patches)
    flat = texts.flatten(0, 1)

    def scores(keep: Tensor | None) -> Tensor:
        c = cosines(
            eye.model, pixels, flat, keep, eye.patches
        )  # (B, B Q): its own texts are a block of the row
        own = torch.arange(len(pixels)).unsqueeze(1) * texts.shape[1] + torch.arange(texts.shape[1])
        return c.gather(1, own)

    whole = scores(None)
    for part in place.unflatten(0, (cells, -1)).unflatten(2, (cells, -1)).transpose(1, 2).flatten(0, 1):
        gone = part.flatten()
        keep = torch.ones(eye.patches, dtype=torch.bool)
        keep[gone] = False
        result[:, :, gone] = (whole - scores(place.flatten()[keep].unsqueeze(0))).unsqueeze(2)
    return result


def image_embedding(eye: Eye, pixels: Tensor) -> Tensor:
    """Unit length, (B, P)."""
    return text_embedding(eye.model.get_image_features(pixel_values=pixels))
