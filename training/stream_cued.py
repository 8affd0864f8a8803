"""cued-clutter: scenes of items drawn from the same classes; the context names one by an attribute, the
answer is its class.

The answer cannot be read from the scene without selecting, selection cannot be read from the image without
the context, and the truth for relevance is exact: the cell of the cued item.
"""

from dataclasses import dataclass

import numpy as np

from arr_coc.training.items import emoji, fashion
from arr_coc.training.scenes import CUE_COLOURS, PLACES, background, compose, tint
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream

OPTIONS = ("cues", "grid", "by", "n_train", "n_test", "mixed")
NONSENSE = ("dax", "wug", "blicket", "toma", "fep", "zorp")  # one for each cue colour
ARTWORKS = ("noto", "twemoji")


@dataclass(frozen=True)
class _Key:
    """One scene: which turn it belongs to, the attribute asked for, and its number within that attribute."""

    split: str
    turn: int  # of the experience
    word: str  # the context
    value: int  # the attribute value of the cued item
    number: int
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    cues: str = "known",
    grid: int = 2,
    by: str = "cues",
    n_train: int = 12_000,
    n_test: int = 1_500,
    mixed: bool = False,
) -> Stream:
    """Experiences are attribute values, or classes, one after another; the same scenes in every order of a
    seed.

    Args:
        cues: "known" (the colour's own word), "novel" (a nonsense word for each colour), "reversed" (the
            colours' words, and from mid-stream on each word means the next colour: the first six experiences
            are outdated at the end), "place" or "artwork".
        grid: cells along a side, 2 or 3.
        by: what an experience is: one attribute value ("cues") or two classes ("classes").
        n_train, n_test: scenes, the same number for every cue.
        mixed: shuffle the scenes, so that there is no order of experiences.
    """
    words = _words(cues, grid)
    if grid not in (2, 3) or by not in ("cues", "classes"):
        raise ValueError(f"grid={grid!r}, by={by!r}: possible are grid 2, 3 and by 'cues', 'classes'")
    if mixed and cues == "reversed":
        raise ValueError("mixed=True: words that change their meaning at mid-stream have an order")
    values = len(words)
    least = values * 2 if cues == "reversed" else values
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if given < least:
            raise ValueError(f"{what}={given!r}: at least one scene for each of the {least} cues is needed")
    art = cues == "artwork"
    classes = _concepts() if art else fashion("train")[2]
    texts = [PROMPT.format(c) for c in classes]
    turn = np.random.default_rng([seed, order, 7]).permutation(values)

    # (experience, word, attribute value), in the order in which they are taught
    teaching = [(t, words[v], int(v)) for t, v in enumerate(turn)]
    if cues == "reversed":
        teaching += [(values + t, words[v], int(v + 1) % values) for t, v in enumerate(turn)]

    def render(key: _Key) -> Sample:
        chance = np.random.default_rng([seed, key.split == "test", key.index])
        cells, target, cell = _scene(cues, grid, key, chance, forced.get((key.split, key.index)))
        image, masks = compose(cells, grid, background(chance), chance)
        return {
            "image": image,
            "candidates": texts,
            "label": texts[target],
            "context": key.word,
            "experience": key.turn,
            "mask": masks[cell],
            "index": key.index,
        }

    def told(key: _Key) -> str:
        chance = np.random.default_rng([seed, key.split == "test", key.index])
        return texts[_scene(cues, grid, key, chance, forced.get((key.split, key.index)))[1]]

    def keys(split: str, count: int) -> list[_Key]:
        each = count // len(teaching)
        # the index counts by attribute value, not by turn: orders share their scenes
        return [
            _Key(split, t, word, value, n, ((t >= values) * values + value) * each + n)
            for t, word, value in teaching
            for n in range(each)
        ]

    forced: dict[tuple[str, int], int] = {}
    train, test = keys("train", n_train), keys("test", n_test)
    experiences = [[word] for _, word, _ in teaching]
    if by == "classes":
        train, test, experiences, forced = _by_classes(train, test, texts, seed, order)
    if mixed:
        shuffle = np.random.default_rng([seed, order, 8]).permutation(len(train))
        train = [train[i] for i in shuffle]
    probes = [Rendered([k for k in test if k.turn == e], render, told) for e in range(len(experiences))]
    outdated = tuple(range(values)) if cues == "reversed" else ()
    return Stream(name, Rendered(train, render, told), experiences, texts, list(probes), outdated=outdated)


def _words(cues: str, grid: int) -> tuple[str, ...]:
    """The word for each attribute value."""
    possible = {
        "known": CUE_COLOURS,
        "reversed": CUE_COLOURS,
        "novel": NONSENSE,
        "artwork": ARTWORKS,
        "place": tuple(names[0] for names in PLACES.get(grid, ())),
    }
    if cues not in possible:
        raise ValueError(f"cues={cues!r}: possible are {', '.join(possible)}")
    return possible[cues]


def _by_classes(
    train: list[_Key], test: list[_Key], texts: list[str], seed: int, order: int
) -> tuple[list[_Key], list[_Key], list[list[str]], dict[tuple[str, int], int]]:
    """Experiences of two classes each: the cue varies within them, and the cued item's class is set."""
    turn = np.random.default_rng([seed, order, 9]).permutation(len(texts))
    pairs = [turn[i : i + 2] for i in range(0, len(texts), 2)]
    forced: dict[tuple[str, int], int] = {}  # by split and index: a split counts its own scenes

    def deal(keys: list[_Key]) -> list[_Key]:
        dealt = []
        for key in keys:  # classes go round within each cue, whatever the order
            target = key.number % len(texts)
            forced[key.split, key.index] = target
            e = next(i for i, pair in enumerate(pairs) if target in pair)
            dealt.append(_Key(key.split, e, key.word, key.value, key.number, key.index))
        shuffle = np.random.default_rng([seed, 10]).permutation(len(dealt))
        return sorted((dealt[i] for i in shuffle), key=lambda k: k.turn)

    return deal(train), deal(test), [[texts[c] for c in pair] for pair in pairs], forced


def _scene(
    cues: str, grid: int, key: _Key, chance: np.random.Generator, forced: int | None
) -> tuple[list[np.ndarray | None], int, int]:
    """The items of the cells, the cued item's class and its cell."""
    count = grid * grid
    cell = key.value if cues == "place" else int(chance.integers(count))
    if cues == "artwork":
        chosen = chance.integers(10, size=count)
        if forced is not None:
            chosen[cell] = forced
        other = 1 - key.value
        pictures = [_artwork(ARTWORKS[key.value if i == cell else other])[c] for i, c in enumerate(chosen)]
        return list(pictures), int(chosen[cell]), cell
    images, labels, _ = fashion(key.split)
    picked = chance.integers(len(labels), size=count)
    if forced is not None:
        picked[cell] = chance.choice(np.flatnonzero(labels == forced))
    colours = len(CUE_COLOURS)
    if cues == "place":
        tints = chance.integers(colours, size=count)
    else:
        others = [c for c in range(colours) if c != key.value]
        # distinct while there are enough of them; a 3x3 scene has more items than there are colours
        tints = chance.choice(others, size=count, replace=count - 1 > len(others))
        tints[cell] = key.value
    items: list[np.ndarray | None] = [
        tint(images[i], CUE_COLOURS[c]) for i, c in zip(picked, tints, strict=True)
    ]
    return items, int(labels[picked[cell]]), cell


def _concepts() -> tuple[str, ...]:
    """Ten concepts that the built-in models have never been taught, by name."""
    art = emoji(ARTWORKS[0])
    return tuple(art.names[i] for i in _concept_rows())


def _concept_rows() -> np.ndarray:
    held_out = np.flatnonzero(emoji(ARTWORKS[0]).held_out)
    return held_out[np.linspace(0, len(held_out) - 1, 10).astype(int)]


def _artwork(name: str) -> np.ndarray:
    return emoji(name).images[_concept_rows()]
