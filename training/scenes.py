"""A scene is a grid of items on a background; which tokens show which item is known exactly.

96 px at patch 8 is a 12 x 12 token grid, so the cells of 1x1, 2x2, 3x3 and 4x4 scenes are 12, 6, 4 and 3
tokens wide and no token is shared by two cells. The same `tint` colours digits, shapes and emoji silhouettes
in training and garments in the streams, so a colour word means the same there. Everything is deterministic
given a numpy Generator.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 96  # px
TOKENS = 12  # tokens along a side, patch 8
GRIDS = (1, 2, 3, 4)

# The first six are the cues of the streams.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 25, 30),
    "green": (30, 170, 50),
    "blue": (45, 75, 245),
    "yellow": (255, 225, 25),
    "pink": (255, 105, 190),
    "cyan": (0, 225, 235),
    "orange": (255, 135, 0),
    "purple": (140, 40, 200),
    "white": (245, 245, 245),
}
CUE_COLOURS = tuple(COLOURS)[:6]

# The first phrase of a cell is its usual name; the others are said as well.
_TWO = (
    ("top left", "upper left"),
    ("top right", "upper right"),
    ("bottom left", "lower left"),
    ("bottom right", "lower right"),
)
_THREE = (
    _TWO[0],
    ("top centre", "top middle", "top center"),
    _TWO[1],
    ("middle left", "left middle", "centre left"),
    ("centre", "middle", "center"),
    ("middle right", "right middle", "centre right"),
    _TWO[2],
    ("bottom centre", "bottom middle", "bottom center"),
    _TWO[3],
)
PLACES: dict[int, tuple[tuple[str, ...], ...]] = {2: _TWO, 3: _THREE}
_ROWS = {
    2: (("top", "top row"), ("bottom", "bottom row")),
    3: (("top row",), ("middle row",), ("bottom row",)),
}
_COLUMNS = {
    2: (("left", "left column"), ("right", "right column")),
    3: (("left column",), ("middle column",), ("right column",)),
}


def tint(grey: np.ndarray, colour: str | tuple[int, int, int]) -> np.ndarray:
    """rgb = colour * (.3 + .7 g), alpha = min(1, 4 g): the intensity g shades the colour; what is black is
    transparent.

    Args:
        grey: (H, W) uint8 intensities, dark background (as in Fashion-MNIST).
        colour: a name in COLOURS, or an RGB triple.
    Returns:
        (H, W, 4) uint8 RGBA.
    Raises:
        KeyError: for a colour name that COLOURS does not have.
        ValueError: if grey is no 2-d uint8 array.
    """
    if grey.ndim != 2 or grey.dtype != np.uint8:
        raise ValueError(f"tint takes a (H, W) uint8 array, not {grey.dtype} of shape {grey.shape}")
    if isinstance(colour, str):
        if colour not in COLOURS:
            raise KeyError(f"no colour {colour!r}; there are {', '.join(COLOURS)}")
        colour = COLOURS[colour]
    g = grey.astype(np.float32) / 255
    rgba = np.empty((*grey.shape, 4), np.uint8)
    rgba[..., :3] = np.asarray(colour, np.float32) * (0.3 + 0.7 * g)[..., None]
    rgba[..., 3] = np.minimum(g * 4, 1) * 255
    return rgba


def cell_mask(grid: int, cell: int) -> np.ndarray:
    """The tokens of a cell (row-major) as a (12, 12) bool array."""
    if grid not in GRIDS or not 0 <= cell < grid * grid:
        raise ValueError(f"grid is one of {GRIDS} and cell below grid^2; given grid {grid}, cell {cell}")
    width = TOKENS // grid
    row, column = divmod(cell, grid)
    mask = np.zeros((TOKENS, TOKENS), bool)
    mask[row * width : (row + 1) * width, column * width : (column + 1) * width] = True
    return mask


def place_phrases(grid: int) -> dict[str, np.ndarray]:
    """Every place phrase of a 2x2 or 3x3 grid and the tokens it names, rows and columns included: phrase ->
    (12, 12)."""
    phrases: dict[str, np.ndarray] = {
        text: cell_mask(grid, cell) for cell, texts in enumerate(PLACES[grid]) for text in texts
    }
    for line in range(grid):
        row: np.ndarray = np.any([cell_mask(grid, line * grid + k) for k in range(grid)], axis=0)
        phrases |= dict.fromkeys(_ROWS[grid][line], row) | dict.fromkeys(_COLUMNS[grid][line], row.T)
    return phrases


def background(rng: np.random.Generator, colour: tuple[int, int, int] | None = None) -> np.ndarray:
    """A muted background, (96, 96, 3) uint8: plain, a gradient, stripes, or smooth or fine noise.

    Muted (low saturation, any lightness), so that a colour word is about an item.
    """
    if colour is None:
        light = rng.uniform(10, 245)
        base = np.clip(light + rng.normal(0, 14, 3), 0, 255)
    else:
        base = np.asarray(colour, float)
    kind = rng.integers(5)
    if kind == 0:  # plain
        field: np.ndarray = np.zeros((SIDE, SIDE, 1), np.float32)
    elif kind == 1:  # gradient
        angle = rng.uniform(0, 2 * np.pi)
        y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
        field = ((np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(5, 40))[..., None]
    elif kind == 2:  # stripes
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 30)
        y, x = np.mgrid[:SIDE, :SIDE]
        wave = np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period)
        field = (wave * rng.uniform(4, 22))[..., None]
    elif kind == 3:  # smooth noise
        coarse = Image.fromarray(rng.normal(0, rng.uniform(5, 25), (7, 7)).astype(np.float32))
        field = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]
    else:  # fine noise
        field = rng.normal(0, rng.uniform(2, 12), (SIDE, SIDE, 1))
    return np.clip(base + field, 0, 255).astype(np.uint8)


def compose(
    cells: Sequence[np.ndarray | None],
    grid: int,
    background: np.ndarray | tuple[int, int, int] = (24, 24, 24),
    rng: np.random.Generator | None = None,
    jitter: bool = True,
) -> tuple[Image.Image, np.ndarray]:
    """Pastes grid^2 items, row by row, each inside its own cell.

    Args:
        cells: grid^2 RGBA uint8 arrays (h, w, 4), or None for a blank cell.
        grid: 1, 2, 3 or 4.
        background: an RGB triple or a (96, 96, 3) uint8 array, see `background`.
        rng: draws scale (.72 to 1 of the cell) and shift; needed when jitter is on.
        jitter: False centres every item at .92 of its cell.
    Returns:
        The 96 px RGB scene, and masks (grid^2, 12, 12) bool: each item's tokens, none for a blank cell.
    Raises:
        ValueError: wrong grid, number of cells, array, or jitter without rng.
    """
    if grid not in GRIDS or len(cells) != grid * grid:
        raise ValueError(
            f"grid is one of {GRIDS} with grid^2 cells; given grid {grid} and {len(cells)} cells"
        )
    if jitter and rng is None:
        raise ValueError("jitter needs an rng (numpy.random.Generator); or pass jitter=False")
    if isinstance(background, tuple):
        scene = Image.new("RGB", (SIDE, SIDE), background)
    else:
        scene = Image.fromarray(background)
    width = SIDE // grid
    masks = np.zeros((grid * grid, TOKENS, TOKENS), bool)
    for cell, item in enumerate(cells):
        if item is None:
            continue
        if item.ndim != 3 or item.shape[2] != 4 or item.dtype != np.uint8:
            raise ValueError(
                f"cell {cell}: an item is a (h, w, 4) uint8 array, not {item.dtype} {item.shape}"
            )
        row, column = divmod(cell, grid)
        if jitter and rng is not None:
            size = round(width * rng.uniform(0.72, 1.0))
            dx, dy = rng.integers(0, width - size + 1, 2)
        else:
            size = round(width * 0.92)
            dx = dy = (width - size) // 2
        art = Image.fromarray(item).resize((size, size), Image.Resampling.BILINEAR)
        scene.paste(art, (int(column * width + dx), int(row * width + dy)), art)
        masks[cell] = cell_mask(grid, cell)
    return scene, masks
