"""The grid: every method on identical streams, seeds and orders.

A run is one method on one (stream, seed, order); what it leaves is raw (see `exam`) and is appended to a
JSONL file as it ends. A run that stands there is not run again: a grid that was stopped goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arr_coc.config import ArrCocConfig
from arr_coc.eval import methods as registry
from arr_coc.eval import percepts, percepts_file, records, table
from arr_coc.eval.exam import Record, one
from arr_coc.eval.jsonl import append, read
from arr_coc.eval.percepts import Progress
from arr_coc.eval.world import World, world
from arr_coc.eval.world_words import WordWorld, word_world
from arr_coc.training import stream_options, streams

GENERATIVE = ("scene-qa", "easy-vqa", "coin", "ucit")
TUNING_SEED = 1000  # rates are chosen on this seed's samples, which no run uses


@dataclass(frozen=True)
class Grid:
    """What is run.

    Args:
        stream: a name of `streams.STREAMS`, with options behind it or not; kept in one form, so that the same
            options are the same stream however they were written.
        batch: samples per step.
        n_train, n_test: options of the stream; None for its own.
        probe_limit: samples per probe at most; the counts stand in the records.
        lora_train: how many of the samples those learn from that train inside the model (LoRA is slow); None
            for all. Said in the record.
        tune_train: samples of the tuning seed on which rates are chosen.
        options: further options of the stream.
        config: of the plugin.
    """

    stream: str
    batch: int = 1
    n_train: int | None = None
    n_test: int | None = None
    probe_limit: int | None = None
    lora_train: int | None = None
    tune_train: int = 3000
    options: tuple[tuple[str, Any], ...] = ()
    config: ArrCocConfig = field(default_factory=ArrCocConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream", stream_options.written(self.stream))

    def load(self, seed: int, order: int, **changes: Any) -> streams.Stream:
        sizes = {"n_train": self.n_train, "n_test": self.n_test}
        named = {k: v for k, v in sizes.items() if v is not None} | dict(self.options) | changes
        return streams.load(self.stream, seed=seed, order=order, batch=self.batch, **named)

    @property
    def label(self) -> str:
        """The stream's name in records: with the batch size where it is not 1."""
        return self.stream if self.batch == 1 else f"{self.stream}@{self.batch}"

    @property
    def body(self) -> str:
        """The kind of model that the stream is for: "generative" for questions, else "dual"."""
        return "generative" if stream_options.split_name(self.stream)[0] in GENERATIVE else "dual"

    @property
    def cells(self) -> int:
        plain, said = stream_options.split_name(self.stream)
        return 3 if "3x3" in plain or said.get("grid") == "3" or dict(self.options).get("grid") == 3 else 2

    def key(
        self,
        method: str,
        seed: int,
        order: int,
        model: str,
        held: int | None = 0,
        spec: registry.Spec | None = None,
    ) -> str:
        """What tells one run from another; `held` as in `run`, `spec` where the method is somebody's own."""
        spec = registry.spec(method) if spec is None else spec
        said = [self.stream, self.batch, self.n_train, self.n_test, self.probe_limit, self.options]
        said += [json.loads(self.config.to_json())] if spec.configured else []
        said += [self.tune_train, spec.grid] if spec.grid else []
        said += [self.lora_train] if spec.inside else []
        said += [held] if held != 0 else []
        said += [spec.mark] if spec.mark else []
        text = json.dumps([*said, method, seed, order, model], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


SCORES = {"R": "accuracy", "C": "cumulative", "P": "pointing", "CP": "cumulative_pointing"}


def to_records(runs: Sequence[Record]) -> list[records.Record]:
    """Runs as raw records, one per step and probe: accuracy, cumulative, pointing, cumulative_pointing, and
    zero_shot (probe 0) before and after."""
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
        for step, what in ((0, "zero_shot_before"), (len(found["R"]) - 1, "zero_shot_after")):
            if found[what] is not None:
                n = found["n_held"]
                out.append(records.Record(*who, step, 0, n, round(found[what] * n), "zero_shot"))
    return out


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
) -> list[Record]:
    """Every method on every (seed, order) of a stream; returns all runs, those read from `out` included.

    A method that is order-free runs on the first order alone.

    Args:
        methods: names of `methods.METHODS` or "module:Class" of your own (see `own`), or a mapping such as
            {"mine": MyClass, "ranpac": None}; None for all that make sense on this stream.
        model: a built-in model's name, a folder, or (model, processor); None for the built-in one of the
            stream's kind.
        out: a JSONL file; runs that stand in it are not repeated. `export` makes raw records of it.
        cache: a folder for percepts (about 1.5 GB a seed); None keeps none.
        held: held-out concepts per artwork for zero-shot retention; 0 leaves it out, None takes all.
        progress: called with (what, done, of).

    Raises:
        ValueError: for an unknown stream, method or option, before anything is run.
    """
    rows = registry.specs(methods or ())
    for name, spec in rows.items():
        if grid.body not in spec.bodies:
            raise ValueError(f"{name} has no place on {grid.stream}, which is for a {grid.body} model")
    first = next(grid.load(0, 0).batches())[0]
    if cache is not None and cache.exists() and not cache.is_dir():
        raise ValueError(f"{cache} is a file; percepts are kept in a folder")
    sensible = registry.sensible(grid.body, first["context"] is not None, first["mask"] is not None)
    model = grid.body if model is None else model
    rows = rows or registry.specs(sensible)
    made: dict[str, World | WordWorld] = {}

    def worlds(tower: str) -> World | WordWorld:
        if tower not in made:
            few = 1 if held == 0 else held
            if grid.body == "generative":
                made[tower] = word_world(model, few)
            else:
                made[tower] = world(model, random=tower == "random", held=few)
        return made[tower]

    mark = worlds("model").fingerprint
    earlier = {r["key"]: r for r in read(out)}
    # settings are a matter of the grid, not of a seed: what an earlier run was tuned to holds for the next
    tuned = {r["group"]: (r["settings"], r["tried"]) for r in earlier.values() if "group" in r}
    tuning: dict[str, Any] = {}
    done: list[Record] = []

    def of_seed(seed: int) -> None:
        stores: dict[str, Any] = {}
        for order, (name, spec) in ((o, r) for o in orders for r in rows.items()):
            if spec.order_free and order != orders[0]:
                continue
            key = grid.key(name, seed, order, mark, held, spec)
            if key in earlier:
                done.append(earlier[key])
                continue
            here, group = worlds(spec.tower), grid.key(name, -1, -1, mark, spec=spec)
            if spec.grid and group not in tuned:
                tuned[group] = tune(name, grid, worlds, tuning, progress, spec)
            if spec.tower not in stores:
                stores[spec.tower] = _store(grid, seed, here, cache, progress)
            settings, tried = tuned.get(group, ({}, []))
            found = _one_run(
                grid, name, spec, seed, order, here, stores[spec.tower], settings, held, progress
            )
            found |= {"key": key, "group": group, "model": mark, "tried": tried}
            append(out, found)
            done.append(found)
            if progress is not None:
                progress(f"{name} seed {seed} order {order}", len(done), 0)

    for seed in seeds:
        of_seed(seed)  # its stores go when it is over: two seeds' worth are never held
    return done


def _store(grid: Grid, seed: int, here: Any, cache: Path | None, progress: Progress | None) -> Any:
    sizes = {"n_train": grid.n_train, "n_test": grid.n_test}
    named = dict(grid.options) | sizes
    kept = cache and percepts_file.cache_path(cache, grid.stream, named, seed, here.model)
    return here.store(grid.load(seed, 0), kept, progress)


def _one_run(
    grid: Grid,
    name: str,
    spec: registry.Spec,
    seed: int,
    order: int,
    here: Any,
    store: Any,
    settings: dict[str, float],
    held: int | None,
    progress: Progress | None,
) -> Record:
    """What is written of one method on one order of one seed.

    `step_cost` is (frozen forward + step) / frozen forward in the stream's batch size, candidate texts
    included; LoRA's step has its own forward pass and reads texts that were embedded once, in its favour.
    """
    stream = grid.load(seed, order)
    plan = percepts.plan(stream, store, grid.probe_limit)
    setup = registry.Setup(store, grid.config, grid.cells, seed, here.model, here.processor, settings)
    limit = grid.lora_train if spec.inside else None
    kept_out = None if held == 0 else here.held.beside(store.classes)
    raw = one(spec.make(setup), plan, store, grid.batch, kept_out, limit, progress)
    some = [stream.samples[i] for i in plan.shown[: grid.batch]]
    forward = here.forward_seconds(some, store.classes)
    inside = raw["step_seconds"] if spec.inside else raw["step_seconds"] + forward
    tested = None if store.mask is None else store.mask[torch.cat(plan.probes)]
    tested = tested if tested is not None and tested.any() else None  # a stream without a truth for relevance
    return {
        "stream": grid.stream,
        "label": grid.label,
        "method": name,
        "role": spec.role,
        "seed": seed,
        "order": order,
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


def export(runs: Sequence[Record], path: Path) -> None:
    """Write the raw records of runs; of the same run under two configs the last one stands.

    Outdated experiences are among them: what is final in a table is asked without those (`table.final`).
    """
    last = {(r["label"], r["method"], r["seed"], r["order"]): r for r in runs}
    records.write(path, to_records(list(last.values())))
