"""cifar-100 and imagenet-r: the classes of a set in equal steps, from a folder or, where allowed, the Hub.

    cifar-100?source=FOLDER         cifar-100?hub=true

The protocols are those of the published tables, ten steps by default. CIFAR-100 has 50,000 images to learn
and 10,000 to be examined on; ImageNet-R (Hendrycks et al. 2021) 24,000 and 6,000 of its 30,000 (DualPrompt,
Wang et al. 2022). A copy of ImageNet-R with folders `train` and `test` is taken as it is divided; of any
other, four fifths of each class's images are drawn from the seed. So are class orders, from the seed and the
order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.training import sources
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream, decoded

OPTIONS = ("source", "hub", "steps", "n_train", "n_test")
# final accuracy, %, of CLIP ViT-B/16 without tuning, ten steps, in McDonnell et al. 2023
PUBLISHED = {
    "cifar-100": {"nearest class mean": 77.1, "ridge": 80.9, "random projection + ridge (RanPAC)": 85.0},
    "imagenet-r": {"nearest class mean": 68.0, "ridge": 67.0, "random projection + ridge (RanPAC)": 76.1},
}
HUB = {"cifar-100": "uoft-cs/cifar100", "imagenet-r": "axiong/imagenet-r"}
_COLUMNS = {"img": "image", "fine_label": "label", "wnid": "label"}  # names of the Hub's copies
_TAUGHT = 0.8  # of a class's images, where a set is not divided


@dataclass(frozen=True)
class Rows:
    """The pictures of a split, not yet decoded, and the class of each.

    Args:
        cells: `cells[i]` is the image cell of row i, as `datasets` leaves it without decoding.
        numbers: of the rows that are in the split.
        classes: of every row, those of the other split included, a place in `names`.
    """

    cells: Any
    numbers: Sequence[int]
    classes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """One picture: whose turn it is, and its row."""

    split: str
    turn: int
    index: int


def divided(classes: int, steps: int, seed: int | Sequence[int]) -> list[list[int]]:
    """The classes of every step, in an order drawn from the seed.

    Raises:
        ValueError: for steps that do not divide the classes.
    """
    if steps < 1 or classes % steps:
        raise ValueError(f"steps={steps}: a number that divides {classes} classes is needed")
    order = np.random.default_rng(seed).permutation(classes)
    return [part.tolist() for part in np.split(order, steps)]


def make(
    name: str,
    seed: int,
    order: int,
    kind: str = "cifar-100",
    source: str = "",
    hub: bool = False,
    steps: int = 10,
    n_train: int | None = None,
    n_test: int | None = None,
) -> Stream:
    """Class-incremental: the candidates while learning are the classes met so far, those of a probe all.

    Args:
        kind: "cifar-100" or "imagenet-r".
        source: a folder: what `save_to_disk` wrote, parquet, or pictures in a folder per class.
        hub: a download is allowed; of HUB's copy, where no source is said.
        steps: a divisor of the number of classes.
        n_train, n_test: pictures, drawn from the seed; all by default.
    """
    if kind not in HUB:
        raise ValueError(f"kind={kind!r}: possible are {', '.join(HUB)}")
    place = found(kind, source, HUB[kind] if hub else "")
    rows = {split: opened_rows(place, hub, split, seed) for split in ("train", "test")}
    names = rows["train"].names
    if rows["test"].names != names:
        raise ValueError(f"{place}: its two splits have different classes")
    parts = divided(len(names), steps, [seed, order, 7])
    turn = {c: t for t, part in enumerate(parts) for c in part}

    def turns(split: str, row: int) -> int:
        return turn[int(rows[split].classes[row])]

    experiences = [[PROMPT.format(names[c]) for c in part] for part in parts]
    met = [[text for e in experiences[: k + 1] for text in e] for k in range(steps)]
    return assemble(name, seed, rows, turns, experiences, met, {"train": n_train, "test": n_test})


def found(kind: str, source: str, other: str) -> str:
    """Raises:
    ValueError: where no source is said, and none is known."""
    if not (source or other):
        raise ValueError(f"{kind} is not shipped: say where it is, as in '{kind}?source=FOLDER'")
    return source or other


def assemble(
    name: str,
    seed: int,
    rows: dict[str, Rows],
    turns: Callable[[str, int], int],
    experiences: list[list[str]],
    met: list[list[str]],
    sizes: dict[str, int | None],
) -> Stream:
    """A stream of the rows of two splits.

    Args:
        turns: the experience that a row of a split belongs to.
        met: candidates up to each experience while learning; the last are those of a probe.
        sizes: pictures of each split, None for all.

    Raises:
        ValueError: for more pictures than there are.
    """

    def keys(split: str) -> list[Key]:
        there, size = list(rows[split].numbers), sizes[split]
        if size is not None and not 1 <= size <= len(there):
            raise ValueError(f"n_{split}={size!r}: 1 to {len(there)} are possible")
        drawn = np.random.default_rng([seed, 30 + (split == "test")]).permutation(len(there))[:size]
        return [Key(split, turns(split, there[i]), there[i]) for i in drawn.tolist()]

    train, test = keys("train"), keys("test")
    for what, some in (("n_train", train), ("n_test", test)):
        if len({k.turn for k in some}) < len(experiences):
            raise ValueError(f"{what}={len(some)}: too few for every one of {len(experiences)} experiences")
    return woven(name, rows, train, test, experiences, met)


def woven(
    name: str,
    rows: dict[str, Rows],
    train: list[Key],
    test: list[Key],
    experiences: list[list[str]],
    met: list[list[str]],
    asked: list[list[str]] | None = None,
) -> Stream:
    """The stream of these pictures, an experience after the other, in each as they are given.

    Args:
        met: candidates up to each experience while learning; the last are those of a probe.
        asked: candidates of each experience, while learning and of its probe, where its task is known.
    """
    texts = [PROMPT.format(n) for n in rows["train"].names]
    train, test = (sorted(some, key=lambda k: k.turn) for some in (train, test))

    def told(key: Key) -> str:
        return texts[rows[key.split].classes[key.index]]

    def render(key: Key) -> Sample:
        known = asked or (met if key.split == "train" else [met[-1]] * len(met))
        return {
            "image": decoded(rows[key.split].cells[key.index]),
            "candidates": known[key.turn],
            "label": told(key),
            "context": None,
            "experience": key.turn,
            "mask": None,
            "index": key.index,
        }

    probes = [Rendered([k for k in test if k.turn == e], render, told) for e in range(len(experiences))]
    samples = Rendered(train, render, told)
    return Stream(
        name,
        samples,
        experiences,
        met[-1],
        list(probes),
        met=met,
        rivals=asked or [],
        asked=asked or [],
    )


def opened_rows(source: str, hub: bool, split: str, seed: int) -> Rows:
    """The rows of a split; of a set without splits, those that the seed gives it.

    Raises:
        ValueError: for labels that are numbers without names. KeyError: without an image or a label column.
    """
    cells, classes, names, whole = _read(source, hub, split)
    if not whole:
        return Rows(cells, range(len(classes)), classes, names)
    chance, taught = np.random.default_rng([seed, 32]), []
    for c in range(len(names)):
        mine = chance.permutation(np.flatnonzero(classes == c))
        taught += mine[: round(_TAUGHT * len(mine))].tolist()
    kept = set(taught)
    numbers = [i for i in range(len(classes)) if (i in kept) == (split == "train")]
    return Rows(cells, numbers, classes, names)


@lru_cache(maxsize=64)
def _read(source: str, hub: bool, split: str) -> tuple[Any, np.ndarray, tuple[str, ...], bool]:
    """Image cells, classes and names; and whether this is the whole set, not divided."""
    import datasets

    try:
        data = sources.opened(source, split, hub)
        other = sources.opened(source, "test" if split == "train" else "train", hub)
        whole = data._fingerprint == other._fingerprint  # saved without splits, it is the same under any name
    except ValueError:  # it has one split only
        whole = True
        data = _only(source, hub)
    data = data.rename_columns({k: v for k, v in _COLUMNS.items() if k in data.column_names})
    sources.check_columns(data, ("image", "label"))
    told = data.features["label"]
    if hasattr(told, "names"):
        numbers, names = data["label"], list(told.names)
    else:
        names = sorted(set(data["label"]), key=str)
        if not all(isinstance(n, str) for n in names):
            raise ValueError(f"{source}: the labels have no names; texts or a ClassLabel are needed")
        numbers = [names.index(value) for value in data["label"]]
    if "class_name" in data.column_names:
        called = dict(zip(numbers, data["class_name"], strict=True))
        names = [called[i] for i in range(len(names))]
    lacking = sum(not isinstance(n, int) or not 0 <= n < len(names) for n in numbers)
    if lacking:
        raise ValueError(f"{source}: {lacking} rows of {split!r} have no label")
    listed = _listed(Path(source))
    cells = data.cast_column("image", datasets.Image(decode=False))["image"]
    said = tuple(listed.get(n, n).replace("_", " ") for n in names)
    return cells, np.array(numbers), said, whole


def _only(source: str, hub: bool) -> Any:
    for split in ("train", "test"):
        try:
            return sources.opened(source, split, hub)
        except ValueError as error:
            fault = error
    raise fault


def _listed(folder: Path) -> dict[str, str]:
    """Names of WordNet numbers, from ImageNet-R's own README.txt: lines such as "n01443537 goldfish"."""
    for file in (folder / "README.txt", folder.parent / "README.txt"):
        if file.is_file():
            lines = [line.split() for line in file.read_text().splitlines()]
            return {w[0]: w[1] for w in lines if len(w) == 2 and w[0][:1] == "n" and w[0][1:].isdigit()}
    return {}
