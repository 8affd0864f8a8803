"""Small tasks for the tests of processes, which a process that is started afresh can import."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from arr_coc.eval.jsonl import append

LINE = "x" * 200_000  # far more than a pipe or a buffer takes at once


@dataclass(frozen=True)
class Chore:
    """One task: `kind` says what is done."""

    kind: str
    value: int = 0
    path: Path | None = None

    @property
    def what(self) -> str:
        return f"chore {self.kind} {self.value}"

    def do(self, bench: dict[str, int], progress: Any) -> Iterator[Any]:
        if self.kind == "powers":
            yield from (bench["base"] ** k for k in range(self.value))
        elif self.kind == "threads":
            yield torch.get_num_threads()
        elif self.kind == "append":
            for k in range(20):
                append(self.path, {"key": [self.value, k], "long": LINE})
            yield self.value
        elif self.kind == "fail":
            yield "before"
            raise LookupError("nothing there")
        elif self.kind == "die":
            os._exit(7)
        elif self.kind == "sleep":
            assert self.path is not None
            (self.path / str(os.getpid())).touch()
            yield "asleep"
            time.sleep(600)


def sleep_in_two(folder: str) -> None:
    """Two processes that sleep until somebody ends this one."""
    from arr_coc.eval.workers import Pool

    with Pool({}, 2) as pool:
        for _ in pool.each([Chore("sleep", i, Path(folder)) for i in range(2)]):
            pass
