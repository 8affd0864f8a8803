"""What is lost when most visual tokens are dropped, and how much time is won.

    python -m arr_coc.eval.selection [--markdown] [--seeds 0-4] [--images 80] [--json FILE]
    python -m arr_coc.eval.selection --choose        # how much diversity, on other seeds' scenes

Two questions about each 2x2 and 3x3 mosaic (P2) and about each easy picture of one item, all of them counted,
answered by the built-in generative model from k of its 144 tokens. Intervals are of differences, paired, over
images (2,000 resamples).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from arr_coc.eval import selection_speed
from arr_coc.eval.console import numbers
from arr_coc.eval.intervals import Range, paired_bootstrap
from arr_coc.eval.report import check_target, write
from arr_coc.eval.selection_baselines import WAYS, Evidence, Way, own
from arr_coc.eval.selection_exam import BUDGETS, Examiner, Scores, exam, joined, scenes_of
from arr_coc.eval.shown import Shown, say

AIMED = 16  # n / 9
LEAST = 0.01  # accuracy that may be lost there
KINDS = {
    "2x2": "mosaics of 2x2 tiles, two questions each",
    "3x3": "mosaics of 3x3 tiles, two questions each",
    "single": "easy pictures of one item, two questions each",
}
DEVELOPMENT = 100  # the seed of scenes that settings are chosen on, of the training split besides
MIXES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5)


def difference(scores: Scores, way: str, other: str | None, k: int = AIMED) -> Range:
    """Accuracy of a way minus that of another one, or of all tokens (None), at k, over images."""
    theirs = scores.full if other is None else scores.kept[other][k]
    return paired_bootstrap(scores.by_image(scores.kept[way][k]), scores.by_image(theirs))


def accuracies(scores: Scores, about: str) -> Shown:
    """A row a way: accuracy at each budget; at n / 9, the difference from all tokens and from arr-coc."""
    rows = [["all 144 tokens", *["" for _ in BUDGETS], f"{100 * scores.full.mean():.1f}", "", ""]]
    for name, of in scores.kept.items():
        cells = [f"{100 * of[k].mean():.1f}" for k in BUDGETS]
        loss = _interval(difference(scores, name, None))
        ahead = "" if name == "arr-coc" else _interval(difference(scores, "arr-coc", name))
        rows.append([WAYS[name].about, *cells, "", loss, ahead])
    images, seeds = len(scores.by_image(scores.full)), len({s.seed for s in scores.samples})
    title = f"{about}: accuracy %, {images} pictures, {len(scores.samples)} questions, {seeds} seeds"
    columns = [f"k = {k}" for k in BUDGETS]
    return Shown(
        title, ["kept", *columns, "all", f"minus all, k = {AIMED}", f"arr-coc minus it, k = {AIMED}"], rows
    )


def _interval(d: Range) -> str:
    return f"{100 * d.mean:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"


def verdict(found: dict[str, Scores]) -> list[str]:
    """Whether what was aimed at was reached."""
    said = []
    for kind, scores in found.items():
        loss = difference(scores, "arr-coc", None)
        rivals = [n for n in scores.kept if WAYS[n].sort == "rival"]
        signs = {n: difference(scores, "arr-coc", n).sign for n in rivals}
        line = f"{kind}: at k = {AIMED} arr-coc is {_interval(loss)} points from all tokens, "
        line += "within" if loss.mean >= -LEAST else "more than"
        line += (
            f" the {100 * LEAST:.0f} point that may be lost; above {sum(s > 0 for s in signs.values())} of "
        )
        line += f"{len(rivals)} rivals with an interval"
        for sign, heading in ((0, "not told apart from"), (-1, "below")):
            named = ", ".join(WAYS[n].about for n in rivals if signs[n] == sign)
            line += f"; {heading} {named}" if named else ""
        said.append(line + ".")
    return said


def choose(examiner: Examiner, images: int) -> Shown:
    """Accuracy at n / 9 by mix, on scenes that no table shows."""

    def way(mix: float) -> Way:
        def chosen(seen: Evidence, k: int):
            return own(seen, k, mix)

        return Way(f"mix {mix}", "own", chosen)

    rows = []
    names = {f"mix {m}": way(m) for m in MIXES}
    WAYS.update(names)
    try:
        found = {
            kind: exam(examiner, scenes_of(kind, images, DEVELOPMENT, "train"), list(names), (AIMED,))
            for kind in KINDS
        }
    finally:
        for name in names:
            del WAYS[name]
    for name in names:
        rows.append([name, *(f"{100 * found[kind].kept[name][AIMED].mean():.1f}" for kind in KINDS)])
    rows.append(["all tokens", *(f"{100 * s.full.mean():.1f}" for s in found.values())])
    return Shown(
        f"k = {AIMED}, {images} pictures a kind, seed {DEVELOPMENT}, training split", ["", *KINDS], rows
    )


def run(
    seeds: Sequence[int],
    images: int,
    ways: Sequence[str] = tuple(WAYS),
    kinds: Sequence[str] = tuple(KINDS),
) -> dict[str, Scores]:
    """The exam of every kind over all seeds."""
    examiner = Examiner()
    found = {}
    for kind in kinds:
        parts = []
        for seed in seeds:
            print(f"{kind}, seed {seed}", file=sys.stderr, flush=True)
            parts.append(exam(examiner, scenes_of(kind, images, seed), ways))
        found[kind] = joined(parts)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--seeds", default="0-4", help="such as 0-4")
    parser.add_argument("--ways", default=",".join(WAYS), help="arr-coc and others, by name")
    parser.add_argument("--images", type=int, default=80, help="pictures a kind and seed")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of timing; 0 for none")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--choose", action="store_true", help="try amounts of diversity, on other scenes")
    parser.add_argument("--json", type=Path, help="a row a question")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    target = None if args.json is None else check_target(args.json)
    ways = args.ways.split(",")
    if "arr-coc" not in ways or not set(ways) <= set(WAYS):
        parser.error(f"--ways {args.ways}: arr-coc and some of {', '.join(WAYS)} are needed")
    lines: list[str] = []
    raw = []
    if args.choose:
        tables = [choose(Examiner(), args.images)]
    else:
        found = run(numbers(args.seeds), args.images, ways)
        tables = [accuracies(scores, KINDS[kind]) for kind, scores in found.items()]
        lines = verdict(found)
        for kind, scores in found.items():
            for i, s in enumerate(scores.samples):
                kept = {n: {k: int(v[i]) for k, v in of.items()} for n, of in scores.kept.items()}
                raw.append(
                    {"kind": kind, "question": s.text, "answer": s.answer, "image": s.image}
                    | {"asked": s.kind, "full": int(scores.full[i]), "kept": kept}
                )
        if args.repeats:
            n = selection_speed.TOKENS
            tables.append(
                selection_speed.shown(selection_speed.measure((n // 3, n // 9, n // 18), args.repeats))
            )
    say(tables, args.markdown)
    for line in lines:
        print(f"- {line}" if args.markdown else line)
    if target is not None:
        write(target, json.dumps(raw, indent=2))


if __name__ == "__main__":
    main()
