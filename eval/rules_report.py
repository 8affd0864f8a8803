"""The table of learning rules: for the terminal, Markdown, JSON and a page with curves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from markupsafe import Markup

from arr_coc.eval.report import drawn, rendered
from arr_coc.eval.rules_entries import BASELINE, FROZEN
from arr_coc.eval.rules_table import Cell, Cost, Run, angle, summary
from arr_coc.eval.rules_train import Entry
from arr_coc.eval.shown import Shown
from arr_coc.eval.table import cell

NEEDS = {
    "weight_transport": "weights down",
    "two_phases": "two phases",
    "global_scalar": "global scalar",
    "error_vector_broadcast": "error broadcast",
    "update_locking": "locking",
    "iterative_settling": "settling",
    "layer_wide_matrix": "layer matrix",
    "stored_activations": "stored activity",
    "signed_errors": "signed errors",
}


def _number(value: float, digits: int = 1, unit: str = "") -> str:
    if math.isnan(value):
        return ""
    return "never" if math.isinf(value) else f"{value:.{digits}f}{unit}"


def tables(
    runs: Sequence[Run],
    entries: Sequence[Entry],
    costs: dict[str, Cost] | None = None,
    ledgers: dict[str, list[str]] | None = None,
    said: str = "",
) -> list[Shown]:
    """One table per (task, depth), then one of what each rule costs and needs.

    Args:
        said: how was learned, for the titles.
    """
    seeds = len({r.seed for r in runs})
    out = []
    for (task, depth), cells in summary(runs).items():
        rows = [[name, *_cells(c)] for name, c in cells.items()]
        out.append(
            Shown(
                ", ".join([f"{task}, depth {depth}", *([said] if said else [])]),
                ["rule", "accuracy %", "of backprop %", "gap closed %", "passes to 95 %", "angle", "rate"],
                rows,
                f"{seeds} seeds, ± the half-width of the 95 % Student-t interval; of backprop and gap closed "
                f"are paired by seed; the gap is from {FROZEN} to {BASELINE}; passes until 95 % of "
                "backprop's final accuracy, and that over backprop's own; angle between the update of W "
                "and the gradient before learning, half way, at the end.",
            )
        )
    if costs is not None and ledgers is not None:
        rows = []
        for e in entries:
            c = costs[e.name]
            needs = ", ".join(NEEDS[n] for n in ledgers[e.name])
            rows.append([e.name, f"{c.time:.2f}x", f"{c.memory:.2f}x", needs, e.published])
        out.append(
            Shown(
                "what a step costs, and what the rule needs",
                ["rule", "time", "peak memory", "audited needs", "published"],
                rows,
                "Over backprop's step on garments, depth 4, batch 64, steps taken in turn in one process.",
            )
        )
    return out


def _cells(c: Cell) -> list[str]:
    slower = "" if not math.isfinite(c.slower) else f" ({_number(c.slower)}x)"
    angles = "" if math.isnan(c.angles[0]) else "/".join(_number(a, 0) or "–" for a in c.angles) + "°"
    return [
        cell(c.accuracy),
        "" if c.ratio is None else cell(c.ratio),
        "" if c.closed is None else cell(c.closed),
        _number(c.epochs, 0) + slower,
        angles,
        f"{c.rate:g}",
    ]


def as_json(runs: Sequence[Run], shown: Sequence[Shown]) -> dict[str, Any]:
    """The tables as they are printed, and the runs that they come from."""
    return {"tables": [asdict(t) for t in shown], "runs": [asdict(r) for r in runs]}


def _curves(runs: Sequence[Run], label: str, what: Callable[[Run], list[float]]) -> Markup:
    """One panel per (task, depth), a line per rule: the mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = list(dict.fromkeys((r.task, r.depth) for r in runs))
    names = list(dict.fromkeys(r.entry for r in runs))
    columns = min(len(places), 2)
    height = -(-len(places) // columns)
    figure, axes = pyplot.subplots(height, columns, figsize=(4.6 * columns, 3.2 * height), squeeze=False)
    colours = pyplot.get_cmap("tab20")
    for place, panel in enumerate(axes.flat):
        if place >= len(places):
            panel.axis("off")
            continue
        for k, name in enumerate(names):
            mine = [what(r) for r in runs if (r.task, r.depth) == places[place] and r.entry == name]
            if mine and all(len(c) == len(mine[0]) for c in mine):
                mean = [sum(c[t] for c in mine) / len(mine) for t in range(len(mine[0]))]
                panel.plot(mean, label=name, color=colours(k % 20), lw=2.2 if name == BASELINE else 1.2)
        panel.set_title(f"{places[place][0]}, depth {places[place][1]}", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.supxlabel("passes", fontsize=9)
    figure.supylabel(label, fontsize=9)
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.04 + 0.02 * (len(names) // 4), 1, 1))
    return drawn(figure)


def page(runs: Sequence[Run], shown: Sequence[Shown]) -> str:
    """The page as HTML text."""
    return rendered(
        "rules.html.jinja",
        title="Learning rules on one ladder",
        lead="The same ladder, samples, optimizer and passes; each rule's rate was chosen on another seed.",
        tables=shown,
        curves=_curves(runs, "held-out accuracy, %", lambda r: [100 * a for a in r.course.accuracy]),
        angles=_curves(runs, "degrees", lambda r: [angle(c) for c in r.course.alignment]),
    )
