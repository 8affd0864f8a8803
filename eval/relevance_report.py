"""What the exam of relevance found: tables of scores, of arr-coc minus each baseline with intervals, and a
verdict."""

from collections.abc import Sequence

import numpy as np

from arr_coc.eval.intervals import Range, paired_bootstrap
from arr_coc.eval.relevance_exam import METHODS, NEW, OWN, SCORES, Result, chance
from arr_coc.eval.relevance_further import KEPT, Row
from arr_coc.eval.relevance_protocols import KINDS
from arr_coc.eval.relevance_shortcut import HELD, Twins
from arr_coc.eval.shown import Shown

AIMED = ("pointing", "contrast")  # what arr-coc has to be above every rival in
RIVALS = ("blind", "forward", "gradient")  # the ceiling is no rival
COST_AIM = 1.05


def _number(score: str, value: float, sign: bool = False) -> str:
    _, times, digits = SCORES[score]
    shown = f"{times * value:{'+' if sign else ''}.{digits}f}"
    return (
        shown.replace("-0." + "0" * digits, "0." + "0" * digits) if float(shown) == 0 and not sign else shown
    )


def differences(result: Result, resamples: int = 2000) -> dict[str, dict[str, Range]]:
    """arr-coc minus each other method, paired bootstrap over images, by method and score."""
    own = result.scores[OWN]
    return {
        name: {s: paired_bootstrap(own[s], of[s], resamples=resamples) for s in SCORES}
        for name, of in result.scores.items()
        if name != OWN
    }


def by_squares(result: Result, resamples: int = 2000) -> dict[str, dict[str, Range]] | None:
    """The same with whole Latin squares resampled, whose mosaics share their items: wider; None for one
    square."""
    if len(np.unique(result.groups)) < 2:
        return None
    own = result.scores[OWN]
    return {
        name: {s: paired_bootstrap(own[s], of[s], result.groups, resamples) for s in SCORES}
        for name, of in result.scores.items()
        if name != OWN
    }


def scores(result: Result, costs: dict[str, float]) -> Shown:
    """Means over images, a row a method, chance last."""
    headings = [heading for heading, _, _ in SCORES.values()]
    rows = []
    for name, of in result.scores.items():
        cost = f"{costs[name]:.2f}x" if name in costs else ""
        rows.append([METHODS[name].about, *(_number(s, float(of[s].mean())) for s in SCORES), cost])
    rows.append(["chance", *(_number(s, v) for s, v in chance(KINDS[result.kind].grid).items()), ""])
    images, seeds = len(result.groups), len(np.unique(result.seeds))
    title = f"{result.kind}: {KINDS[result.kind].about}; {images} mosaics, {seeds} seeds, all cells asked for"
    return Shown(title, ["map", *headings, "cost"], rows)


def paired(result: Result) -> Shown:
    """arr-coc minus each other method, with 95 % intervals."""
    headings = [heading for heading, _, _ in SCORES.values()]
    rows = []
    for name, of in differences(result).items():
        cells = [
            f"{_number(s, d.mean, True)} [{_number(s, d.low, True)}, {_number(s, d.high, True)}]"
            for s, d in of.items()
        ]
        rows.append([METHODS[name].about, *cells])
    title = f"{result.kind}: arr-coc minus each, 95 % paired bootstrap over images (2,000 resamples)"
    return Shown(title, ["arr-coc minus", *headings], rows)


def verdict(results: Sequence[Result], costs: dict[str, float]) -> list[str]:
    """Sentences: in which aimed score arr-coc is above every rival with an interval, who is not beaten, and
    its cost."""
    said = []
    for result in results:
        fine, coarse = differences(result), by_squares(result)
        rivals = [n for n in fine if METHODS[n].sort in RIVALS]
        for score in AIMED:
            signs = {n: fine[n][score].sign for n in rivals}
            named = {k: ", ".join(METHODS[n].about for n in rivals if signs[n] == k) for k in (0, -1)}
            above = sum(k > 0 for k in signs.values())
            heading = SCORES[score][0].removesuffix(" %")
            line = f"{result.kind}, {heading}: arr-coc is above {above} of {len(rivals)} rivals"
            line += f"; not told apart from {named[0]}" if named[0] else ""
            line += f"; below {named[-1]}" if named[-1] else ""
            if coarse is not None:
                other = [METHODS[n].about for n in rivals if coarse[n][score].sign != signs[n]]
                line += " (whole Latin squares resampled: "
                line += f"otherwise for {', '.join(other)})" if other else "the same)"
            said.append(line + ".")
    if OWN in costs:
        reached = "within" if costs[OWN] <= COST_AIM else "above"
        line = f"Cost of scores and relevance together: {costs[OWN]:.2f}x the frozen forward pass, "
        line += f"{reached} the {COST_AIM:.2f}x aimed at"
        new = costs.get(NEW)
        said.append(line + (f"; {new:.2f}x for a question never asked before." if new is not None else "."))
    return said


def twins(found: Twins, pairs: int) -> Shown:
    """Mass on the dot's token: the twin that was told, the one that was not, and the difference."""
    rows = []
    for name, d in found.difference.items():
        ends = [f"{100 * v:+.1f}" if v else "0" for v in (d.mean, d.low, d.high)]
        masses = [f"{100 * of[name]:.1f}" for of in (found.told, found.untold)]
        about = METHODS[name].about if name in METHODS else name
        rows.append([about, *masses, f"{ends[0]} [{ends[1]}, {ends[2]}]"])
    told, untold = (f"{100 * a:.1f}" for a in found.accuracy)
    title = f"planted shortcut: % of the mass on the dot's token (of 25; chance 4), {pairs} pairs of twins, "
    title += f"{HELD} held-out digits each; accuracy {told} % told, {untold} % not told"
    return Shown(title, ["map", "told", "not told", "difference"], rows)


def further(rows: dict[str, Row], left: int, images: int) -> Shown:
    """Families 6 to 8, a row a method."""
    body = []
    for name, r in rows.items():
        minus = "" if r.minus is None else f"{r.minus.mean:+.3f} [{r.minus.low:+.3f}, {r.minus.high:+.3f}]"
        faith = [f"{r.morf:.3f}", f"{r.lerf:.3f}", f"{r.gap:+.3f}", minus]
        rise = "" if r.rise is None else f"{100 * r.rise:+.0f}"
        kept = " / ".join(f"{100 * m:.0f}:{100 * a:.0f}" for m, a in zip(r.mass, r.accuracy, strict=True))
        body.append([METHODS[name].about, *faith, rise, f"{r.brier:.3f}", f"{r.ece:.3f}", kept])
    base = next(iter(rows.values())).base
    title = (
        f"one emoji a scene, {images} scenes ({left} without an answer to lose left out of the first four "
    )
    title += f"columns); Brier score of the base rate {base:.3f}"
    tokens = " / ".join(str(k) for k in KEPT)
    columns = ["map", "MoRF", "LeRF", "gap", "arr-coc minus", "entropy rise %", "Brier", "ECE"]
    return Shown(title, [*columns, f"mass:accuracy kept %, {tokens} tokens"], body)


NOTE = (
    "Cost: seconds of processor time for the model's scores and one map, over the frozen forward pass beside "
    "it, median of paired ratios, four images with a question each, one thread. Absent AUROC: whether the "
    "peak of a map's mass is higher for what is shown than for two texts of what is not. Emoji are of "
    "concepts and artworks (Noto, Twemoji) that the model was trained on; garments it has never seen."
)
