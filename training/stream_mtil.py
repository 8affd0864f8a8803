"""mtil and x-tail: whole image sets one after another, from a folder with a folder for each.

    mtil?source=FOLDER      x-tail?source=FOLDER

`mtil` (multi-domain task-incremental learning, Zheng et al. 2023, ZSCL) has eleven sets; who is tested is
told the set, so a probe is answered among its own set's classes. `x-tail` (cross-domain task-agnostic
incremental learning, Xu et al. 2024, RAIL) has ten, without CIFAR100; there is no hint, a probe is answered
among the classes of all sets, and 16 pictures of each class are learned from (all, where there are fewer). A
class that two sets share is one class: a class is known by its text.

Order 0 is the published order I (alphabetical), order 1 the published order II (as `--dataset_order` has them
in ZSCL's scripts; X-TAIL's is order I without CIFAR100, as in RAIL's configuration); further orders are drawn
from the seed. A set is FOLDER/DTD/train/banded/1.jpg and FOLDER/DTD/test/..., or anything that `datasets`
reads with an image and a label column; one that is not divided is divided by the seed, four fifths of each
class to be learned from.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.training import sources
from arr_coc.training.stream_sets import Key, Rows, found, opened_rows, woven
from arr_coc.training.streams import PROMPT, Stream

OPTIONS = ("kind", "source", "datasets", "shots", "n_train", "n_test")
ORDER_I = (
    *("Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT", "Flowers"),
    *("Food", "MNIST", "OxfordPet", "StanfordCars", "SUN397"),
)
ORDER_II = (
    *("StanfordCars", "Food", "MNIST", "OxfordPet", "Flowers", "SUN397"),
    *("Aircraft", "Caltech101", "DTD", "EuroSAT", "CIFAR100"),
)
LEFT_OUT = {"mtil": (), "x-tail": ("CIFAR100",)}
SHOTS = {"mtil": None, "x-tail": 16}
# other names of their folders, letters and digits alone
_ALIASES = {
    "fgvcaircraft": "Aircraft",
    "flowers102": "Flowers",
    "oxfordflowers": "Flowers",
    "food101": "Food",
    "oxfordpets": "OxfordPet",
    "oxfordiiitpet": "OxfordPet",
    "pets": "OxfordPet",
    "cars": "StanfordCars",
}


class _Joined(Sequence[Any]):
    """The cells of several sets as one sequence; nothing is copied."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = parts
        self.starts = [0, *np.cumsum([len(p) for p in parts]).tolist()]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: Any) -> Any:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part][index - self.starts[part]]


def make(
    name: str,
    seed: int,
    order: int,
    kind: str = "mtil",
    source: str = "",
    datasets: tuple[str, ...] = (),
    shots: int | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
) -> Stream:
    """One set, one experience.

    Args:
        kind: "mtil" or "x-tail".
        source: the folder with a folder for each set.
        datasets: some of the sets, where not all of them are wanted.
        shots: pictures of each class to learn from, at most; all by default in `mtil`, 16 in `x-tail`.
        n_train, n_test: pictures at most, every set the same number as far as it has them, drawn from the
            seed.

    Raises:
        FileNotFoundError: for a set without a folder. ValueError: for a set that does not exist, one whose
            splits have different classes, and a class without a picture.
    """
    if kind not in SHOTS:
        raise ValueError(f"kind={kind!r}: possible are {', '.join(SHOTS)}")
    possible = [d for d in ORDER_I if d not in LEFT_OUT[kind]]
    chosen = sources.wanted(kind, possible, datasets)
    for what, given, least in (("shots", shots, 1), ("n_train", n_train, len(chosen))):
        if given is not None and given < least:
            raise ValueError(f"{what}={given!r}: a whole number of at least {least} is needed")
    if n_test is not None and n_test < len(chosen):
        raise ValueError(f"n_test={n_test!r}: at least one for each of {len(chosen)} sets is needed")
    folders = sources.parts(found(kind, source, ""), ORDER_I, _ALIASES, chosen, "datasets")
    sets = {d: _set(d, folder, seed) for d, folder in folders.items()}
    texts = {d: [PROMPT.format(n) for n in rows["train"].names] for d, rows in sets.items()}
    shots = SHOTS[kind] if shots is None else shots
    coming = _order(chosen, seed, order)
    keys = {}
    for split, most in (("train", n_train), ("test", n_test)):
        share, start, drawn = None if most is None else most // len(chosen), 0, list[Key]()
        for d in chosen:  # in one order whatever comes when: the same picture has the same index
            rows, turn = sets[d][split], coming.index(d)
            chance = np.random.default_rng([seed, 34 + (split == "test"), ORDER_I.index(d)])
            some = chance.permutation(np.asarray(rows.numbers)).tolist()
            if split == "train" and shots is not None:
                some = _few(some, rows.classes, shots)
            drawn += [Key(split, turn, start + row) for row in some[:share]]
            start += len(rows.cells)
        keys[split] = drawn
    joined = {split: _join([sets[d][split] for d in chosen]) for split in keys}
    experiences = [texts[d] for d in coming]
    met = [list(dict.fromkeys(t for e in experiences[: k + 1] for t in e)) for k in range(len(coming))]
    asked = experiences if kind == "mtil" else None
    stream = woven(name, joined, keys["train"], keys["test"], experiences, met, asked)
    stream.notes = [_note(kind, coming, asked is not None)]
    return stream


def _order(chosen: Sequence[str], seed: int, order: int) -> list[str]:
    """Order I, order II, and further ones from the seed."""
    if order < 2:
        return [d for d in (ORDER_I, ORDER_II)[order] if d in chosen]
    return [chosen[i] for i in np.random.default_rng([seed, order, 7]).permutation(len(chosen))]


def _set(name: str, folder: Path, seed: int) -> dict[str, Rows]:
    """Both splits of one set, every class with a picture in each."""
    for split in ("train", "test"):  # a folder without a picture is no class to `datasets`
        inside = sorted((folder / split).iterdir()) if (folder / split).is_dir() else []
        empty = [f.name for f in inside if f.is_dir() and not any(f.iterdir())]
        if empty:
            raise ValueError(f"{folder / split} has no picture of {', '.join(empty[:3])}")
    try:
        rows = {split: opened_rows(str(folder), False, split, seed) for split in ("train", "test")}
    except KeyError as error:
        raise ValueError(f"{folder}: {error.args[0]}") from error
    names = {split: some.names for split, some in rows.items()}
    if names["train"] != names["test"]:
        odd = sorted(set(names["train"]) ^ set(names["test"])) or ["their order"]
        raise ValueError(f"{name}: train and test have different classes: {', '.join(odd[:3])}")
    twice = [n for n, count in Counter(names["train"]).items() if count > 1]
    if twice:
        raise ValueError(f"{name}: two classes are called {twice[0]!r}")
    for split, some in rows.items():
        there = set(some.classes[np.asarray(some.numbers, dtype=int)].tolist())
        empty = [n for c, n in enumerate(some.names) if c not in there]
        if empty:
            raise ValueError(f"{name}: {split} has no picture of {', '.join(empty[:3])}")
    return rows


def _few(rows: Sequence[int], classes: np.ndarray, shots: int) -> list[int]:
    """The first `shots` rows of each class."""
    taken: Counter[int] = Counter()
    kept = []
    for row in rows:
        taken[int(classes[row])] += 1
        if taken[int(classes[row])] <= shots:
            kept.append(row)
    return kept


def _join(parts: Sequence[Rows]) -> Rows:
    cells = _Joined([p.cells for p in parts])
    names = tuple(n for p in parts for n in p.names)
    first = np.cumsum([0, *(len(p.names) for p in parts)])
    classes = np.concatenate([p.classes + c for p, c in zip(parts, first, strict=False)])
    numbers = [s + n for p, s in zip(parts, cells.starts, strict=False) for n in p.numbers]
    return Rows(cells, numbers, classes, names)


def _note(kind: str, coming: Sequence[str], known: bool) -> str:
    order = {ORDER_I: "order I", ORDER_II: "order II"}
    short = {tuple(d for d in o if d not in LEFT_OUT[kind]): said for o, said in order.items()}
    whole = short.get(tuple(coming), "an order of its own")
    among = "its own set's classes (the task is known)" if known else "the classes of all sets (no hint)"
    return f"{kind}, {whole}: {', '.join(coming)}; a probe is answered among {among}. 'final %' is Last."
