"""core50 and core50-nc: objects in a hand, in eleven sessions (CORe50, Lomonaco & Maltoni 2017).

    core50?source=core50_128x128    core50-nc?source=core50_128x128

The folder is as it is published, s1/o1/C_01_01_000.png and so on: a session, one of 50 objects, a frame.
Sessions 3, 7 and 10 are for examining, the other eight are learned from. `core50` (New Instances) has one
session after another; the test set is one and the same for all, so each experience's probe is an eighth of it
and the mean over probes is the published measure. `core50-nc` (New Classes) has nine steps: ten objects, here
one of each category, and then five at a time, each probe the test frames of its objects. Orders are drawn
from the seed and the order; the published lists of ten runs are not read.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from arr_coc.training.stream_sets import Rows, assemble, found
from arr_coc.training.streams import PROMPT, Stream

OPTIONS = ("by", "source", "n_train", "n_test")
TEST_SESSIONS = (3, 7, 10)
SESSIONS = tuple(s for s in range(1, 12) if s not in TEST_SESSIONS)
CATEGORIES = (
    *("plug adapter", "mobile phone", "scissors", "light bulb", "can"),
    *("glasses", "ball", "marker", "cup", "remote control"),
)
EACH = 5  # objects of a category
NAMES = tuple(f"{category} {n}" for category in CATEGORIES for n in range(1, EACH + 1))
_FILE = re.compile(r"s(\d+)/o(\d+)/C_\d+_\d+_(\d+)\.png$")


def make(
    name: str,
    seed: int,
    order: int,
    by: str = "sessions",
    source: str = "",
    n_train: int | None = None,
    n_test: int | None = None,
) -> Stream:
    """Candidates are all 50 objects by sessions, the objects met so far by classes.

    Args:
        by: what an experience is, "sessions" or "classes".
        source: the folder with s1 to s11.
        n_train, n_test: frames, drawn from the seed; all by default.
    """
    if by not in ("sessions", "classes"):
        raise ValueError(f"by={by!r}: possible are 'sessions', 'classes'")
    where, session, objects = _frames(found("core50", source, ""))
    cells = [{"path": path, "bytes": None} for path in where]
    examined = np.isin(session, TEST_SESSIONS)
    rows = {
        "train": Rows(cells, np.flatnonzero(~examined).tolist(), objects, NAMES),
        "test": Rows(cells, np.flatnonzero(examined).tolist(), objects, NAMES),
    }
    texts, chance = [PROMPT.format(n) for n in NAMES], np.random.default_rng([seed, order, 7])
    sizes = {"train": n_train, "test": n_test}
    if by == "classes":
        steps = _steps(chance)
        turn = {o: t for t, step in enumerate(steps) for o in step}
        taught = [[texts[o] for o in step] for step in steps]
        met = [[text for e in taught[: k + 1] for text in e] for k in range(len(taught))]
        return assemble(name, seed, rows, lambda split, row: turn[int(objects[row])], taught, met, sizes)
    coming = {SESSIONS[i]: t for t, i in enumerate(chance.permutation(len(SESSIONS)))}
    part = dict(zip(rows["test"].numbers, np.arange(int(examined.sum())) % len(SESSIONS), strict=True))

    def turns(split: str, row: int) -> int:
        return coming[int(session[row])] if split == "train" else int(part[row])

    said = [[f"session {s}"] for s in sorted(coming, key=lambda s: coming[s])]
    return assemble(name, seed, rows, turns, said, [texts] * len(SESSIONS), sizes)


def _steps(chance: np.random.Generator) -> list[list[int]]:
    """Objects of the nine steps: one of each category, then five at a time."""
    first = [c * EACH + int(chance.integers(EACH)) for c in range(len(CATEGORIES))]
    rest = chance.permutation([o for o in range(len(NAMES)) if o not in first])
    return [first, *rest.reshape(-1, EACH).tolist()]


@lru_cache(maxsize=4)
def _frames(source: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Files in the order of session, object and frame; the session of each, and its object, 0 to 49."""
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"{source} is no folder")
    read = [(_FILE.search(path.as_posix()), path) for path in folder.glob("s*/o*/*.png")]
    told = sorted((int(m[1]), int(m[2]), int(m[3]), str(path)) for m, path in read if m)
    wrong = [f"s{s}/o{o}" for s, o, _, _ in told if not (1 <= s <= 11 and 1 <= o <= len(NAMES))]
    if not told or wrong:
        raise ValueError(
            f"{source} has not the layout of CORe50, s1/o1/C_01_01_000.png to s11 and o50"
            + (f": {wrong[0]}" if wrong else "")
        )
    session, objects = np.array([(s, o) for s, o, _, _ in told]).T
    return [path for *_, path in told], session, objects - 1
