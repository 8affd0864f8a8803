"""The grid that visual tokens stand in, where they stand in one."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_SHAPES = ("image_grid_thw", "image_grid_hw", "spatial_shapes")
_QUERIES = ("qformer_config", "perceiver_config", "resampler_config")


def grid_of(model: Any, inputs: Mapping[str, Any], batch: int, n: int) -> tuple[int, int] | None:
    """Rows and columns of n tokens a sample, row by row; None where there is no such grid.

    Patches stand in the grid of the picture; a projector may merge f x f of them into one token. Tokens of
    learned queries (Q-former, perceiver) stand nowhere, and neither do those of several pictures.
    """
    if any(getattr(model.config, name, None) is not None for name in _QUERIES):
        return None
    patches = _patches(model, inputs, batch)
    if patches is None or min(patches) < 1:
        return None
    factor = round((patches[0] * patches[1] / n) ** 0.5)
    if not factor:
        return None
    grid = patches[0] // factor, patches[1] // factor
    return grid if grid[0] * grid[1] == n else None


def grids_of(
    model: Any, inputs: Mapping[str, Any], mask: Tensor, there: Tensor | None = None
) -> Tensor | None:
    """Rows and columns of each sample's tokens, (B, 2), whatever the others show; None where none stand in a
    grid, and 0 for a sample whose do not, or of whose some are missing.

    Args:
        mask: which tokens exist, (B, N) bool: of a grid the first ones.
        there: which there were, where some were dropped since; by default `mask`.
    """
    before = (mask if there is None else there).sum(1).tolist()
    own = {name: _rows_of(inputs[name], before) for name in _SHAPES if isinstance(inputs.get(name), Tensor)}
    found = mask.new_zeros(len(mask), 2, dtype=torch.long)
    pixels = inputs.get("pixel_values")
    if not own and isinstance(pixels, Tensor) and len(mask) % len(pixels) == 0:
        inputs = {**inputs, "pixel_values": pixels[:1]}  # all are of one size
    for b, count in enumerate(before):
        mine = {**inputs, **{name: inputs[name][rows[b]] for name, rows in own.items() if rows is not None}}
        grid = grid_of(model, mine, 1, max(count, 1))
        size = 0 if grid is None else grid[0] * grid[1]
        if grid is not None and bool(mask[b, :size].all()) and size == int(mask[b].sum()):
            found[b] = torch.tensor(grid)
    return found if bool(found.any()) else None


def _rows_of(shapes: Tensor, counts: list[int]) -> list[slice] | None:
    """Which of the pictures' shapes are each sample's, whose tokens are so many; None where it cannot be
    told."""
    many, batch = len(shapes), len(counts)
    if batch % many == 0:  # one a sample, or one for the beams of a sample
        return [slice(b * many // batch, b * many // batch + 1) for b in range(batch)]
    sizes, start, found = shapes.prod(1).tolist(), 0, []
    patches = sum(sizes) / max(sum(counts), 1)  # that become one token
    for count in counts:
        end, size = start, 0.0
        while end < many and size < count * patches - 0.5:
            size, end = size + sizes[end], end + 1
        if abs(size - count * patches) > 0.5:
            return None
        found.append(slice(start, end))
        start = end
    return found


def _patches(model: Any, inputs: Mapping[str, Any], batch: int) -> tuple[int, int] | None:
    """Rows and columns of the patches of each picture, if a sample has one and all are alike."""
    for name in _SHAPES:
        shapes = inputs.get(name)
        if isinstance(shapes, Tensor):
            same = batch % len(shapes) == 0 and bool((shapes == shapes[0]).all())
            one = shapes.shape[1] == 2 or int(shapes[0, 0]) == 1
            return (int(shapes[0, -2]), int(shapes[0, -1])) if same and one else None
    vision = getattr(model.config, "vision_config", None)
    patch = getattr(vision, "patch_size", None)
    pixels = inputs.get("pixel_values")
    if not isinstance(patch, int) or not isinstance(pixels, Tensor):
        return None
    if pixels.dim() != 4 or batch % len(pixels):
        return None
    return pixels.shape[-2] // patch, pixels.shape[-1] // patch
