"""scene-qa: questions about scenes of garments and shapes; one kind of question after another.

For a generative model: the image and the question go in, a short answer comes out. Garments and shapes share
the cue colours, so no answer can be read without finding the item that the question names, and half of the
questions with yes or no ask for a pair of a colour and an item that are both there, but not in one place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from arr_coc.training.items import SHAPES, fashion, shape
from arr_coc.training.scenes import CUE_COLOURS, PLACES, background, compose, tint
from arr_coc.training.streams import Rendered, Sample, Stream

OPTIONS = ("grid", "kinds", "n_train", "n_test", "mixed")
KINDS = ("colour", "place", "item by colour", "item by place", "count", "yes or no")
COUNTS = ("zero", "one", "two", "three")


@dataclass(frozen=True)
class _Key:
    """One scene and its question; `number` counts within the kind, `index` within the split."""

    split: str
    turn: int
    kind: str
    number: int
    index: int


@dataclass(frozen=True)
class _Asked:
    """What the cells show, and the question: item and colour per cell (row-major), the cells asked about."""

    items: np.ndarray
    colours: np.ndarray
    question: str
    answer: str
    cells: list[int]


def make(
    name: str,
    seed: int,
    order: int,
    grid: int = 2,
    kinds: tuple[str, ...] = KINDS,
    n_train: int = 6_000,
    n_test: int = 1_200,
    mixed: bool = False,
) -> Stream:
    """Experiences are kinds of question, one after another; the same scenes in every order of a seed.

    The context is the question as it is asked, without the prompt's words. The candidates are answers: while
    learning those of the kinds met so far, on a probe those of every kind. The mask has every token of the
    items that the answer is about, and none where the answer is that there is no such item.

    Args:
        grid: cells along a side, 2 or 3.
        kinds: of question, some of KINDS.
        n_train, n_test: scenes, the same number for every kind.
        mixed: shuffle the scenes, so that there is no order of experiences.
    """
    if grid not in (2, 3):
        raise ValueError(f"grid={grid!r}: possible are 2, 3")
    kinds = tuple(kinds)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds!r}: possible are {', '.join(KINDS)}, each at most once")
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if given < len(kinds):
            raise ValueError(f"{what}={given!r}: at least one for each of the {len(kinds)} kinds is needed")
    turn = np.random.default_rng([seed, order, 7]).permutation(len(kinds))
    taught = [kinds[i] for i in turn]
    vocabulary = _answers(grid)
    met = [list(dict.fromkeys(a for k in taught[: e + 1] for a in vocabulary[k])) for e in range(len(taught))]

    def asks(key: _Key) -> tuple[_Asked, np.random.Generator]:
        code = KINDS.index(key.kind)
        chance = np.random.default_rng([seed, 40 + (key.split == "test"), code, key.number])
        return _ASK[key.kind](grid, key.number, chance), chance

    def told(key: _Key) -> str:
        return asks(key)[0].answer

    def render(key: _Key) -> Sample:
        asked, chance = asks(key)
        drawn = [_draw(key.split, i, c, chance) for i, c in zip(asked.items, asked.colours, strict=True)]
        image, masks = compose(drawn, grid, background(chance), chance)
        return {
            "image": image,
            "candidates": met[key.turn] if key.split == "train" else met[-1],
            "label": asked.answer,
            "context": asked.question,
            "experience": key.turn,
            "mask": masks[asked.cells].any(0),
            "index": key.index,
        }

    def keys(split: str, count: int) -> list[_Key]:
        each = count // len(kinds)
        # the number decides the answer, so that answers are balanced: not in turn, or time would tell them
        shuffle = np.random.default_rng([seed, 42]).permutation(each).tolist()
        return [_Key(split, t, kinds[i], n, int(i) * each + n) for t, i in enumerate(turn) for n in shuffle]

    train, test = keys("train", n_train), keys("test", n_test)
    if mixed:
        shuffle = np.random.default_rng([seed, order, 8]).permutation(len(train))
        train = [train[i] for i in shuffle]
    probes = [Rendered([k for k in test if k.turn == e], render, told) for e in range(len(taught))]
    rivals = [list(vocabulary[k]) for k in taught]
    samples = Rendered(train, render, told)
    return Stream(name, samples, [[k] for k in taught], met[-1], list(probes), met=met, rivals=rivals)


def _names() -> tuple[str, ...]:
    return (*fashion("train")[2], *SHAPES)


def _plural(name: str) -> str:
    if name.endswith("s") and not name.endswith("ss"):
        return name  # trousers
    return f"{name}es" if name.endswith("ss") else f"{name}s"


def _answers(grid: int) -> dict[str, tuple[str, ...]]:
    places = tuple(said[0] for said in PLACES[grid])
    answers = (CUE_COLOURS, places, _names(), _names(), COUNTS, ("yes", "no"))
    return dict(zip(KINDS, answers, strict=True))


def _draw(split: str, item: int, colour: int, chance: np.random.Generator) -> np.ndarray:
    """A garment of this split, or a shape, in its colour: RGBA."""
    names = _names()
    if item >= len(names) - len(SHAPES):
        return tint(shape(names[item], chance), CUE_COLOURS[colour])
    return tint(fashion(split)[0][chance.choice(_rows(split, item))], CUE_COLOURS[colour])


@cache
def _rows(split: str, garment: int) -> np.ndarray:
    return np.flatnonzero(fashion(split)[1] == garment)


def _other(count: int, not_this: int, chance: np.random.Generator, size: int) -> np.ndarray:
    """Draws from 0..count-1 without one of them, with replacement, (size,)."""
    drawn = chance.integers(count - 1, size=size)
    return drawn + (drawn >= not_this)


def _scene(grid: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Items and colours of the cells, drawn with replacement, and a cell."""
    cells = grid * grid
    items, colours = chance.integers(len(_names()), size=cells), chance.integers(len(CUE_COLOURS), size=cells)
    return items, colours, int(chance.integers(cells))


def _one_item(grid: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """A scene in which the item of the cell is the only one of its name."""
    items, colours, cell = _scene(grid, chance)
    mine = items[cell]
    items = _other(len(_names()), mine, chance, len(items))
    items[cell] = mine
    return items, colours, cell


def _ask_colour(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    items, colours, cell = _one_item(grid, chance)
    colours[cell] = number % len(CUE_COLOURS)
    question = f"what colour is the {_names()[items[cell]]}?"
    return _Asked(items, colours, question, CUE_COLOURS[colours[cell]], [cell])


def _ask_place(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    """Where the one with this colour and name is: others have the colour, or the name."""
    items, colours, _ = _scene(grid, chance)
    cell = number % len(items)
    # a cell that has the name and the colour as well gets another colour
    twin = (items == items[cell]) & (colours == colours[cell])
    twin[cell] = False
    colours[twin] = _other(len(CUE_COLOURS), int(colours[cell]), chance, int(twin.sum()))
    question = f"where is the {CUE_COLOURS[colours[cell]]} {_names()[items[cell]]}?"
    return _Asked(items, colours, question, PLACES[grid][cell][0], [cell])


def _ask_item_by_colour(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    items, colours, cell = _scene(grid, chance)
    items[cell], mine = number % len(_names()), int(colours[cell])
    colours = _other(len(CUE_COLOURS), mine, chance, len(colours))
    colours[cell] = mine
    question = f"what is the {CUE_COLOURS[mine]} item?"
    return _Asked(items, colours, question, _names()[items[cell]], [cell])


def _ask_item_by_place(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    items, colours, cell = _scene(grid, chance)
    items[cell] = number % len(_names())
    question = f"what is in the {PLACES[grid][cell][0]}?"
    return _Asked(items, colours, question, _names()[items[cell]], [cell])


def _ask_count(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    items, colours, _ = _scene(grid, chance)
    asked, count = int(chance.integers(len(_names()))), number % len(COUNTS)
    items = _other(len(_names()), asked, chance, len(items))
    cells = chance.permutation(len(items))[:count].tolist()
    items[cells] = asked
    question = f"how many {_plural(_names()[asked])} are there?"
    return _Asked(items, colours, question, COUNTS[count], cells)


def _ask_yes_or_no(grid: int, number: int, chance: np.random.Generator) -> _Asked:
    """Yes: the pair is in one place. No: its colour is in one place and its item in another."""
    items, colours, first = _scene(grid, chance)
    second = (first + 1 + int(chance.integers(len(items) - 1))) % len(items)
    yes = number % 2 == 0
    item, colour = int(items[first]), int(colours[first] if yes else colours[second])
    if not yes:
        if colours[first] == colour:
            colours[first] = _other(len(CUE_COLOURS), colour, chance, 1)[0]
        if items[second] == item:
            items[second] = _other(len(_names()), item, chance, 1)[0]
    pair = (items == item) & (colours == colour)
    if not yes:  # a third cell may not have the pair either
        colours[pair] = _other(len(CUE_COLOURS), colour, chance, int(pair.sum()))
    question = f"is there a {CUE_COLOURS[colour]} {_names()[item]}?"
    cells = np.flatnonzero(pair).tolist() if yes else []
    return _Asked(items, colours, question, "yes" if yes else "no", cells)


_ASK: dict[str, Callable[[int, int, np.random.Generator], _Asked]] = {
    "colour": _ask_colour,
    "place": _ask_place,
    "item by colour": _ask_item_by_colour,
    "item by place": _ask_item_by_place,
    "count": _ask_count,
    "yes or no": _ask_yes_or_no,
}
