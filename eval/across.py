"""All streams beside one another: what every method ends with, and every measure of the plugin."""

from collections.abc import Sequence

from arr_coc.eval.shown import Shown
from arr_coc.eval.table import COLUMNS, Row, by_stream, cell, seeds, short


def across(rows: Sequence[Row]) -> list[Shown]:
    """From `table.summary`: one table of methods by streams (final accuracy), one of streams by measures (of
    the plugin, where it ran); nothing for a single stream.

    A cell is empty where a method has no place on a stream, or a measure does not exist there.
    """
    streams = by_stream(rows)
    if len(streams) < 2:
        return []
    found = {(row["stream"], row["method"]): row for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)

    def cells(key: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
        return [cell(found[pair].get(key)) if pair in found else "" for pair in pairs]

    over = f"{seeds(rows)} seeds"
    ends = [[short(m), *cells("final_accuracy", [(s, m) for s in streams])] for m in methods]
    ends.append(["chance", *(f"{100 * mine[0]['chance']:.0f}" for mine in streams.values())])
    out = [Shown(f"final accuracy %, {over}", ["method", *streams], ends)]
    mine = [s for s in streams if (s, "plugin") in found]
    measures = {c: k for c, k in COLUMNS.items() if any(k in found[s, "plugin"] for s in mine)}
    if mine:
        of = [[s, *(cells(k, [(s, "plugin")])[0] for k in measures.values())] for s in mine]
        out.append(Shown(f"{short('plugin')} on each, {over}", ["stream", *measures], of))
    return out
