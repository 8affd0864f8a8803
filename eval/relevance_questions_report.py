"""What P2 found, as tables: how the model answers, where each map lies, and arr-coc minus each baseline."""

import numpy as np

from arr_coc.eval.intervals import Range, paired_bootstrap
from arr_coc.eval.mosaic_questions import KINDS
from arr_coc.eval.relevance_questions import ASKED, METHODS, OWN, SCORES, Result, by_image, of_kind
from arr_coc.eval.shown import Shown


def _about(name: str, taught: int) -> str:
    return METHODS[name][0].format(n=taught)


def answered(result: Result) -> Shown:
    """Of each kind of question: how often the answer is right, flips and stays."""
    rows = []
    for kind in (*KINDS, "all"):
        mine = np.ones(result.kinds.shape, bool) if kind == "all" else result.kinds == kind
        right = mine & result.right
        shares = [
            result.right[mine].mean(),
            *(v[right].mean() if right.any() else np.nan for v in (result.flips, result.stays)),
        ]
        rows.append([kind, str(int(mine.sum())), *(f"{100 * s:.1f}" for s in shares)])
    title = f"P2, {result.grid}x{result.grid} tiles: the bare model's own answers"
    columns = [
        "question",
        "n",
        "right %",
        "of those, flips with the tile that tells %",
        "stays with another %",
    ]
    return Shown(title, columns, rows)


def located(result: Result, taught: int) -> Shown:
    """Where each map lies, over right answers: pointing by kind, then all scores."""
    rows = []
    for name in result.scores:
        kinds = [f"{100 * of_kind(result, name, 'pointing', kind):.1f}" for kind in KINDS]
        means = {s: float(np.nanmean(by_image(result.scores[name][s]))) for s in SCORES}
        rows.append(
            [
                _about(name, taught),
                *kinds,
                f"{100 * means['pointing']:.1f}",
                f"{means['lift']:.2f}",
                f"{100 * means['rank']:.1f}",
                f"{means['auroc']:.3f}",
                f"{np.nanmean(result.contrast[name]):.3f}",
            ]
        )
    chance = f"{100 / result.grid**2:.1f}"
    rows.append(["chance", *[chance] * len(KINDS), chance, "1.00", chance, "0.500", "0.000"])
    columns = ["map", *(f"{kind} %" for kind in KINDS), "pointing %", "mass, x chance", "rank accuracy %"]
    images, seeds = len(result.seeds), len(np.unique(result.seeds))
    title = f"P2, {result.grid}x{result.grid} tiles: {images} mosaics, two questions each, {seeds} seeds; "
    title += f"{int(result.right.sum())} right answers count"
    return Shown(title, [*columns, "AUROC", "query contrast"], rows)


def differences(result: Result, of: str = OWN, resamples: int = 2000) -> dict[str, tuple[Range, Range]]:
    """One of arr-coc's maps minus each other method's: pointing and query contrast, paired bootstrap over
    images."""
    own, said = by_image(result.scores[of]["pointing"]), {}
    there, both = np.isfinite(own), np.isfinite(result.contrast[of])
    for name in result.scores:
        if name != of:
            other = by_image(result.scores[name]["pointing"])
            said[name] = (
                paired_bootstrap(own[there], other[there], resamples=resamples),
                paired_bootstrap(result.contrast[of][both], result.contrast[name][both], resamples=resamples),
            )
    return said


def paired(result: Result, taught: int) -> list[Shown]:
    """`differences` as tables, one for each of arr-coc's maps that learned nothing."""
    shown = []
    for of in (OWN, ASKED):
        rows = []
        for name, (pointing, contrast) in differences(result, of).items() if of in result.scores else ():
            points = f"{100 * pointing.mean:+.1f} [{100 * pointing.low:+.1f}, {100 * pointing.high:+.1f}]"
            between = f"{contrast.mean:+.3f} [{contrast.low:+.3f}, {contrast.high:+.3f}]"
            rows.append([_about(name, taught), points, between])
        title = f"P2, {result.grid}x{result.grid} tiles: {METHODS[of][0]}, minus"
        if rows:
            shown.append(Shown(title, ["map", "pointing, points", "query contrast"], rows))
    return shown
