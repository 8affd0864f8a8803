"""Relevance as pictures: one colour scale for every map, so that two of them can be compared by eye."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

TOP = 4.0  # times an even spread: where the colour scale ends


def heat(relevance: np.ndarray, top: float = TOP) -> np.ndarray:
    """RGB of a map, (h, w, 3) uint8: relevance over an even spread, 0 to `top`, on magma."""
    share = relevance * relevance.size / top
    return (colormaps["magma"](share.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)


def fitted(grid: Sequence[int], side: int) -> tuple[int, int]:
    """Width and height of a picture with the shape of a grid (h, w), its longer side `side` px."""
    height, width = grid
    return max(side * width // max(grid), 1), max(side * height // max(grid), 1)


def overlay(
    image: Image.Image, relevance: np.ndarray, truth: np.ndarray | None = None, side: int = 192
) -> Image.Image:
    """The image under its relevance, tokens upsampled by nearest; the border of the true tokens in white.

    Args:
        relevance: (h, w), not negative, sums to 1.
        truth: (h, w) bool.
        side: the longer one of the picture, px; it has the shape of the grid.

    Raises:
        ValueError: for a map that is no finite matrix.
    """
    if relevance.ndim != 2 or not np.isfinite(relevance).all():
        raise ValueError(f"relevance of shape {relevance.shape} is no finite (h, w) map")
    size = fitted(relevance.shape, side)
    base = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(float)
    warm = heat(relevance)
    colour = np.asarray(Image.fromarray(warm).resize(size, Image.Resampling.NEAREST)).astype(float)
    mixed = Image.fromarray((0.4 * base + 0.6 * colour).round().astype(np.uint8))
    if truth is not None and truth.any():
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        across, down = size[0] / truth.shape[1], size[1] / truth.shape[0]
        box = [columns[0] * across, rows[0] * down]
        box += [(columns[-1] + 1) * across - 1, (rows[-1] + 1) * down - 1]
        ImageDraw.Draw(mixed).rectangle(box, outline=(255, 255, 255), width=2)
    return mixed


def colour_bar(width: int = 192, height: int = 12) -> Image.Image:
    """The scale itself, from 0 to TOP times an even spread."""
    ramp = np.linspace(0, TOP, width)[None].repeat(height, 0)
    return Image.fromarray(heat(ramp / ramp.size))


def centre_prior(side: int) -> np.ndarray:
    """A Gaussian over the grid, spread a quarter of its side: what a map scores that never looks, (side,
    side)."""
    place = np.arange(side) - (side - 1) / 2
    bell = np.exp(-(place**2) / (2 * (side / 4) ** 2))
    both = np.outer(bell, bell)
    return both / both.sum()


def data_uri(image: Image.Image) -> str:
    """A picture as text that a page can hold."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
