"""Surprise, measured: of texts' tokens, of samples, at switches, of a scene's tokens, and as a gate.

    python -m arr_coc.eval.surprise                      # tables of the runs in eval/recorded/surprise.jsonl
    python -m arr_coc.eval.surprise --run --cache DIR    # what is missing there is run first

A record is one part on one seed. Seeds 0 to 4 are reported; what was chosen (steps, widths, thresholds of
alarms) was chosen on seed 1000.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arr_coc.eval import run, surprise_classes, surprise_items, surprise_text, table
from arr_coc.eval.intervals import Difference, paired, student_t
from arr_coc.eval.jsonl import append, read
from arr_coc.eval.percepts import plan
from arr_coc.eval.percepts_file import cache_path
from arr_coc.eval.world import World, world
from arr_coc.training import streams

SEEDS = tuple(range(5))
CHOSEN_ON = 1000
CLASSES: dict[str, dict[str, Any]] = {
    "split-fashion": {"n_train": 1000, "n_test": 300},
    "cued-clutter-classes": {"n_train": 1500, "n_test": 480},
}
GATES = {"off": "plugin", "boost": "with-surprise-boost", "damp": "with-surprise-damp"}
RECORDS = Path(__file__).parent / "recorded" / "surprise.jsonl"
Scores = dict[str, float]

# what is compared with what, on the same seeds
COMPARED: dict[str, tuple[str, ...]] = {
    "error, learned": ("error, same as last", "error, mean", "error, learned without a key"),
    "order, surprise, learned": (
        "order, the model's own -log p",
        "order, surprise, taught shuffled questions",
        "order, surprise, without a key",
    ),
    "order, announced, learned": ("order, surprise, learned", "order, announced, taught shuffled questions"),
    "words, attention x features": ("words, attention",),
    "words, and what was announced": ("words, attention",),
    "new classes, surprise, of answers": (
        "new classes, surprise, of rungs",
        "new classes, phi' P phi",
        "new classes, own scores, entropy",
    ),
    "delay, surprise, of answers": (
        "delay, surprise, of rungs",
        "delay, prequential error",
        "delay, mean of the pixels",
    ),
    "surprise, of rungs": ("random", "distance from the scene's mean"),
    "surprise, of answers": ("random", "surprise, of rungs"),
    "boost": ("off",),
    "damp": ("off",),
}


class Classes:
    """The passes of `surprise_classes` over one stream, with the thresholds of alarms from CHOSEN_ON."""

    def __init__(self, stream: str, cache: Path | None) -> None:
        self.stream, self.cache = stream, cache
        self._world: World | None = None
        self._thresholds: dict[str, float] = {}

    def course(self, seed: int) -> surprise_classes.Course:
        """One pass on one seed."""
        if self._world is None:
            self._world = world("dual", held=1)
        here, loaded = self._world, streams.load(self.stream, seed, **CLASSES[self.stream])
        kept = self.cache and cache_path(self.cache, self.stream, CLASSES[self.stream], seed, here.model)
        store = here.store(loaded, kept, None)
        return surprise_classes.course(store, plan(loaded, store), seed)

    def __call__(self, seed: int) -> Scores:
        """Every score of one seed."""
        if not self._thresholds:
            chosen = self.course(CHOSEN_ON)
            self._thresholds = {name: surprise_classes.threshold([chosen], name) for name in chosen.signals}
        passed = self.course(seed)
        found = {f"new classes, {name}": sum(v) / len(v) for name, v in passed.classes.items()}
        for name, told in surprise_classes.switches(passed, self._thresholds).items():
            found |= {f"{what}, {name}": value for what, value in told.items()}
        return found


def gate(stream: str, cache: Path | None) -> Callable[[int], Scores]:
    """Final accuracy with the gate off, and with both signs."""

    def scored(seed: int) -> Scores:
        grid = run.Grid(stream, n_train=3000, n_test=1500)
        runs = run.run(grid, list(GATES.values()), [seed], [0], cache=cache, held=0)
        return {sign: table.final(one) for sign, one in zip(GATES, runs, strict=True)}

    return scored


def parts(cache: Path | None) -> dict[tuple[str, str], Callable[[int], Scores]]:
    """What is measured, by part and stream."""
    found: dict[tuple[str, str], Callable[[int], Scores]] = {("text", "scene-qa"): surprise_text.measured}
    found |= {("classes", stream): Classes(stream, cache) for stream in CLASSES}
    found["items", "scenes of garments"] = surprise_items.scored
    found["gate", "cued-clutter-novel"] = gate("cued-clutter-novel", cache)
    return found


def measure(out: Path, cache: Path | None, only: Sequence[str] = (), seeds: Sequence[int] = SEEDS) -> None:
    """Run what is missing among the records, and append it."""
    there = {(r["part"], r["stream"], r["seed"]) for r in read(out)}
    for (part, stream), scored in parts(cache).items():
        for seed in seeds if not only or part in only else ():
            if (part, stream, seed) not in there:
                scores = {name: round(value, 6) for name, value in scored(seed).items()}
                append(out, {"part": part, "stream": stream, "seed": seed, "scores": scores})
                print(f"{part}, {stream}: seed {seed}", file=sys.stderr)


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Per part a table of scores and one of paired differences, with 95 % intervals over seeds."""
    lines: list[str] = []
    for part, stream in dict.fromkeys((r["part"], r["stream"]) for r in records):
        mine = sorted((r for r in records if (r["part"], r["stream"]) == (part, stream)), key=_seed)
        scores = [r["scores"] for r in mine]
        lines += [f"**{part}, {stream}** ({len(mine)} seeds)", "", "| score | mean | half of 95 % |"]
        lines.append("|---|---|---|")
        for name in scores[0]:
            found = student_t([s[name] for s in scores])
            lines.append(f"| {name} | {found.mean:.3f} | {found.half:.3f} |")
        lines += ["", "| difference | paired | half of 95 % | p |", "|---|---|---|---|"]
        for name, others in COMPARED.items():
            for other in others if name in scores[0] else ():
                d = difference(scores, name, other)
                said = f"{d.interval.mean:+.3f} | {d.interval.half:.3f} | {d.p:.2g}"
                lines.append(f"| {name} - {other} | {said} |")
        lines.append("")
    return "\n".join(lines)


def _seed(record: dict[str, Any]) -> int:
    return int(record["seed"])


def difference(scores: Sequence[Scores], name: str, other: str) -> Difference:
    """Of two scores on the same seeds."""
    return paired([s[name] for s in scores], [s[other] for s in scores])


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables; with --run measure first."""
    parser = argparse.ArgumentParser(prog="python -m arr_coc.eval.surprise", description=__doc__)
    parser.add_argument("--run", action="store_true", help="run what is missing among the records")
    parser.add_argument("--only", nargs="*", default=(), help="of text, classes, items, gate")
    parser.add_argument("--cache", type=Path, help="a folder for percepts, about 200 MB a seed")
    parser.add_argument("--records", type=Path, default=RECORDS)
    asked = parser.parse_args(given)
    if asked.run:
        asked.records.parent.mkdir(parents=True, exist_ok=True)
        measure(asked.records, asked.cache, asked.only)
    found = read(asked.records)
    if not found:
        parser.error(f"there are no records in {asked.records}: --run makes them")
    print(markdown(found))


if __name__ == "__main__":
    main()
