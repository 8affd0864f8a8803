"""same-different: scenes of garments in four colours; the context names two of the colours, the answer is
whether the two items that have them are of one kind.

Every scene shows one pair of one kind and one pair of two kinds, and the context asks for either. So the
picture alone tells nothing, nor does any single item, nor anything linear in the mean of the two that were
asked for: sameness is in no item, only in both, and something between the mean and the answer has to bend
(for two kinds this is XOR). The truth for relevance is exact: the cells of both items.

All scenes are one experience, the colours mixed: the question is the same whatever the colours, and the
stream is there for what the rungs learn. What becomes of relevance when cues come one after another is what
cued-clutter asks.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from arr_coc.training.items import FASHION_CLASSES, fashion
from arr_coc.training.scenes import CUE_COLOURS, background, compose, tint
from arr_coc.training.streams import Rendered, Sample, Stream

OPTIONS = ("classes", "n_train", "n_test")
ANSWERS = ("two of the same kind", "two of different kinds")
CONTEXT = "{} and {}"  # how two colours are said
PAIRS = tuple(combinations(range(len(CUE_COLOURS)), 2))
# the kinds of a scene are the first few: those that are least alike come first
KINDS = (
    *("trousers", "bag", "ankle boot", "t-shirt", "sandal"),
    *("dress", "pullover", "sneaker", "coat", "shirt"),
)
_CELLS = 4


@dataclass(frozen=True)
class _Key:
    """One scene: the colours asked for, and its number among the scenes that ask for them."""

    split: str
    turn: int  # of the experience: there is one
    pair: int
    number: int
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    classes: int = 2,
    n_train: int = 12_000,
    n_test: int = 1_500,
) -> Stream:
    """One experience; an order of a seed is an order of the same scenes.

    Args:
        classes: kinds of garment that occur, 2 to 10.
        n_train, n_test: scenes, the same number for every pair of colours, kind and answer.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or not 2 <= classes <= len(KINDS):
        raise ValueError(f"classes={classes!r}: a whole number from 2 to {len(KINDS)} is needed")
    unit = 2 * classes  # scenes of a pair of colours in which every kind and both answers occur equally often
    least = len(PAIRS) * unit
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if given < least:
            raise ValueError(
                f"{what}={given!r}: at least one scene for each of the {len(PAIRS)} pairs of colours, "
                f"{classes} kinds and 2 answers is needed, {least}"
            )

    def render(key: _Key) -> Sample:
        chance = np.random.default_rng([seed, key.split == "test", key.index])
        first, second = PAIRS[key.pair]
        same, kinds = asked(classes, key.number)
        others = [c for c in range(len(CUE_COLOURS)) if c not in (first, second)]
        tints = [first, second, *chance.choice(others, size=2, replace=False)]
        place = chance.permutation(_CELLS)  # of the two that are asked for, then of the others
        images, labels, _ = fashion(key.split)
        cells: list[np.ndarray | None] = [None] * _CELLS
        for cell, kind, colour in zip(place, kinds, tints, strict=True):
            picked = chance.choice(np.flatnonzero(labels == FASHION_CLASSES.index(KINDS[kind])))
            cells[cell] = tint(images[picked], CUE_COLOURS[colour])
        image, masks = compose(cells, 2, background(chance), chance)
        return {
            "image": image,
            "candidates": list(ANSWERS),
            "label": ANSWERS[0] if same else ANSWERS[1],
            "context": CONTEXT.format(CUE_COLOURS[first], CUE_COLOURS[second]),
            "experience": key.turn,
            "mask": masks[place[0]] | masks[place[1]],
            "index": key.index,
        }

    def told(key: _Key) -> str:
        return ANSWERS[0] if asked(classes, key.number)[0] else ANSWERS[1]

    def keys(split: str, count: int) -> list[_Key]:
        each = count // least * unit
        return [_Key(split, 0, p, n, p * each + n) for p in range(len(PAIRS)) for n in range(each)]

    train, test = keys("train", n_train), keys("test", n_test)
    shuffle = np.random.default_rng([seed, order, 8]).permutation(len(train))
    answers = list(ANSWERS)
    samples = Rendered([train[i] for i in shuffle], render, told)
    return Stream(name, samples, [answers], answers, [Rendered(test, render, told)])


def asked(classes: int, number: int) -> tuple[bool, tuple[int, int, int, int]]:
    """Whether the scene of that number asks for the pair of one kind, and the kinds of its four items, those
    asked for first.

    Scenes 2i and 2i + 1 have the same kinds and ask for the one and for the other pair; in 2 * classes scenes
    in a row every kind is equally often at every place, under either answer. All combinations go round.
    """
    turn, of_two = divmod(number, 2)
    high, alike = divmod(turn, classes)
    high, apart = divmod(high, classes)
    one = (alike + apart) % classes
    two = (one + 1 + high % (classes - 1)) % classes
    if of_two == 0:
        return True, (alike, alike, one, two)
    return False, (one, two, alike, alike)
