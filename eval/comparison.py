"""The page of `arr-coc eval --html`: every stream's table, curves, matrices, comparisons and costs."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from arr_coc.eval import comparison_figures as figures
from arr_coc.eval import table
from arr_coc.eval.report import rendered
from arr_coc.eval.rules_report import NEEDS
from arr_coc.eval.standing import Standing, standings

Record = dict[str, Any]


def anchor(stream: str) -> str:
    """A stream's name as the id of its section."""
    return "stream-" + re.sub(r"[^A-Za-z0-9-]+", "-", stream).strip("-")


def page(runs: Sequence[Record], names: Mapping[str, str] | None = None) -> str:
    """The page as HTML text.

    Args:
        runs: of any number of streams, as `run.run_all` returns them.
        names: what a method is, said where the methods are listed.
    """
    summary = table.by_stream(table.summary(runs))
    methods = list(dict.fromkeys(r["method"] for r in runs))
    shades = figures.colours(methods)
    stand = standings(runs)
    replay = list(dict.fromkeys(s.other for s in stand if s.kind == "replay"))
    sections = [
        _section(stream, rows, [r for r in runs if r["label"] == stream], shades)
        for stream, rows in summary.items()
    ]
    seeds = sorted({r["seed"] for r in runs})
    orders = sorted({r["order"] for r in runs})
    return rendered(
        "comparison.html.jinja",
        title="Continual learning, method by method",
        lead=f"{_count(len(methods), 'method')} on {_count(len(summary), 'stream')}, "
        f"{_count(len(seeds), 'seed')} and {_count(len(orders), 'order')} of experiences. One pass, the same "
        "samples in the same order for every method; what was tuned was tuned on another seed.",
        interval=_interval(max(table.seeds(rows) for rows in summary.values())),
        sections=sections,
        overview=_overview(summary, methods),
        needs=[_needs(m, runs, names or {}) for m in methods],
        standings=[_stands(stream, stand, replay) for stream in summary] if stand else [],
        replay=replay,
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _interval(seeds: int) -> str:
    if seeds < 2:
        return "One seed: there is no interval."
    return (
        f"± is the half-width of the 95 % Student-t interval over up to {seeds} seeds, orders averaged first."
    )


def _overview(summary: Mapping[str, list[table.Row]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Final accuracy, a row a method and a cell a stream; `best`: the highest mean that is no bound's."""
    out = []
    for method in methods:
        cells = []
        for stream, rows in summary.items():
            mine = next((r for r in rows if r["method"] == method), None)
            if mine is None:
                cells.append({"stream": stream, "text": "", "best": False})
                continue
            ranked = [r["final_accuracy"].mean for r in rows if r["role"] != "bound"]
            value = mine["final_accuracy"]
            best = mine["role"] != "bound" and value.mean == max(ranked)
            cells.append({"stream": stream, "text": table.cell(value), "best": best})
        out.append({"method": method, "name": table.short(method), "cells": cells})
    return out


def _section(
    stream: str,
    rows: list[table.Row],
    runs: list[Record],
    shades: Mapping[str, Any],
) -> dict[str, Any]:
    first, several = runs[0], len(runs[0]["experiences"]) > 1
    columns = table.columns(rows)
    told = [", ".join(e) for e in first["experiences"]]
    return {
        "id": anchor(stream),
        "name": stream,
        "chance": f"{100 * rows[0]['chance']:.1f}",
        "pointing_chance": ""
        if not rows[0]["pointing_chance"]
        else f"{100 * rows[0]['pointing_chance']:.0f}",
        "tested": rows[0]["n_probe"],
        "learned": rows[0]["n_learned"],
        "experiences": len(told),
        "told": told if sum(map(len, told)) < 900 else [],
        "columns": list(columns.items()),
        "rows": [
            {
                "method": r["method"],
                "name": table.short(r["method"]),
                "role": r["role"],
                "few": r["n_learned"] if r["n_learned"] != rows[0]["n_learned"] else "",
                "cells": [(key, table.cell(r.get(key))) for key in columns.values()],
                "runs": r["runs"],
                "cost": f"{r['step_cost']:.2f}",
                "milliseconds": f"{1e3 * r['step_seconds']:.2f}",
                "forward": f"{1e3 * r['forward_seconds']:.1f}",
                "state": f"{r['state_bytes'] / 1e6:.2f}",
                "settings": ", ".join(f"{k} {v:g}" for k, v in r["settings"].items()),
                "error": f"{100 * r['binomial_error']:.1f}",
            }
            for r in rows
        ],
        "pairs": [_pair(r) for r in rows if "vs_plugin" in r],
        "anytime": figures.anytime(runs, shades) if several else Markup(""),
        "matrices": figures.matrices(runs) if several else Markup(""),
        "forgetting": figures.forgetting(rows, shades) or Markup(""),
    }


def _pair(row: table.Row) -> dict[str, str]:
    """A method minus the plugin: the difference in points, its interval, p, and p by Holm."""
    d = row["vs_plugin"]
    p, holm = row.get("vs_plugin_p"), row.get("vs_plugin_p_holm")
    return {
        "method": row["method"],
        "difference": table.signed(d),
        "interval": "" if d.n < 2 else f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
        "p": "" if p is None else _p(p),
        "holm": "" if holm is None else _p(holm),
        "sign": "" if holm is None or holm >= 0.05 else ("above" if d.mean > 0 else "below"),
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _stands(stream: str, stand: Sequence[Standing], replay: Sequence[str]) -> dict[str, Any]:
    """One stream's row: the plugin minus the best other without replay, and minus each of these methods."""
    mine = [s for s in stand if s.stream == stream]
    best = next((s for s in mine if s.kind != "replay"), None)
    beside = {s.other: table.signed(s.difference) for s in mine if s.kind == "replay"}
    return {
        "stream": stream,
        "id": anchor(stream),
        "best": "" if best is None else best.other,
        "difference": "" if best is None else table.signed(best.difference),
        "holds": "" if best is None else {True: "yes", False: "no", None: "one seed"}[best.holds],
        "replay": [beside.get(m, "") for m in replay],
    }


def _needs(method: str, runs: Sequence[Record], names: Mapping[str, str]) -> dict[str, Any]:
    """What a method may use: samples kept, being told of tasks, and what its learning rule has to know."""
    mine = [r for r in runs if r["method"] == method]
    told = [r["ledger"] for r in mine if r.get("ledger") is not None]
    ledger = sorted({n for entries in told for n in entries}, key=list(NEEDS).index)
    return {
        "method": method,
        "name": table.short(method),
        "about": names.get(method, ""),
        "role": mine[0]["role"],
        "stored": max(r.get("stored_samples", 0) for r in mine),
        "boundaries": "yes" if any(r.get("told_boundaries", False) for r in mine) else "no",
        "ledger": (", ".join(NEEDS[n] for n in ledger) or "nothing of these") if told else "",
    }
