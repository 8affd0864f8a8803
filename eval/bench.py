"""What attaching and learning cost: seconds, peak activation memory and state, beside the bare model.

The steps of `bench_steps` stand side by side in one process and take turns, in one order and back in the
other, so that whatever else the machine does falls on all of them. Seconds are medians: of the processor's
time where there is one thread, of the clock where there are more. A ratio is within a round, to the step that
is named; its median is printed with its quartiles, and the bare forward stands there twice, so that chance
shows.

Memory is what the allocator says: every allocation and release of tensor memory during a warmed-up step is
recorded by `torch.profiler` (`profile_memory`), and the peak is the highest running sum from the start of the
step. Weights, optimizer moments and the adapter's state were there before and do not count; scratch memory
that kernels take outside torch's allocator is not seen, for any of the steps.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from arr_coc.adapters import attach
from arr_coc.config import ArrCocConfig
from arr_coc.eval.bench_steps import BARE, Step, model, sharing, steps

DEFAULT = ("B/32", "B/16", "LLaVA")
ATTACH, ATTACH_SECONDS = "attach", 1.0
_PROBES = 5  # attachments that are timed


@dataclass(frozen=True)
class Row:
    """One step on one shape.

    Args:
        rounds: how often it was timed.
        seconds: median.
        beside: the step that ratios are to, "" for none.
        ratio, low, high: median and quartiles over rounds of its seconds over that step's.
        megabytes: peak over what was there before the step (1 MB = 10^6 bytes). memory_ratio: to `beside`.
        state_mb, disk_mb: what it keeps between steps, in memory and as it is saved.
        bound: of the ratio, or of the seconds where there is none; None where none was set.
    """

    shape: str
    batch: int
    step: str
    rounds: int
    seconds: float
    beside: str = ""
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    megabytes: float | None = None
    memory_ratio: float | None = None
    state_mb: float | None = None
    disk_mb: float | None = None
    bound: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the figure keeps its bound; None where none was set."""
        if self.bound is None:
            return None
        return (self.seconds if self.ratio is None else self.ratio) <= self.bound


def peak_bytes(step: Callable[[], Any]) -> int:
    """The highest running sum of what the allocator gave out and took back while `step` ran."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it has a line to say about every start and stop
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        held = step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held_bytes = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held_bytes += event.nbytes()
        peak = max(peak, held_bytes)
    del held
    return peak


def bench(
    shapes: Sequence[str] = DEFAULT,
    batches: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 5,
    seconds: float = 30.0,
    config: ArrCocConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Every step on every shape and batch size.

    Args:
        threads: of torch, for this process; the number before is put back.
        repeats: rounds at the least, after one that does not count.
        seconds: and further rounds until a shape and batch size has had these.
        config: of the plugin.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    rows: list[Row] = []
    try:
        for shape in shapes:
            bare = model(shape)
            big = not shape.startswith("tiny")  # bounds are for models of some size
            for batch in batches:
                rows.append(_attaching(shape, batch, bare, config, clock, big))
                made = steps(bare, batch, config)

                def follow(turn: int, done: bool, where: str = f"{shape}, batch {batch}") -> None:
                    if progress is not None:
                        progress(where, turn, turn if done else max(turn + 1, repeats + 1))

                spent = in_turn(made, repeats, seconds, clock, follow)
                rows += _rows(shape, batch, made, spent, big)
    finally:
        torch.set_num_threads(before)
    return rows


def in_turn(
    made: Sequence[Step],
    repeats: int,
    seconds: float,
    clock: Callable[[], float],
    follow: Callable[[int, bool], None] = lambda turn, done: None,
) -> dict[str, list[float]]:
    """Seconds of each step, by name, one for every round after the first."""
    spent: dict[str, list[float]] = {step.name: [] for step in made}
    started, turn = clock(), 0
    while turn <= repeats or clock() - started < seconds:
        for step in made if turn % 2 else reversed(made):
            began = clock()
            step.run()
            spent[step.name].append(clock() - began)
        turn += 1
        follow(turn, turn > repeats and clock() - started >= seconds)
    return {name: each[1:] for name, each in spent.items()}


def _attaching(
    shape: str, batch: int, bare: Any, config: ArrCocConfig | None, clock: Callable[[], float], big: bool
) -> Row:
    spent = []
    for _ in range(_PROBES + 1):
        other = sharing(bare)
        began = clock()
        attached = attach(other, config)
        spent.append(clock() - began)
        attached.detach()
    bound = ATTACH_SECONDS if big else None
    return Row(shape, batch, ATTACH, _PROBES, median(spent[1:]), bound=bound)


def _rows(shape: str, batch: int, made: list[Step], spent: dict[str, list[float]], big: bool) -> list[Row]:
    peaks = {step.name: peak_bytes(step.run) for step in made}
    rows = []
    for step in made:
        name, beside = step.name, step.beside
        ratios = [s / b for s, b in zip(spent[name], spent[beside], strict=True)]
        low, middle, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        held, disk = _kept(step)
        rows.append(
            Row(
                *(shape, batch, name, len(ratios), median(spent[name]), beside),
                *(middle, low, high),
                *(peaks[name] / 1e6, peaks[name] / peaks[beside], held, disk),
                bound=step.bound if big else None,
            )
        )
    return rows


def _kept(step: Step) -> tuple[float | None, float | None]:
    """Megabytes of a step's state in memory, and of the files that it is saved to."""
    if step.adapter is None:
        return None if step.state is None else step.state() / 1e6, None
    with tempfile.TemporaryDirectory() as scratch:
        folder = step.adapter.save_pretrained(Path(scratch) / "adapter")
        disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return step.adapter.inspect().state_bytes / 1e6, disk / 1e6


COLUMNS = (
    "shape",
    "batch",
    "step",
    "seconds",
    "ratio",
    "quartiles",
    "bound",
    "peak MB",
    "state MB",
    "rounds",
)


def cells(row: Row) -> dict[str, str]:
    """A row as it is printed, by the names of COLUMNS."""
    ratio = quartiles = bound = peak = state = ""
    if row.ratio is not None:
        ratio, quartiles = f"{row.ratio:.3f}", f"{row.low:.3f}-{row.high:.3f}"
        ratio += "" if row.beside == BARE else f" of {row.beside}"
    if row.bound is not None:
        limit = f"{row.bound:g} s" if row.ratio is None else f"{row.bound:.2f}"
        bound = f"{limit} {'holds' if row.holds else 'MISSED'}"
    if row.megabytes is not None:
        peak = f"{row.megabytes:.0f} ({row.memory_ratio:.2f}x)"
    if row.state_mb is not None:
        state = f"{row.state_mb:.1f}" + ("" if row.disk_mb is None else f", {row.disk_mb:.1f} on disk")
    first = (row.shape, str(row.batch), row.step, f"{row.seconds:.3f}")
    values = (*first, ratio, quartiles, bound, peak, state, str(row.rounds))
    return dict(zip(COLUMNS, values, strict=True))


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(cells(row).values()) + " |" for row in rows)])


def verdict(rows: Sequence[Row]) -> str:
    """Which bounds do not hold, in a line."""
    bound = [row for row in rows if row.bound is not None]
    missed = [f"{row.shape} batch {row.batch} {row.step}" for row in bound if not row.holds]
    if not bound:
        return "no bounds: they are set for models of ViT-B/32's size and above"
    told = f"; missed: {', '.join(missed)}" if missed else ""
    return f"{len(bound) - len(missed)} of {len(bound)} bounds hold{told}"


def as_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON list."""
    return json.dumps([{**asdict(row), "holds": row.holds} for row in rows], indent=2)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What attaching and learning cost beside the bare model.")
    parser.add_argument("--shapes", nargs="+", default=list(DEFAULT))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    args = parser.parse_args(argv)
    rows = bench(args.shapes, args.batches, args.threads, args.repeats, args.seconds)
    print(as_json(rows) if args.json else f"{markdown(rows)}\n\n{verdict(rows)}")


if __name__ == "__main__":
    main()
