"""Tables of text, and how they are printed."""

from collections.abc import Sequence
from dataclasses import dataclass

from arr_coc.eval import console


@dataclass(frozen=True)
class Shown:
    """A table ready to be printed: cells are text, the first of a row is its name; a note stands under it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


def markdown(shown: Sequence[Shown]) -> str:
    """The tables as Markdown."""
    out = []
    for t in shown:
        out += [f"**{t.title}**", "", "| " + " | ".join(t.columns) + " |", "|---" * len(t.columns) + "|"]
        out += ["| " + " | ".join(row) + " |" for row in t.rows]
        out += ["", *([t.note, ""] if t.note else [])]
    return "\n".join(out)


def say(shown: Sequence[Shown], as_markdown: bool = False) -> None:
    """Print the tables, as Markdown or drawn."""
    if as_markdown:
        print(markdown(shown))
        return
    for t in shown:
        console.table([dict(zip(t.columns, row, strict=True)) for row in t.rows], t.columns, t.title)
        if t.note:
            print(t.note)
