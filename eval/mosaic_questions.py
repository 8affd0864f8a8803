"""P2, mosaic question answering: tiles of one coloured shape each, two questions about different tiles.

Every tile has a (shape, colour) of its own, and some other tile shares one attribute with the tile that is
asked about, so that neither the shape nor the colour alone, nor the middle of the picture, says where it is.
(A single easy-VQA tile shows one shape, so the centre prior finds it: never score those alone.) Each question
comes with two changed pictures: one in which the answer is another, because the tile that tells it was
changed, and one in which another tile was changed and it is the same. All else in them is the same, pixel by
pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from arr_coc.training import scenes
from arr_coc.training.items import SHAPES, shape
from arr_coc.training.scenes import CUE_COLOURS, PLACES

Tile = tuple[str, str]  # shape, colour


@dataclass(frozen=True)
class Question:
    """A question about one tile of a mosaic.

    Args:
        kind: one of KINDS. text: the question, in words that the built-in model knows. answer: the only one.
        cell: the tile that is asked about, row-major.
        flipped: the picture with that tile changed, and the answer there.
        stays: the picture with another tile changed, under which the answer stays.
    """

    kind: str
    text: str
    answer: str
    cell: int
    flipped: tuple[Image.Image, str]
    stays: Image.Image


@dataclass(frozen=True)
class Asked:
    """A mosaic and its two questions, about different tiles.

    Args:
        image: 96 px RGB. grid: tiles along a side. tiles: shape and colour of each, row-major.
    """

    image: Image.Image
    grid: int
    tiles: tuple[Tile, ...]
    questions: tuple[Question, Question]

    def truth(self, question: Question) -> NDArray[np.bool_]:
        """The tokens of the tile that is asked about, (12, 12)."""
        return scenes.cell_mask(self.grid, question.cell)


class _Drawing:
    """The same picture again and again, but for the tiles that are changed."""

    def __init__(self, grid: int, seed: list[int]) -> None:
        self.grid, self._seed = grid, seed

    def __call__(self, tiles: list[Tile]) -> Image.Image:
        drawn = []
        for cell, (name, colour) in enumerate(tiles):  # each tile's own chance, whatever the others show
            chance = np.random.default_rng([*self._seed, cell])
            drawn.append(scenes.tint(shape(name, chance), colour))
        rng = np.random.default_rng([*self._seed, len(tiles)])
        return scenes.compose(drawn, self.grid, scenes.background(rng), rng)[0]


def _tiles(grid: int, rng: np.random.Generator) -> list[Tile]:
    """Different tiles, none of them alone in both its shape and its colour."""
    every = [(s, c) for s in SHAPES for c in CUE_COLOURS]
    while True:
        tiles = [every[i] for i in rng.permutation(len(every))[: grid * grid]]
        if all(any((s == t) != (c == d) for t, d in tiles if (t, d) != (s, c)) for s, c in tiles):
            return tiles


def _free(tiles: list[Tile], rng: np.random.Generator, allowed: Callable[[Tile], bool]) -> Tile:
    """A tile that the mosaic does not have."""
    free = [t for s in SHAPES for c in CUE_COLOURS if (t := (s, c)) not in tiles and allowed(t)]
    return free[rng.integers(len(free))]


def _with(tiles: list[Tile], **changed: Tile) -> list[Tile]:
    return [changed.get(f"at{cell}", tile) for cell, tile in enumerate(tiles)]


def _where(
    tiles: list[Tile], cell: int, grid: int, rng: np.random.Generator, draw: _Drawing
) -> Question | None:
    """Where is the red circle? Other tiles are red, and others are circles: both have to be heard."""
    (name, colour), places = tiles[cell], [p[0] for p in PLACES[grid]]
    others = [c for c in range(len(tiles)) if c != cell]
    if not any(tiles[c][0] == name for c in others) or not any(tiles[c][1] == colour for c in others):
        return None
    swapped = others[rng.integers(len(others))]
    moved = _with(tiles, **{f"at{cell}": tiles[swapped], f"at{swapped}": tiles[cell]})
    one, two = rng.permutation(others)[:2]
    kept = _with(tiles, **{f"at{one}": tiles[two], f"at{two}": tiles[one]})
    text = f"where is the {colour} {name}?"
    return Question("where", text, places[cell], cell, (draw(moved), places[swapped]), draw(kept))


def _changed(
    asked: tuple[str, str, str],
    tiles: list[Tile],
    cell: int,
    rng: np.random.Generator,
    draw: _Drawing,
    tells: tuple[int, Callable[[Tile], bool]],
    another: Callable[[Tile], bool],
) -> Question:
    """A question (kind, text, answer) with its two changed pictures.

    Args:
        tells: which part of a tile is the answer, and what may stand in the tile's place to change it.
        another: what may stand in another tile's place and leave the answer as it is.
    """
    part, allowed = tells
    new = _free(tiles, rng, allowed)
    other = rng.choice([c for c in range(len(tiles)) if c != cell])
    else_ = _free(tiles, rng, another)
    flipped = draw(_with(tiles, **{f"at{cell}": new})), new[part]
    return Question(*asked, cell, flipped, draw(_with(tiles, **{f"at{other}": else_})))


def _colour(
    tiles: list[Tile], cell: int, grid: int, rng: np.random.Generator, draw: _Drawing
) -> Question | None:
    """What colour is the circle? There is one, and another tile has its colour."""
    name, colour = tiles[cell]
    if [s for s, _ in tiles].count(name) > 1 or [c for _, c in tiles].count(colour) < 2:
        return None
    asked = "colour", f"what colour is the {name}?", colour
    return _changed(asked, tiles, cell, rng, draw, (1, lambda t: t[0] == name), lambda t: t[0] != name)


def _item(
    tiles: list[Tile], cell: int, grid: int, rng: np.random.Generator, draw: _Drawing
) -> Question | None:
    """What is the red item? There is one, and another tile has its shape."""
    name, colour = tiles[cell]
    if [c for _, c in tiles].count(colour) > 1 or [s for s, _ in tiles].count(name) < 2:
        return None
    asked = "item", f"what is the {colour} item?", name
    return _changed(asked, tiles, cell, rng, draw, (0, lambda t: t[1] == colour), lambda t: t[1] != colour)


def _place(
    tiles: list[Tile], cell: int, grid: int, rng: np.random.Generator, draw: _Drawing
) -> Question | None:
    """What is in the top left?"""
    name = tiles[cell][0]
    asked = "place", f"what is in the {PLACES[grid][cell][0]}?", name
    return _changed(asked, tiles, cell, rng, draw, (0, lambda t: t[0] != name), lambda t: True)


KINDS: dict[str, Callable[..., Question | None]] = {
    "where": _where,
    "colour": _colour,
    "item": _item,
    "place": _place,
}


def mosaics(
    grid: int, count: int, seed: int, kinds: tuple[str, ...] = tuple(KINDS), split: str = "test"
) -> list[Asked]:
    """`count` mosaics with two questions each, the kinds in turn; the same seed draws the same ones.

    Args:
        grid: 2 or 3. kinds: of question, some of KINDS. split: "train" and "test" draw different ones.

    Raises:
        ValueError: for another grid, kind or split, or no mosaic.
    """
    if grid not in PLACES:
        raise ValueError(f"grid={grid!r}: possible are {', '.join(map(str, PLACES))}")
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds!r}: possible are {', '.join(KINDS)}")
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are train and test")
    if count < 1:
        raise ValueError(f"count={count}: one or more are needed")
    made: list[Asked] = []
    start = [seed, 50 + (split == "test"), grid]
    rng = np.random.default_rng(start)
    while len(made) < count:
        tiles, draw = _tiles(grid, rng), _Drawing(grid, [*start, int(rng.integers(2**31))])
        wanted = [kinds[(2 * len(made) + k) % len(kinds)] for k in range(2)]
        found: list[Question] = []
        for kind in wanted:  # the first tile, in a random order, of which this can be asked
            cells = [c for c in rng.permutation(len(tiles)) if c not in {q.cell for q in found}]
            asked = (KINDS[kind](tiles, int(c), grid, rng, draw) for c in cells)
            if (one := next((q for q in asked if q is not None), None)) is not None:
                found.append(one)
        if len(found) == 2:
            made.append(Asked(draw(tiles), grid, tuple(tiles), (found[0], found[1])))
    return made
