"""The grids: every method on identical streams, seeds and orders, one after another or in several processes.

A run is one method on one (stream, seed, order); what it leaves is raw (see `exam`) and is appended to a
JSONL file as it ends. A run that stands there is not run again: a grid that was stopped goes on. Settings are
chosen once, on a seed that no run uses, before anything is run; they stand in a file beside the runs.
"""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arr_coc.eval import methods as registry
from arr_coc.eval import percepts, percepts_file, table
from arr_coc.eval.exam import Record, one
from arr_coc.eval.grid import Grid
from arr_coc.eval.jsonl import append, read
from arr_coc.eval.percepts import Progress
from arr_coc.eval.workers import Pool
from arr_coc.eval.world import World, world
from arr_coc.eval.world_words import WordWorld, word_world

TUNING_SEED = 1000  # rates are chosen on this seed's samples, which no run uses
Named = Mapping[str, Any]  # rows by name, as `methods.specs` takes them
Tuned = dict[str, tuple[dict[str, float], list[Record]]]  # by group: the settings, and what each came to


@dataclass
class Workbench:
    """What a process works with: models by kind and tower, made when they are first asked for and kept.

    Args:
        model, held, cache: as in `run`.
    """

    model: str | tuple[Any, Any] | None = None
    held: int | None = None
    cache: Path | None = None
    made: dict[tuple[str, str], World | WordWorld] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return Workbench, (self.model, self.held, self.cache)  # a process makes its own

    def world(self, grid: Grid, tower: str = "model") -> World | WordWorld:
        kind = grid.body, tower
        if kind not in self.made:
            model = grid.body if self.model is None else self.model
            if grid.body == "generative":
                self.made[kind] = word_world(model, self.held)
            else:
                self.made[kind] = world(model, random=tower == "random", held=self.held)
        return self.made[kind]

    def store(self, grid: Grid, seed: int, tower: str, progress: Progress | None) -> Any:
        """Percepts of a stream's samples of this seed; its orders share them."""
        here = self.world(grid, tower)
        named = dict(grid.options) | {"n_train": grid.n_train, "n_test": grid.n_test}
        kept = self.cache and percepts_file.cache_path(self.cache, grid.stream, named, seed, here.model)
        return here.store(grid.load(seed, 0), kept, progress)


def tune(
    name: str,
    grid: Grid,
    worlds: Callable[[str], Any],
    stores: dict[str, Any] | None = None,
    progress: Progress | None = None,
    spec: registry.Spec | None = None,
) -> tuple[dict[str, float], list[Record]]:
    """The settings with the best final accuracy on the tuning seed's samples, and what each came to.

    Args:
        name: of `methods.METHODS`, where no spec is given.
        stores: of the tuning seed by tower, kept from method to method.
    """
    spec = registry.spec(name) if spec is None else spec
    few = {"n_train": min(grid.tune_train, grid.n_train or grid.tune_train)}
    few["n_test"] = min(600, grid.n_test or 600)
    stream = grid.load(TUNING_SEED, 0, **few)
    here = worlds(spec.tower)
    stores = {} if stores is None else stores
    if spec.tower not in stores:
        stores[spec.tower] = here.store(stream, None, progress)
    store = stores[spec.tower]
    plan = percepts.plan(stream, store, grid.probe_limit)
    tried: list[Record] = []
    for settings in spec.grid:
        setup = registry.Setup(
            store, grid.config, grid.cells, TUNING_SEED, here.model, here.processor, settings
        )
        limit = None if grid.lora_train is None or not spec.inside else min(grid.lora_train, few["n_train"])
        found = one(spec.make(setup), plan, store, grid.batch, None, limit, progress, last_only=True)
        found["outdated"] = stream.outdated
        tried.append({"settings": settings, "final_accuracy": table.final(found)})
    return max(tried, key=lambda t: t["final_accuracy"])["settings"], tried


@dataclass(frozen=True)
class Tuning:
    """The task of choosing settings on one stream, for rows by name; each finding is written as it comes.

    Args:
        groups: by name, what its settings are found again by.
    """

    grid: Grid
    rows: Named
    groups: dict[str, str]
    out: Path | None

    @property
    def what(self) -> str:
        return f"{self.grid.label}, choosing settings"

    def do(self, bench: Workbench, progress: Progress | None) -> Iterator[Record]:
        specs, stores = registry.specs(self.rows), dict[str, Any]()
        for name, group in self.groups.items():
            settings, tried = tune(
                name, self.grid, lambda tower: bench.world(self.grid, tower), stores, progress, specs[name]
            )
            found = {"group": group, "method": name, "settings": settings, "tried": tried}
            append(self.out, found)
            yield found


@dataclass(frozen=True)
class Wanted:
    """One run that does not stand anywhere yet; group: what its settings are found by."""

    name: str
    seed: int
    order: int
    key: str
    group: str


@dataclass(frozen=True)
class Seed:
    """The task of running rows on one seed of a stream, over the same percepts."""

    grid: Grid
    rows: Named
    wanted: tuple[Wanted, ...]
    tuned: Tuned
    out: Path | None

    @property
    def what(self) -> str:
        return f"{self.grid.label} seed {self.wanted[0].seed}"

    def do(self, bench: Workbench, progress: Progress | None) -> Iterator[Record]:
        specs, stores = registry.specs(self.rows), dict[str, Any]()
        for w in self.wanted:
            spec = specs[w.name]
            if spec.tower not in stores:
                stores[spec.tower] = bench.store(self.grid, w.seed, spec.tower, progress)
            settings, tried = self.tuned.get(w.group, ({}, []))
            found = _one_run(self.grid, w, spec, bench, stores[spec.tower], settings, progress)
            found |= {"key": w.key, "group": w.group, "model": bench.world(self.grid).fingerprint}
            found["tried"] = tried
            append(self.out, found)
            yield found


def run(
    grid: Grid,
    methods: Sequence[str] | Mapping[str, Any] | None = None,
    seeds: Sequence[int] = range(5),
    orders: Sequence[int] = range(3),
    model: str | tuple[Any, Any] | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    held: int | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
) -> list[Record]:
    """Every method on every (seed, order) of a stream; returns all runs, those read from `out` included.

    A method that is order-free runs on the first order alone.

    Args:
        methods: names of `methods.METHODS` or "module:Class" of your own (see `own`), or a mapping such as
            {"mine": MyClass, "ranpac": None}; None for all that make sense on this stream.
        model: a built-in model's name, a folder, or (model, processor); None for the built-in one of the
            stream's kind.
        out: a JSONL file; runs that stand in it are not repeated. `outputs.export` makes raw records of it.
            Settings that were chosen stand in a file `....tuned.jsonl` beside it.
        cache: a folder for percepts (about 1.5 GB a seed); None keeps none.
        held: held-out concepts per artwork for zero-shot retention; 0 leaves it out, None takes all.
        progress: called with (what, done, of).
        jobs: processes at the same time; each takes a seed of a stream and holds its percepts (with a cache
            and fewer seeds than jobs, an order of a seed). A script that asks for several needs
            `if __name__ == "__main__":` before it, as whatever starts processes afresh. What is found is the
            same, bit for bit, for any number of jobs under the same number of threads (OMP_NUM_THREADS;
            without it, processes beside others have one each).

    Raises:
        ValueError: for an unknown stream, method or option, before anything is run.
    """
    return run_all([(grid, methods)], seeds, orders, model, out, cache, held, progress, jobs)


def run_all(
    parts: Sequence[tuple[Grid, Sequence[str] | Mapping[str, Any] | None]],
    seeds: Sequence[int] = range(5),
    orders: Sequence[int] = range(3),
    model: str | tuple[Any, Any] | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    held: int | None = None,
    progress: Progress | None = None,
    jobs: int = 1,
) -> list[Record]:
    """`run` for several streams, each with its methods; the processes are shared by all of them."""
    if cache is not None and cache.exists() and not cache.is_dir():
        raise ValueError(f"{cache} is a file; percepts are kept in a folder")
    if jobs > 1 and isinstance(model, tuple):
        raise ValueError(f"jobs={jobs} with a model in memory: processes read it from a folder; give that")
    asked = [(grid, _rows(grid, methods)) for grid, methods in parts]
    with Pool(Workbench(model, held, cache), jobs) as pool:
        return _run_all(asked, pool, seeds, orders, out, progress)


def _rows(grid: Grid, methods: Sequence[str] | Mapping[str, Any] | None) -> Named:
    """The rows of a stream by name; a stream, row or option that there is not is refused."""
    for name, spec in registry.specs(methods or ()).items():
        if grid.body not in spec.bodies:
            raise ValueError(f"{name} has no place on {grid.stream}, which is for a {grid.body} model")
    brings = grid.brings  # read now: a stream that cannot be loaded is an error before anything is run
    rows = methods or registry.sensible(grid.body, brings)
    return dict(rows) if isinstance(rows, Mapping) else dict.fromkeys(rows)


def _run_all(
    parts: Sequence[tuple[Grid, Named]],
    pool: Pool,
    seeds: Sequence[int],
    orders: Sequence[int],
    out: Path | None,
    progress: Progress | None,
) -> list[Record]:
    beside = None if out is None else out.with_suffix(f".tuned{out.suffix}")
    found = {r["key"]: r for r in read(out)}
    # settings are a matter of the grid, not of a seed: what an earlier run was tuned to holds for the next
    tuned: Tuned = {r["group"]: (r["settings"], r["tried"]) for r in [*found.values(), *read(beside)]}
    keys: list[str] = []
    tunings: list[Tuning] = []
    lots: list[Seed] = []
    for grid, rows in parts:
        wanted = list(_wanted(grid, rows, pool.bench, seeds, orders))
        keys += [w.key for w in wanted]
        wanted = [w for w in wanted if w.key not in found]
        specs = registry.specs(rows)
        groups = {w.name: w.group for w in wanted if specs[w.name].grid and w.group not in tuned}
        tunings += [Tuning(grid, rows, groups, beside)] if groups else []
        for seed in dict.fromkeys(w.seed for w in wanted):
            lots.append(Seed(grid, rows, tuple(w for w in wanted if w.seed == seed), {}, out))
    if pool.jobs > 1:
        _check_told([*tunings, *lots])
        lots = _split(lots, pool)
    for _, chosen in pool.each(tunings, progress):
        tuned[chosen["group"]] = chosen["settings"], chosen["tried"]
    lots = [replace(s, tuned={w.group: tuned[w.group] for w in s.wanted if w.group in tuned}) for s in lots]
    count = sum(len(s.wanted) for s in lots)
    for done, (_, record) in enumerate(pool.each(lots, progress), 1):
        found[record["key"]] = record
        if progress is not None:
            who = f"{record['label']}: {record['method']} seed {record['seed']} order {record['order']}"
            progress(who, done, count)
    return [found[key] for key in keys]


def _wanted(
    grid: Grid, rows: Named, bench: Workbench, seeds: Sequence[int], orders: Sequence[int]
) -> Iterator[Wanted]:
    """Every run of a grid, in the order in which they are reported."""
    mark, specs = bench.world(grid).fingerprint, registry.specs(rows)
    for seed in seeds:
        for order in orders:
            for name, spec in specs.items():
                if spec.order_free and order != orders[0]:
                    continue
                key = grid.key(name, seed, order, mark, bench.held, spec)
                yield Wanted(name, seed, order, key, grid.key(name, -1, -1, mark, spec=spec))


def _check_told(tasks: Sequence[Any]) -> None:
    """Raises:
    ValueError: for rows that cannot be told to another process."""
    for task in tasks:
        for name, what in task.rows.items():
            try:
                pickle.dumps(what)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ValueError(
                    f"{name} cannot be told to another process ({error}): with several jobs a class of your "
                    'own has to be one that can be imported, or named as "module:Class"'
                ) from error


def _split(lots: list[Seed], pool: Pool) -> list[Seed]:
    """By order where there are more jobs than seeds and the percepts of a seed are shared on disk."""
    if len(lots) >= pool.jobs or pool.bench.cache is None:
        return lots
    out = []
    for lot in lots:
        orders = dict.fromkeys(w.order for w in lot.wanted)
        shared = lot.grid.body == "dual"  # percepts of a generative model are not kept on disk
        parts = [tuple(w for w in lot.wanted if w.order == o) for o in orders] if shared else [lot.wanted]
        out += [replace(lot, wanted=part) for part in parts]
    return out


def _one_run(
    grid: Grid,
    wanted: Wanted,
    spec: registry.Spec,
    bench: Workbench,
    store: Any,
    settings: dict[str, float],
    progress: Progress | None,
) -> Record:
    """What is written of one method on one order of one seed.

    `step_cost` is (frozen forward + step) / frozen forward in the stream's batch size, candidate texts
    included; LoRA's step has its own forward pass and reads texts that were embedded once, in its favour.
    """
    here: Any = bench.world(grid, spec.tower)  # of either kind of model, as the store is
    stream = grid.load(wanted.seed, wanted.order)
    plan = percepts.plan(stream, store, grid.probe_limit)
    setup = registry.Setup(store, grid.config, grid.cells, wanted.seed, here.model, here.processor, settings)
    limit = grid.lora_train if spec.inside else None
    kept_out = None if bench.held == 0 else here.held.beside(store.classes)
    raw = one(spec.make(setup), plan, store, grid.batch, kept_out, limit, progress)
    some = [stream.samples[i] for i in plan.shown[: grid.batch]]
    forward = here.forward_seconds(some, store.classes)
    inside = raw["step_seconds"] if spec.inside else raw["step_seconds"] + forward
    tested = None if store.mask is None else store.mask[torch.cat(plan.probes)]
    tested = tested if tested is not None and tested.any() else None  # a stream without a truth for relevance
    return {
        "stream": grid.stream,
        "label": grid.label,
        "method": wanted.name,
        "role": spec.role,
        "seed": wanted.seed,
        "order": wanted.order,
        "batch": grid.batch,
        "n_train": len(plan.shown),
        "skipped": store.skipped,
        "notes": stream.notes,
        "n_held": 0 if kept_out is None else len(kept_out),
        "chance": float(np.mean([1 / len(texts) for texts in stream.asked or [store.classes]])),
        "pointing_chance": None if tested is None else float(tested[tested.any(1)].float().mean()),
        "experiences": plan.experiences,
        "outdated": list(stream.outdated),
        "settings": settings,
        "forward_seconds": forward,
        "step_cost": inside / forward,
        "config": json.loads(grid.config.to_json()),
        **raw,
    }
