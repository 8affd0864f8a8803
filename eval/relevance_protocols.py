"""P1, mosaic referral: every cell of a mosaic of distinct items is asked for by its item's text.

A Latin square of m items is m mosaics of m cells in which every item stands in every cell once; so no cell is
easier than another, and a map that ignores the question scores chance exactly on every one of them. Two
questions beside those are about items that are not there. At 96 px and patch 8 the cells of 3x3 and 4x4
mosaics are whole tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arr_coc.training import items, scenes
from arr_coc.training.questions import emoji_names

ABSENT = 2  # questions a mosaic about what it does not show


@dataclass(frozen=True)
class Mosaic:
    """One image and its questions.

    Args:
        image: 96 px RGB. grid: cells along a side.
        asked: m texts, that of cell c at place c. absent: texts of items that are not shown.
        square: which Latin square it belongs to, numbered within a seed.
    """

    image: Image.Image
    grid: int
    asked: tuple[str, ...]
    absent: tuple[str, ...]
    square: int

    @property
    def truths(self) -> NDArray[np.bool_]:
        """Tokens of each cell, (m, 12, 12)."""
        return np.array([scenes.cell_mask(self.grid, c) for c in range(self.grid**2)])


@dataclass(frozen=True)
class Kind:
    """What a mosaic is made of.

    Args:
        about: for a table's heading. grid: cells along a side. draw: (rng, how many) -> texts and pictures.
    """

    about: str
    grid: int
    draw: Callable[[np.random.Generator, int], tuple[list[str], list[Callable[[], np.ndarray]]]]


def latin_square(m: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """(m, m): which item stands in cell c of mosaic k; each once in every row and column. A cyclic square
    with its rows, columns and items shuffled."""
    cyclic = (np.arange(m)[:, None] + np.arange(m)) % m
    return rng.permutation(m)[cyclic][rng.permutation(m)][:, rng.permutation(m)]


def _emoji(rng: np.random.Generator, count: int) -> tuple[list[str], list[Callable[[], np.ndarray]]]:
    """Emoji of seen concepts with one-word names, in noto's or twemoji's artwork."""
    names = emoji_names(held_out=False)
    arts = [items.emoji(a).images for a in ("noto", "twemoji")]
    chosen = [names[i] for i in rng.choice(len(names), count, replace=False)]

    def picture(row: int) -> Callable[[], np.ndarray]:
        return lambda: arts[rng.integers(2)][row]

    return [name for name, _ in chosen], [picture(row) for _, row in chosen]


def _garments(rng: np.random.Generator, count: int) -> tuple[list[str], list[Callable[[], np.ndarray]]]:
    """Garments, which training never saw, each in a colour of its own and asked for by the colour's word."""
    stock = items.fashion("test")[0]
    colours = [tuple(scenes.COLOURS)[i] for i in rng.permutation(len(scenes.COLOURS))]
    if count > len(colours):
        raise ValueError(f"{count} garments and {len(colours)} colours: each needs one of its own")

    def picture(colour: str) -> Callable[[], np.ndarray]:
        return lambda: scenes.tint(stock[rng.integers(len(stock))], colour)

    return colours[:count], [picture(c) for c in colours[:count]]


KINDS: dict[str, Kind] = {
    "emoji-3x3": Kind("nine emoji, each asked for by its name", 3, _emoji),
    "emoji-4x4": Kind("sixteen emoji, each asked for by its name", 4, _emoji),
    "garments-3x3": Kind("nine garments in nine colours, each asked for by its colour", 3, _garments),
}


def mosaics(kind: str, squares: int, seed: int) -> list[Mosaic]:
    """`squares` Latin squares of mosaics; the same seed draws the same ones.

    Args:
        kind: one of KINDS.
        squares: of grid^2 mosaics each.

    Raises:
        ValueError: for an unknown kind, or no square.
    """
    if kind not in KINDS:
        raise ValueError(f"no mosaic {kind!r}; there are {', '.join(KINDS)}")
    if squares < 1:
        raise ValueError(f"squares={squares}: one or more are needed")
    rng = np.random.default_rng([seed, 20, *kind.encode()])
    grid, made = KINDS[kind].grid, []
    for square in range(squares):
        texts, pictures = KINDS[kind].draw(rng, grid * grid)
        for order in latin_square(grid * grid, rng):
            absent: list[str] = []
            while len(absent) < ABSENT:
                name = emoji_names(held_out=False)[rng.integers(len(emoji_names(held_out=False)))][0]
                if name not in texts and name not in absent:
                    absent.append(name)
            cells = [pictures[i]() for i in order]
            image, _ = scenes.compose(cells, grid, scenes.background(rng), rng)
            made.append(Mosaic(image, grid, tuple(texts[i] for i in order), tuple(absent), square))
    return made
