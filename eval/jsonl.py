"""Runs as lines of JSON: each is appended as it ends, so that what was stopped goes on."""

import json
from pathlib import Path
from typing import Any


def read(path: Path | None) -> list[dict[str, Any]]:
    """The runs of a JSONL file, none without one; a line that was cut off is a run that did not end."""
    if path is None or not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append(path: Path | None, record: dict[str, Any]) -> None:
    """Write one run after the others; nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":  # a line that was cut off must not swallow the next one
                file.write(b"\n")
        file.write((json.dumps(record) + "\n").encode())
