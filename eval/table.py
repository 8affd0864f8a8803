"""From raw runs to one row per method: means over orders first, then Student-t over seeds."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from arr_coc.eval import metrics, published
from arr_coc.eval.intervals import Interval, binomial_error, holm, paired, student_t
from arr_coc.eval.percepts import faults
from arr_coc.training.stream_options import split_name

Record = dict[str, Any]
Row = dict[str, Any]


def matrix(found: Record, name: str = "R") -> np.ndarray | None:
    """One of a run's matrices as (T + 1, T), NaN where nothing was scored; None where there is none."""
    rows = found[name]
    if rows is None:
        return None
    width = len(rows[-1])
    blank = [math.nan] * width
    return np.array([[math.nan if v is None else v for v in (r or blank)] for r in rows], dtype=float)


def current(found: Record) -> list[int]:
    """The probes whose experiences no later one contradicts: those that a run's end is asked about."""
    outdated = set(found.get("outdated", ()))
    return [j for j in range(len(found["R"][-1])) if j not in outdated]


def final(found: Record, name: str = "R") -> float:
    """mean_j of the last row over the `current` probes j."""
    return float(np.mean([found[name][-1][j] for j in current(found)]))


def final_classes(found: Record) -> dict[str, tuple[int, int]]:
    """By label over the `current` probes, at the end: (right, of). Empty for a record that does not tell."""
    out: dict[str, tuple[int, int]] = {}
    for j in current(found) if found.get("by_class") else ():
        for label, (right, n) in found["by_class"][j].items():
            before = out.get(label, (0, 0))
            out[label] = before[0] + right, before[1] + n
    return out


def _counts(found: Record) -> tuple[list[int], list[int]]:
    """Right, and of how many, by class."""
    both = final_classes(found).values()
    return [right for right, _ in both], [n for _, n in both]


def calibration(found: Record) -> tuple[list[float], list[float], list[float]]:
    """Answers, their summed confidence and right answers by bin of confidence, over the `current` probes at
    the end; nothing for a record that does not tell."""
    bins: dict[int, list[float]] = {}
    for j in current(found) if found.get("calibration") else ():
        for b, *sums in found["calibration"][j]:
            before = bins.get(b, [0.0, 0.0, 0.0])
            bins[b] = [x + y for x, y in zip(before, sums, strict=True)]
    n, p, right = ([of[i] for of in bins.values()] for i in range(3))
    return n, p, right


def uneven(found: Record) -> bool:
    """Whether a run's classes are not alike: its stream has an imbalance, or one class is at least twice as
    often in its probes as another, and chance does not draw such counts (chi-square, p < 0.001)."""
    _, count = _counts(found)
    if len(count) < 2:
        return False
    drawn = max(count) < 2 * min(count) or stats.chisquare(count).pvalue >= 0.001
    return not drawn or "imbalance" in split_name(found["stream"])[1]


def scores(found: Record) -> dict[str, float]:
    """What one run comes to, by the names of METRICS; a measure that it does not support is left out.

    What a run ends with is asked where its stream is not outdated; the measures of forgetting and transfer
    look at all of it, and count relearning as forgetting.
    """
    r, c, p, cp = (matrix(found, name) for name in ("R", "C", "P", "CP"))
    assert r is not None
    assert c is not None
    asked: dict[str, Callable[[], float]] = {"final_accuracy": lambda: final(found)}
    if uneven(found):
        asked["balanced_accuracy"] = lambda: metrics.balanced_accuracy(*_counts(found))
    if found.get("calibration"):
        n, sure, right = calibration(found)
        asked |= {
            "expected_calibration_error": lambda: metrics.expected_calibration_error(n, sure, right),
            "chance_calibration_error": lambda: metrics.chance_calibration_error(n, sure),
        }
    if len(found["R"]) > 2:
        asked |= {
            "average_incremental_accuracy": lambda: metrics.average_incremental_accuracy(r),
            "bwt_gem": lambda: metrics.bwt_gem(r),
            "bwt_coin": lambda: metrics.bwt_coin(r),
            "transfer_zscl": lambda: metrics.transfer_zscl(r),
            "mtil_average": lambda: metrics.mtil_average(r),
            "cumulative_forgetting": lambda: metrics.cumulative_forgetting(c),
        }
    if p is not None and cp is not None:
        asked["final_pointing"] = lambda: final(found, "P")
        if len(found["R"]) > 2:
            asked["cumulative_forgetting_of_pointing"] = lambda: metrics.cumulative_forgetting(cp)
    before = found["zero_shot_before"]
    if before:
        asked["zero_shot_retention"] = lambda: metrics.zero_shot_retention(before, found["zero_shot_after"])
        asked["zero_shot_after"] = lambda: found["zero_shot_after"]
        if found.get("learned_after") is not None:
            asked["learned_after"] = lambda: found["learned_after"]
            asked["harmonic_mean"] = lambda: metrics.harmonic_mean(
                found["learned_after"], found["zero_shot_after"]
            )
    out = {}
    for name, measure in asked.items():
        try:
            value = measure()
        except (
            ValueError
        ):  # a bound is examined at the end alone: what reads other rows does not exist for it
            continue
        if math.isfinite(value):
            out[name] = value
    return out


def _square(values: dict[tuple[int, int], float]) -> np.ndarray:
    """(seeds, orders); every seed must have the same orders."""
    seeds = sorted({s for s, _ in values})
    orders = sorted({o for _, o in values})
    missing = [(s, o) for s in seeds for o in orders if (s, o) not in values]
    if missing:
        raise ValueError(f"no run of seed and order {missing[:3]}: every seed needs the same orders")
    return np.array([[values[s, o] for o in orders] for s in seeds])


def _by_seed(values: dict[tuple[int, int], float]) -> dict[int, float]:
    """Mean over the orders of each seed."""
    return dict(zip(sorted({s for s, _ in values}), _square(values).mean(1).tolist(), strict=True))


def interval(values: dict[tuple[int, int], float]) -> Interval:
    """Mean over orders, Student-t over seeds; with one seed the half-width is NaN: it is not known."""
    square = _square(values)
    if len(square) > 1:
        return student_t(square)
    return Interval(float(square.mean()), math.nan, math.nan, 1)


def summary(runs: Sequence[Record]) -> list[Row]:
    """One row per (stream, method): every score as an `Interval`, cost, bytes, and paired comparisons.

    `joint_gap` is against "joint" and `vs_plugin` (this method minus the plugin, final accuracy) against
    "plugin", on the same seeds, with Holm-corrected p over the rows of a stream. What a method ends with is
    averaged over the orders of a seed first; one that is order-free has run on one of them. What only some of
    a method's runs have measured (records of before it was) is left out.
    """
    rows: list[Row] = []
    for label in dict.fromkeys(r["label"] for r in runs):
        here = [r for r in runs if r["label"] == label]
        found: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
        for r in here:
            for name, value in scores(r).items():
                found.setdefault(r["method"], {}).setdefault(name, {})[r["seed"], r["order"]] = value
        mine: list[Row] = []
        for method, named in found.items():
            some = [r for r in here if r["method"] == method]
            first = some[0]
            accuracy = interval(named["final_accuracy"])
            n_probe = sum(first["n_probe"][j] for j in current(first))
            row: Row = {
                "stream": label,
                "method": method,
                "role": first["role"],
                "runs": len(some),
                "n_learned": first["n_learned"],
                "n_probe": n_probe,
                "chance": first["chance"],
                "pointing_chance": first["pointing_chance"],
                **{
                    name: interval(values)
                    for name, values in named.items()
                    if len(values) == len(named["final_accuracy"])
                },
                "binomial_error": binomial_error(accuracy.mean, n_probe),
                "step_cost": float(np.median([r["step_cost"] for r in some])),
                "step_seconds": float(np.median([r["step_seconds"] for r in some])),
                "forward_seconds": float(np.median([r["forward_seconds"] for r in some])),
                "state_bytes": max(r["state_bytes"] for r in some),
                "settings": first["settings"],
                "notes": list(dict.fromkeys(note for r in some for note in _said(r))),
            }
            # what a learner may use that arr-coc does without: samples kept, and who says that a task is over
            if kept := max(r.get("stored_samples", 0) for r in some):
                row["stored_samples"] = kept
            if any(r.get("told_boundaries", False) for r in some):
                row["told_boundaries"] = "yes"
            for other, name, sign in (("joint", "joint_gap", -1.0), ("plugin", "vs_plugin", 1.0)):
                theirs = found.get(other, {}).get("final_accuracy")
                if theirs is None or method == other:
                    continue
                a, b = _by_seed(named["final_accuracy"]), _by_seed(theirs)
                if a.keys() == b.keys():
                    row[name] = interval({(s, 0): sign * (a[s] - b[s]) for s in a})
                    if len(a) > 1:
                        row[f"{name}_p"] = paired(list(a.values()), list(b.values())).p
            mine.append(row)
        compared = [row for row in mine if "vs_plugin_p" in row]
        for row, p in zip(compared, holm([row["vs_plugin_p"] for row in compared]), strict=True):
            row["vs_plugin_p_holm"] = float(p)
        rows += mine
    return rows


def cell(value: Any) -> str:
    """An interval or number as it stands in a table: percentages with their half-width."""
    if isinstance(value, Interval):
        return (
            f"{100 * value.mean:.1f}"
            if math.isnan(value.half)
            else f"{100 * value.mean:.1f} ± {100 * value.half:.1f}"
        )
    return "" if value is None else str(value)


COLUMNS = {
    "final %": "final_accuracy",
    "balanced %": "balanced_accuracy",
    "vs arr-coc": "vs_plugin",
    "forgetting": "cumulative_forgetting",
    "bwt": "bwt_gem",
    "joint gap": "joint_gap",
    "pointing %": "final_pointing",
    "its forgetting": "cumulative_forgetting_of_pointing",
    "zero-shot kept %": "zero_shot_retention",
    "all texts: learned %": "learned_after",
    "held out %": "zero_shot_after",
    "harmonic %": "harmonic_mean",
    "ECE %": "expected_calibration_error",
    "of it chance %": "chance_calibration_error",
    "stored samples": "stored_samples",
    "told of tasks": "told_boundaries",
}
_AMONG_ALL = {"learned_after", "zero_shot_after", "harmonic_mean"}
_TRANSFER = {"transfer %": "transfer_zscl", "average %": "mtil_average"}
_INSTRUCTED = {"MAA %": "average_incremental_accuracy", "BWT (1/T)": "bwt_coin"}
# what the published tables of a stream have beside the final accuracy
FURTHER = {"mtil": _TRANSFER, "x-tail": _TRANSFER, "coin": _INSTRUCTED, "ucit": _INSTRUCTED}


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """The columns of one stream's table, by what stands above them: those that some row has."""
    first = next(iter(COLUMNS))
    further = FURTHER.get(published.plain(rows[0]["stream"]), {})
    asked = {first: COLUMNS[first]} | further | COLUMNS
    if not all(
        "learned_after" in r for r in rows if "zero_shot_after" in r
    ):  # records of before it was asked
        asked = {c: key for c, key in asked.items() if key not in _AMONG_ALL}
    return {c: key for c, key in asked.items() if any(key in r for r in rows)}


def notes(rows: Sequence[Row]) -> list[str]:
    """What stands under one stream's table: what the stream says, what was passed over, what is published."""
    said = [note for r in rows for note in r["notes"]]
    return [*dict.fromkeys(said), *published.lines(rows[0]["stream"])]


def _said(found: Record) -> list[str]:
    """What has to be known of one run."""
    skipped = found.get("skipped")
    over = [f"Passed over (seed {found['seed']}): {faults(skipped)}."] if skipped else []
    return [*found.get("notes", ()), *over]


def signed(value: Interval) -> str:
    """A difference in points with its sign: +1.2 ± 0.4."""
    return f"{100 * value.mean:+.1f}" + ("" if math.isnan(value.half) else f" ± {100 * value.half:.1f}")


def short(method: str) -> str:
    """What a method is called in a table of many: its name, and arr-coc for the plugin."""
    return "arr-coc" if method == "plugin" else method


def by_stream(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each stream, in the order in which the streams first appear."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row["stream"], []).append(row)
    return out


def cells(row: Row, rows: Sequence[Row]) -> dict[str, str]:
    """One row as text, by column, with what it costs; rows: those of the same stream, for which columns."""
    shown = {c: cell(row.get(key)) for c, key in columns(rows).items()}
    costs = {"step cost": f"{row['step_cost']:.2f}x", "state MB": f"{row['state_bytes'] / 1e6:.1f}"}
    return shown | costs | {"runs": str(row["runs"])}


def seeds(rows: Sequence[Row]) -> int:
    """How many seeds the intervals of these rows are over."""
    return max(r["final_accuracy"].n for r in rows)


def markdown(rows: Sequence[Row], names: dict[str, str] | None = None) -> str:
    """The summary as one Markdown table per stream, in points (100 = all right).

    Args:
        names: what a method is called in it.
    """
    out = []
    for stream, mine in by_stream(rows).items():
        out += [
            f"**{stream}** (chance {100 * mine[0]['chance']:.0f} %, {mine[0]['n_probe']} test samples)",
            "",
        ]
        head = ["method", *cells(mine[0], mine)]
        out += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for r in mine:
            few = f" (n = {r['n_learned']})" if r["n_learned"] != mine[0]["n_learned"] else ""
            name = (names or {}).get(r["method"], r["method"])
            out.append(f"| {name}{few} | " + " | ".join(cells(r, mine).values()) + " |")
        out += ["", *(f"{note}\n" for note in notes(mine))]
    return "\n".join(out)
