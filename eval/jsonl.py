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
    """Write one run after the others; nothing without a path.

    Several processes may append to one file on a local disk: a line goes to its end in one write. A line that
    was cut off does not swallow the next one (where it is another's that is just being written, an empty line
    is left, which `read` passes over).
    """
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(record) + "\n").encode()
    with path.open("a+b", buffering=0) as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            line = line if file.read(1) == b"\n" else b"\n" + line
        written = file.write(line)
    if written != len(line):
        raise OSError(f"{path}: only {written} of {len(line)} bytes of a run were written; is the disk full?")
