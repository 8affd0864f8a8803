"""The grid that visual tokens stand in, where they stand in one."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

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


def _patches(model: Any, inputs: Mapping[str, Any], batch: int) -> tuple[int, int] | None:
    """Rows and columns of the patches of each picture, if a sample has one and all are alike."""
    for name in ("image_grid_thw", "image_grid_hw", "spatial_shapes"):
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
