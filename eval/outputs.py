"""What runs are written as, whole or not at all: raw records, and the summary for people and programs."""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from arr_coc.eval import records, table
from arr_coc.eval.exam import Record
from arr_coc.eval.intervals import Interval
from arr_coc.eval.report import check_target, write
from arr_coc.eval.standing import standings

SCORES = {"R": "accuracy", "C": "cumulative", "P": "pointing", "CP": "cumulative_pointing"}
Names = Mapping[str, str]


def to_records(runs: Sequence[Record]) -> list[records.Record]:
    """Runs as raw records, one per step and probe: accuracy, cumulative, pointing, cumulative_pointing, and
    zero_shot (probe 0) before and after; "class: <label>" is the accuracy at the end on a probe's samples of
    that label."""
    out = []
    for found in runs:
        who = (found["method"], found["label"], found["seed"], found["order"])
        sizes = {"R": found["n_probe"], "C": np.cumsum(found["n_probe"]).tolist()}
        sizes |= {"P": sizes["R"], "CP": sizes["C"]}
        for name, score in SCORES.items():
            for step, row in enumerate(found[name] or []):
                for probe, value in enumerate(row or []):
                    if value is not None:
                        n = int(sizes[name][probe])
                        right = value * n if "P" in name else round(value * n)
                        out.append(records.Record(*who, step, probe, n, min(right, n), score))
        last = len(found["R"]) - 1
        for probe, labels in enumerate(found.get("by_class") or []):
            for label, (right, n) in labels.items():
                out.append(records.Record(*who, last, probe, n, right, f"class: {label}"))
        for step, what in ((0, "zero_shot_before"), (last, "zero_shot_after")):
            if found[what] is not None:
                n = found["n_held"]
                out.append(records.Record(*who, step, 0, n, round(found[what] * n), "zero_shot"))
    return out


def latest(runs: Sequence[Record]) -> list[Record]:
    """Of the same run under two configs the last one."""
    return list({(r["label"], r["method"], r["seed"], r["order"]): r for r in runs}.values())


def export(runs: Sequence[Record], path: Path) -> None:
    """Write the raw records of the `latest` runs as JSON lines.

    Outdated experiences are among them: what is final in a table is asked without those (`table.final`).
    """
    records.write(path, to_records(latest(runs)))


def flat(row: table.Row) -> dict[str, Any]:
    """A row of `table.summary` in plain numbers: an interval is its mean, with `..._half`, `..._sd` and
    `..._n` (seeds) beside it; what is not known (the half-width of one seed) is None. Scores are shares."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Interval):
            out[name] = value.mean
            out |= {f"{name}_{part}": getattr(value, part) for part in ("half", "sd", "n")}
        else:
            out[name] = value
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in out.items()}


def frame(rows: Sequence[table.Row]) -> pandas.DataFrame:
    """The summary with one row per (stream, method), see `flat`; settings are JSON."""
    plain = [flat(r) | {"settings": json.dumps(r["settings"])} for r in rows]
    return pandas.DataFrame(plain)


def as_csv(runs: Sequence[Record], names: Names) -> str:
    """The summary as comma-separated values, see `frame`."""
    return str(frame(table.summary(runs)).to_csv(index=False, lineterminator="\n"))


def as_json(runs: Sequence[Record], names: Names) -> str:
    """The summary, how the plugin stands, and the raw runs that both come from."""
    rows = table.summary(runs)
    whole = {
        "rows": [flat(r) for r in rows],
        "standings": [flat(asdict(s) | {"difference": s.difference}) for s in standings(runs)],
        "runs": list(runs),
    }
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def as_latex(runs: Sequence[Record], names: Names) -> str:
    r"""One table per stream, as printed, for \usepackage{booktabs}."""
    out = []
    for stream, rows in table.by_stream(table.summary(runs)).items():
        shown = [{"method": table.short(r["method"]), **table.cells(r, rows)} for r in rows]
        chance = f"chance {100 * rows[0]['chance']:.0f} %, {rows[0]['n_probe']} test samples"
        caption = f"{stream} ({chance}); 95 % intervals over {table.seeds(rows)} seeds"
        for sign, meant in (("%", r"\%"), ("_", r"\_"), ("&", r"\&")):
            caption = caption.replace(sign, meant)
        text = pandas.DataFrame(shown).to_latex(
            index=False,
            escape=True,
            caption=caption,
            label=f"tab:{stream}",
            column_format="l" + "r" * (len(shown[0]) - 1),
        )
        out.append(text.replace(" ± ", r" $\pm$ ").replace("−", "$-$"))
    return "\n".join(out)


def as_parquet(runs: Sequence[Record], names: Names) -> bytes:
    """The raw records of the `latest` runs, one row each (see `records.Record`)."""
    file = io.BytesIO()
    rows = pandas.DataFrame([asdict(r) for r in to_records(latest(runs))])
    rows.astype({"correct": "float64"}).to_parquet(file, index=False)
    return file.getvalue()


def as_html(runs: Sequence[Record], names: Names) -> str:
    """One page, see `comparison`."""
    from arr_coc.eval.comparison import page

    return page(runs, names)


KINDS: dict[str, Callable[[Sequence[Record], Names], str | bytes]] = {
    "json": as_json,
    "csv": as_csv,
    "latex": as_latex,
    "parquet": as_parquet,
    "html": as_html,
}


def targets(asked: Mapping[str, Path | None], out: Path | None = None) -> dict[str, Path]:
    """The files to write by kind, checked before anything long is run.

    Args:
        asked: by a name of `KINDS`; None where it is not wanted.
        out: where runs are kept, which is no place for anything else.

    Raises:
        ValueError: for two outputs in one file.
        IsADirectoryError, FileNotFoundError: as `report.check_target`.
    """
    found = {kind: check_target(path) for kind, path in asked.items() if path is not None}
    taken = {} if out is None else {out.expanduser().absolute(): "out"}
    for kind, path in found.items():
        if path in taken:
            raise ValueError(f"--{kind} and --{taken[path]} are both {path}; each needs a file of its own")
        taken[path] = kind
    return found


def write_all(runs: Sequence[Record], where: Mapping[str, Path], names: Names | None = None) -> None:
    """Write the runs in each of these kinds.

    Args:
        where: as `targets` gives it.
        names: what a method is, for the page's list of methods.
    """
    for kind, path in where.items():
        write(path, KINDS[kind](runs, names or {}))
