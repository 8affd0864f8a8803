"""Grids by name: which methods on which streams, over which seeds and sizes, in one word."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from arr_coc.eval import methods as registry
from arr_coc.eval.grid import Grid


@dataclass(frozen=True)
class Preset:
    """What one word stands for.

    Args:
        streams, methods: by name.
        seeds, orders: of every stream.
        batch: samples per step.
        n_train, n_test: of a stream that has so many, else its own.
        held: held-out concepts per artwork (questions of a generative model) for zero-shot retention.
    """

    streams: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    orders: tuple[int, ...] = (0, 1, 2)
    batch: int = 10
    n_train: int = 3000
    n_test: int = 900
    held: int = 200


PRESETS: dict[str, Preset] = {
    "core": Preset(
        (
            "split-fashion",
            "permuted-fashion",
            "rotated-fashion",
            "same-different",
            "emoji-vendors",
            "emoji-groups",
            "cued-clutter",
            "scene-qa",
        ),
        (
            "plugin",
            "zero-shot",
            "ncm",
            "streaming-lda",
            "ranpac",
            "rail",
            "f-oal",
            "head",
            "head-er",
            "head-derpp",
            "backprop",
            "joint",
        ),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: for an unknown one; the nearest is named.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no preset {name!r}; the nearest is {near!r}. There are {', '.join(PRESETS)}")
    return PRESETS[name]


def at_most(stream: str, n_train: int, n_test: int) -> tuple[int | None, int | None]:
    """These sizes where the stream has so many samples, else None: its own."""
    own = Grid(stream).load(0, 0)
    has = len(own.samples), sum(map(len, own.probes))
    return n_train if n_train <= has[0] else None, n_test if n_test <= has[1] else None


def with_a_place(grid: Grid, methods: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those of these methods that have a place on the stream, and a sentence about each that has not."""
    kept, left, brings = list[str](), list[str](), grid.brings
    for name in methods:
        spec = registry.spec(name)
        lacks = [need for need in spec.needs if not brings[need]]
        if grid.body not in spec.bodies:
            left.append(f"{name} is left out on {grid.stream}: it is for {' and '.join(spec.bodies)} models")
        elif lacks:
            left.append(f"{name} is left out on {grid.stream}, which has no {' and no '.join(lacks)}")
        else:
            kept.append(name)
    return kept, left
