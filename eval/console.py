"""What commands share: one line for an error, a bar for long work, a table for what was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from arr_coc.eval.percepts import Progress


@contextmanager
def errors() -> Iterator[None]:
    """What a person can mend comes out as one line and exit code 2, not as a traceback."""
    try:
        yield
    except (ValueError, OSError, TypeError, ImportError) as error:
        where = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        typer.secho(f"arr-coc: {error}{where}", fg="red", err=True)
        raise typer.Exit(2) from error


@contextmanager
def bar() -> "Iterator[Progress]":
    """A progress bar that follows calls (what, done, of)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def follow(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of or None)

        yield follow


def table(rows: list[dict[str, Any]], columns: list[str], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for place, column in enumerate(columns):
        shown.add_column(column, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        shown.add_row(*(str(row.get(c, "")) for c in columns))
    console = Console()
    # a table that goes into a file or a pipe is not squeezed into 80 columns
    Console(width=console.width if console.is_terminal else 180).print(shown)


def results(runs: list[dict[str, Any]], names: dict[str, str] | None = None) -> None:
    """The summary of runs, one table per stream."""
    from arr_coc.eval import table as tables

    rows = tables.summary(runs)
    for stream, mine in tables.by_stream(rows).items():
        columns = tables.columns(mine)
        shown = [
            {"method": (names or {}).get(r["method"], r["method"])}
            | {c: tables.cell(r.get(key)) for c, key in columns.items()}
            | {"step x forward": f"{r['step_cost']:.2f}", "state MB": f"{r['state_bytes'] / 1e6:.1f}"}
            | {"samples": r["n_learned"], "runs": r["runs"]}
            for r in mine
        ]
        chance = f"chance {100 * mine[0]['chance']:.0f} %, {mine[0]['n_probe']} test samples"
        table(
            shown,
            ["method", *columns, "step x forward", "state MB", "samples", "runs"],
            f"{stream} ({chance})",
        )
        for note in tables.notes(mine):
            typer.echo(note)


def numbers(text: str) -> list[int]:
    """ "0,1,2" or "0-4" as whole numbers."""
    try:
        if "-" in text:
            first, last = (int(t) for t in text.split("-"))
            return list(range(first, last + 1))
        return [int(t) for t in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} names no whole numbers; possible are '0,1,2' or '0-4'") from error
