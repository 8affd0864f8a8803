"""The figures of one stream in the page of `comparison`: curves over the stream, matrices, forgetting."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from markupsafe import Markup

from arr_coc.eval import table
from arr_coc.eval.intervals import Interval
from arr_coc.eval.report import drawn

Record = dict[str, Any]
PLUGIN = "plugin"
WIDEST = 10  # experiences up to which the cells of a matrix have their number written in them


@contextmanager
def style() -> Iterator[Any]:
    """pyplot without a display; letters stay letters, so that a page can be searched and stays small."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "arr-coc",  # the same runs are the same page
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(chosen):
        yield pyplot


def colours(methods: Sequence[str]) -> dict[str, Any]:
    """One colour per method, the same on every stream; the plugin's is black."""
    import matplotlib

    several = matplotlib.colormaps["tab20"].colors  # type: ignore[attr-defined]
    turn = [several[i] for i in (*range(0, 20, 2), *range(1, 20, 2))]
    others = [m for m in methods if m != PLUGIN]
    return {m: turn[i % 20] for i, m in enumerate(others)} | {PLUGIN: (0.0, 0.0, 0.0)}


def _scored(found: Record) -> np.ndarray:
    """R, which every run has."""
    matrix = table.matrix(found)
    assert matrix is not None
    return matrix


def so_far(found: Record) -> list[float]:
    """A_t = mean_{j <= t} R[t][j], t = 1..T: accuracy on what was taught; NaN where not scored."""
    matrix = _scored(found)
    return [float(matrix[t, :t].mean()) for t in range(1, len(matrix))]


def over_runs(runs: Sequence[Record]) -> list[Interval | None]:
    """`so_far` of a method's runs as an interval at each experience; None where one has no score."""
    values = [{(r["seed"], r["order"]): so_far(r)[t] for r in runs} for t in range(len(so_far(runs[0])))]
    return [None if any(map(math.isnan, v.values())) else table.interval(v) for v in values]


def anytime(runs: Sequence[Record], shades: Mapping[str, Any]) -> Markup:
    """A_t of every method with the band of its interval; who is examined at the end alone is a point."""
    with style() as pyplot:
        figure, axes = pyplot.subplots(figsize=(8.4, 3.9))
        for method in dict.fromkeys(r["method"] for r in runs):
            found = over_runs([r for r in runs if r["method"] == method])
            at = [t for t, i in enumerate(found, 1) if i is not None]
            known = [i for i in found if i is not None]
            mean = np.array([100 * i.mean for i in known])
            half = np.array([0.0 if math.isnan(i.half) else 100 * i.half for i in known])
            mine = method == PLUGIN
            label = table.short(method)
            look = {"color": shades[method], "lw": 2.4 if mine else 1.3, "zorder": 3 if mine else 2}
            axes.plot(at, mean, marker="o", ms=4 if len(at) == 1 else 2.5, label=label, **look)
            low, high = np.clip(mean - half, 0, 100), np.clip(mean + half, 0, 100)  # no accuracy lies beyond
            axes.fill_between(at, low, high, color=shades[method], alpha=0.13, lw=0)
        count = len(over_runs(runs[:1]))
        axes.set_xticks(range(1, count + 1))
        axes.set_xlim(0.8, count + 0.2)
        axes.set_xlabel("experiences learned")
        axes.set_ylabel("accuracy on them, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
        figure.tight_layout()
        return drawn(figure)


def matrices(runs: Sequence[Record]) -> Markup:
    """R of every method, the mean over its runs: rows after each experience (0: before any)."""
    methods = list(dict.fromkeys(r["method"] for r in runs))
    across = min(4, len(methods))
    down = -(-len(methods) // across)
    with style() as pyplot:
        size = (2.45 * across + 0.6, 2.35 * down + 0.2)
        figure, axes = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
        mesh = None
        for panel, method in zip(axes.flat, methods, strict=False):
            mean = 100 * np.mean([_scored(r) for r in runs if r["method"] == method], axis=0)
            steps, probes = mean.shape
            mesh = panel.pcolormesh(mean, vmin=0, vmax=100, cmap="viridis", edgecolor="white", lw=0.4)
            panel.invert_yaxis()
            panel.set_title(table.short(method), fontsize=9)
            panel.set_xticks(np.arange(probes) + 0.5, range(1, probes + 1), fontsize=6)
            panel.set_yticks(np.arange(steps) + 0.5, range(steps), fontsize=6)
            panel.tick_params(length=0, pad=1)
            panel.set_facecolor("0.92")  # what was not scored
            for (row, column), value in np.ndenumerate(mean):
                if probes <= WIDEST and not math.isnan(value):
                    ink = "white" if value < 60 else "black"
                    where = {"ha": "center", "va": "center", "fontsize": 6 if probes < 7 else 4.6}
                    panel.text(column + 0.5, row + 0.5, f"{value:.0f}", color=ink, **where)
        for panel in axes.flat[len(methods) :]:
            panel.axis("off")
        figure.colorbar(mesh, ax=axes, shrink=0.7 / down**0.5, label="accuracy, %", pad=0.01)
        figure.supxlabel("probe of experience", fontsize=8)
        figure.supylabel("after experience", fontsize=8)
        return drawn(figure)


def forgetting(rows: Sequence[table.Row], shades: Mapping[str, Any]) -> Markup | None:
    """Cumulative forgetting and backward transfer as bars with intervals; None for one experience."""
    kinds = (("cumulative_forgetting", "cumulative forgetting, points"), ("bwt_gem", "bwt, points"))
    mine = [r for r in rows if any(key in r for key, _ in kinds)]
    if not mine:
        return None
    with style() as pyplot:
        size = (8.4, 0.26 * len(mine) + 1.0)
        figure, axes = pyplot.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
        names = [table.short(r["method"]) for r in mine]
        for panel, (key, label) in zip(axes, kinds, strict=True):
            there = [(i, r[key], shades[r["method"]]) for i, r in enumerate(mine) if key in r]
            half = [0.0 if math.isnan(v.half) else 100 * v.half for _, v, _ in there]
            means = [100 * v.mean for _, v, _ in there]
            shown = {"color": [c for *_, c in there], "height": 0.68}
            panel.barh(
                [i for i, *_ in there], means, xerr=half, error_kw={"lw": 1, "ecolor": "0.35"}, **shown
            )
            panel.axvline(0, color="0.3", lw=0.8)
            panel.set_xlabel(label)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        return drawn(figure)
