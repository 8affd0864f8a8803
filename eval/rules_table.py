"""Every learning rule on the same ladder, samples, optimizer and budget: what it reaches and what it costs.

Rates are chosen for every rule and task on a seed that no row uses, by a part of its training samples that
is held back. A run that stands in the JSONL file is not run again.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from arr_coc.eval import bench, rules_tasks
from arr_coc.eval.intervals import Interval, student_t
from arr_coc.eval.jsonl import append, read
from arr_coc.eval.percepts import Progress
from arr_coc.eval.rules_audit import audit
from arr_coc.eval.rules_entries import BASELINE, COLUMNS, ENTRIES, FROZEN, PASSES, Regime
from arr_coc.eval.rules_tasks import Task
from arr_coc.eval.rules_train import Course, Entry, Network, train
from arr_coc.rules import make_rule

WIDTH = 64
TUNING_SEED = 1000
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Run:
    """One entry on one task and seed.

    Args:
        rate: of Adam, chosen on the tuning seed. tried: (rate, held-back accuracy) of each.
        course: what `train` left.
    """

    key: str
    entry: str
    task: str
    depth: int
    seed: int
    rate: float
    tried: list[tuple[float, float]]
    course: Course


def held_back(task: Task) -> Task:
    """The same task with the last fifth of its training samples in the place of the test split."""
    cut = len(task.label) * 4 // 5
    drive = task.drive
    return replace(
        task,
        below=task.below[:cut],
        drive=None if drive is None else drive[:cut],
        label=task.label[:cut],
        test_below=task.below[cut:],
        test_drive=None if drive is None else drive[cut:],
        test_label=task.label[cut:],
    )


def _key(entry: Entry, task: str, depth: int, seed: int, regime: Regime) -> str:
    said: list[Any] = [asdict(replace(entry, name="", published="")), task, depth, seed]
    said += [regime.passes(entry, task), WIDTH, RATES]
    said += [] if (regime.batch, regime.readout) == (64, "delta") else [regime.batch, regime.readout]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def run(
    entries: Sequence[Entry] = ENTRIES,
    columns: Sequence[tuple[str, int]] = COLUMNS,
    seeds: Sequence[int] = range(5),
    regime: Regime = PASSES,
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[Run]:
    """Every entry on every (task, depth) and seed.

    Args:
        regime: how long, in which steps and under which readout.
        out: a JSONL file; runs that stand in it are not repeated.
        progress: called with (what, done, of).
    """
    earlier = {r["key"]: _run(r) for r in read(out)}
    done: list[Run] = []
    total = len(entries) * len(columns) * len(seeds)
    for name, depth in columns:
        tasks: dict[int, Task] = {}

        def task(seed: int, name: str = name, depth: int = depth, tasks: dict[int, Task] = tasks) -> Task:
            if seed not in tasks:
                tasks[seed] = rules_tasks.load(name, depth, WIDTH, seed, progress)
            return tasks[seed]

        for entry in entries:
            passes = regime.passes(entry, name)
            how = (regime.batch, regime.readout)
            keys = {seed: _key(entry, name, depth, seed, regime) for seed in seeds}
            rate, tried = math.nan, []
            for seed in seeds:
                if progress is not None:
                    progress(f"{entry.name}: {name}, {depth}", len(done), total)
                if keys[seed] in earlier:
                    done.append(earlier[keys[seed]])
                    rate, tried = done[-1].rate, done[-1].tried
                    continue
                if not tried:
                    few, part = held_back(task(TUNING_SEED)), max(1, passes // 2)
                    tried = [
                        (r, train(entry, few, WIDTH, TUNING_SEED, r, part, *how).accuracy[-1]) for r in RATES
                    ]
                    rate = max(tried, key=lambda t: t[1])[0]
                course = train(entry, task(seed), WIDTH, seed, rate, passes, *how)
                done.append(Run(keys[seed], entry.name, name, depth, seed, rate, tried, course))
                append(out, asdict(done[-1]))
    return done


def _run(record: dict[str, Any]) -> Run:
    tried = [(float(r), float(a)) for r, a in record["tried"]]
    return Run(**{**record, "tried": tried, "course": Course(**record["course"])})


# -- what the runs come to -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One entry on one (task, depth), over seeds.

    Args:
        accuracy: on the held-out split, after the last epoch.
        ratio: accuracy over backprop's, paired by seed.
        closed: (accuracy - frozen) / (backprop - frozen), paired by seed: the share of the gap between random
            hidden layers and backprop that the rule closes.
        epochs: passes until .95 of backprop's final accuracy, median over seeds; infinite if never.
        slower: the same over backprop's own.
        angles: degrees between the update and the gradient before learning, half way and at the end, mean
            over the seeds that have one: where a rung is silent there is no gradient.
    """

    accuracy: Interval
    ratio: Interval | None
    closed: Interval | None
    epochs: float
    slower: float
    angles: tuple[float, float, float]
    rate: float
    notes: dict[str, float]


def interval(values: Sequence[float]) -> Interval:
    """Student-t over seeds; with one seed the half-width is not known."""
    if len(values) > 1:
        return student_t(values)
    return Interval(values[0], math.nan, math.nan, 1)


def _reached(course: Course, aim: float) -> float:
    return next((float(k) for k, a in enumerate(course.accuracy) if a >= aim), math.inf)


def angle(cosine: float | None) -> float:
    """In degrees; NaN where there is none."""
    return math.nan if cosine is None else math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def summary(runs: Sequence[Run]) -> dict[tuple[str, int], dict[str, Cell]]:
    """Cells by (task, depth) and entry."""
    out: dict[tuple[str, int], dict[str, Cell]] = {}
    for place in dict.fromkeys((r.task, r.depth) for r in runs):
        here = [r for r in runs if (r.task, r.depth) == place]
        final = {(r.entry, r.seed): r.course.accuracy[-1] for r in here}
        cells: dict[str, Cell] = {}
        for name in dict.fromkeys(r.entry for r in here):
            mine = [r for r in here if r.entry == name]
            seeds = [r.seed for r in mine]
            best = [final.get((BASELINE, s)) for s in seeds]
            worst = [final.get((FROZEN, s)) for s in seeds]
            ratio = closed = None
            reached, base = [], []
            if all(b is not None for b in best):
                ratio = interval([final[name, s] / b for s, b in zip(seeds, best, strict=True) if b])
                aims = {s: 0.95 * b for s, b in zip(seeds, best, strict=True) if b is not None}
                reached = [_reached(r.course, aims[r.seed]) for r in mine]
                base = [
                    _reached(r.course, aims[r.seed]) for r in here if r.entry == BASELINE and r.seed in aims
                ]
                if all(w is not None for w in worst):
                    shares = [
                        (final[name, s] - w) / (b - w)
                        for s, b, w in zip(seeds, best, worst, strict=True)
                        if b is not None and w is not None
                    ]
                    closed = interval(shares)
            courses = [r.course.alignment for r in mine]
            times = [(c[0], c[len(c) // 2], c[-1]) for c in courses]
            there = [[t[k] for t in times if t[k] is not None] for k in range(3)]
            angles = tuple(float(np.mean([angle(c) for c in some])) if some else math.nan for some in there)
            epochs = median(reached) if reached else math.nan
            cells[name] = Cell(
                interval([r.course.accuracy[-1] for r in mine]),
                ratio,
                closed,
                epochs,
                epochs / median(base) if base else math.nan,
                angles,  # type: ignore[arg-type]
                mine[0].rate,
                {n: float(np.mean([r.course.notes[n] for r in mine])) for n in mine[0].course.notes},
            )
        out[place] = cells
    return out


@dataclass(frozen=True)
class Cost:
    """Of one step on garments at depth 4, batch 64: seconds over backprop's, peak memory over backprop's."""

    time: float
    memory: float


@torch.no_grad()
def costs(entries: Sequence[Entry] = ENTRIES, rounds: int = 30) -> dict[str, Cost]:
    """Steps of all entries taken in turn in one process, so that what else the machine does falls on all.

    Seconds are the median of the ratios within a round; memory is the allocator's peak during a step.
    """
    task = rules_tasks.load("fashion", 4, WIDTH, TUNING_SEED)
    some = slice(0, 64)
    baseline = Entry(BASELINE, "backprop")
    nets = {e.name: Network(e, task, WIDTH, 0, 1e-4) for e in [baseline, *entries]}

    def step(name: str) -> None:
        nets[name].learn(task.below[some], None, task.label[some])

    for name in nets:
        for _ in range(3):
            step(name)
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(rounds):
        for name in nets:
            began = time.perf_counter()
            step(name)
            seconds[name].append(time.perf_counter() - began)
    memory = {name: bench.peak_bytes(lambda name=name: step(name)) for name in nets}  # type: ignore[misc]
    base = seconds[BASELINE]
    return {
        e.name: Cost(
            median(s / b for s, b in zip(seconds[e.name], base, strict=True)),
            memory[e.name] / max(memory[BASELINE], 1),
        )
        for e in entries
    }


def ledgers(entries: Sequence[Entry] = ENTRIES) -> dict[str, list[str]]:
    """What each entry needs, as its audited ledger says.

    Raises:
        AssertionError: if a rule lies.
    """
    out: dict[str, list[str]] = {}
    for entry in entries:
        if not entry.rule:
            out[entry.name] = []
            continue
        found = audit(lambda entry=entry: make_rule(entry.rule, entry.options))  # type: ignore[misc]
        lies = [f for f in found if f.lie]
        if lies:
            raise AssertionError(f"the ledger of {entry.name} is wrong: {lies}")
        out[entry.name] = [f.entry for f in found if f.verdict == "used"]
    return out
