"""One self-contained page: what every method reached as the stream went by, what it cost, and where it
looked."""

import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from arr_coc.eval import table
from arr_coc.eval.overlay import TOP, colour_bar, data_uri

Record = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """One scene and its maps.

    Args:
        context: what was asked.
        label: the right answer.
        scene: data URI of the picture.
        maps: (name, data URI, answer or "", whether the answer is right), in the order of the columns.
    """

    context: str
    label: str
    scene: str
    maps: list[tuple[str, str, str, bool]]


def check_target(path: Path) -> Path:
    """The path to write to, made absolute.

    Raises:
        IsADirectoryError, FileNotFoundError: before anything long is run, if it cannot be written.
    """
    path = path.expanduser().absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; the name of a file is needed")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to")
    return path


def drawn(figure: Any) -> Markup:
    """A figure of matplotlib as SVG text, which is closed then."""
    from matplotlib import pyplot

    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=False, facecolor="white")
    pyplot.close(figure)
    text = file.getvalue()
    return Markup(text[text.index("<svg") :])


def rendered(template: str, **given: Any) -> str:
    """A template of this package with what it is given, escaped; a name that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("arr_coc.eval", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(template).render(**given)


def curves(runs: Sequence[Record], names: dict[str, str]) -> Markup:
    """Accuracy on every experience's probe after each experience, one panel per experience, as SVG text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    experiences = [", ".join(e) for e in runs[0]["experiences"]]
    shown = [r for r in runs if all(row is not None for row in r["R"])]
    columns = min(len(experiences), 3)
    rows = -(-len(experiences) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.1 * columns, 2.3 * rows), sharex=True, sharey=True, squeeze=False
    )
    for place, panel in enumerate(axes.flat):
        if place >= len(experiences):
            panel.axis("off")
            continue
        for r in shown:
            steps = range(len(r["R"]))
            panel.plot(steps, [100 * row[place] for row in r["R"]], label=names.get(r["method"], r["method"]))
        panel.axvspan(place, place + 1, color="0.5", alpha=0.18, lw=0)  # while it is taught
        panel.set_title(experiences[place], fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("experiences learned (its own in grey)", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    return drawn(figure)


def page(
    title: str,
    lead: str,
    runs: Sequence[Record],
    names: dict[str, str],
    looks: Sequence[Look] = (),
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML text.

    Args:
        runs: records of `run.run`, one stream.
        names: what a method is called on the page.
        looks: scenes with maps; the same columns in each.
        notes: sentences under the table.
    """
    rows = table.summary(runs)
    columns = list(table.columns(rows).items())
    body = [
        {
            "name": names.get(r["method"], r["method"]),
            "cells": [table.cell(r.get(key)) for _, key in columns],
            "learned": r["n_learned"],
            "cost": f"{r['step_cost']:.2f}",
            "milliseconds": f"{1e3 * r['step_seconds']:.1f}",
            "state": f"{r['state_bytes'] / 1e6:.1f}",
        }
        for r in rows
    ]
    return rendered(
        "page.html.jinja",
        title=title,
        lead=lead,
        columns=[c for c, _ in columns],
        rows=body,
        chance=f"{100 * rows[0]['chance']:.0f}",
        curves=curves(runs, names),
        looks=looks,
        bar=data_uri(colour_bar()),
        top=f"{TOP:g}",
        notes=[*notes, *table.notes(rows)],
    )


def write(path: Path, text: str | bytes) -> Path:
    """Write a file whole or not at all; text as UTF-8."""
    path = check_target(path)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    return path
