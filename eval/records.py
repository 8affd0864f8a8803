"""Raw records: one line of JSON per method, stream, seed, order, step, probe and score; all else is derived.

They are written whole or not at all, and read strictly: a line that is not exactly a record is an error.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Record:
    """`correct` of `n` on one probe at one step of one run.

    Args:
        method: who was examined.
        stream: on what.
        seed, order: of the run.
        step: experiences learned, 0 before any.
        probe: 0..T-1.
        n: test samples.
        correct: how many right; a fraction where a score has ties (pointing).
        score: what was counted: "accuracy", "cumulative" (C[step][probe + 1]), "pointing" ...
    """

    method: str
    stream: str
    seed: int
    order: int
    step: int
    probe: int
    n: int
    correct: float
    score: str = "accuracy"

    def __post_init__(self) -> None:
        for name in ("method", "stream", "score"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"{name}={value!r}: a word is needed")
        for name, least in (("seed", 0), ("order", 0), ("step", 0), ("probe", 0), ("n", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}: a whole number of at least {least} is needed")
        if type(self.correct) not in (int, float) or not (
            math.isfinite(self.correct) and 0 <= self.correct <= self.n
        ):
            raise ValueError(f"correct={self.correct!r}: 0 to n={self.n} are possible")

    @property
    def run(self) -> tuple[str, str, int, int]:
        """Method, stream, seed, order."""
        return self.method, self.stream, self.seed, self.order


_NAMES = [f.name for f in fields(Record)]


def _checked(records: Iterable[Record]) -> list[Record]:
    kept = list(records)
    seen: set[tuple[object, ...]] = set()
    for record in kept:
        what = (*record.run, record.score, record.step, record.probe)
        if what in seen:
            raise ValueError(f"two records of {what}: a probe is scored once per step")
        seen.add(what)
    return kept


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, into a file beside it that is then renamed: a reader never sees half.

    Raises:
        ValueError: if the same thing was recorded twice; nothing is written then.
    """
    kept, target = _checked(records), Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(record), allow_nan=False) + "\n" for record in kept)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read(path: str | Path) -> list[Record]:
    """Read what `write` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: with the number of the line that is not exactly a record, or that repeats one.
    """
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or sorted(row) != sorted(_NAMES):
                raise ValueError(f"its fields have to be {', '.join(_NAMES)}")
            records.append(Record(**row))
        except ValueError as error:  # json's own error is one
            raise ValueError(f"{path}, line {number} is no record: {error}") from error
    return _checked(records)


def matrix(records: Sequence[Record], score: str = "accuracy") -> NDArray[np.float64]:
    """The scores of one run as (T + 1, T), row 0 before any learning, as `metrics` takes them.

    Args:
        records: of one method, stream, seed and order; those of other scores are passed over.
        score: which. What was not scored is NaN.
    Raises:
        ValueError: records of more than one run, or none of this score.
    """
    runs = {r.run for r in records}
    if len(runs) > 1:
        raise ValueError(f"records of {len(runs)} runs: one method, stream, seed and order are needed")
    mine = [r for r in records if r.score == score]
    if not mine:
        had = sorted({r.score for r in records})
        raise ValueError(f"no record of {score!r}; there are {had}")
    count = max(max(r.probe + 1, r.step) for r in mine)
    scores = np.full((count + 1, count), np.nan)
    for r in mine:
        scores[r.step, r.probe] = r.correct / r.n
    return scores


def by_run(records: Iterable[Record]) -> dict[tuple[str, str, int, int], list[Record]]:
    """The records of each method, stream, seed and order, in the order in which the runs first appear."""
    runs: dict[tuple[str, str, int, int], list[Record]] = {}
    for record in records:
        runs.setdefault(record.run, []).append(record)
    return runs
