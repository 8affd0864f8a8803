"""What arr-coc costs: seconds and peak activation memory of every call beside the bare model's forward pass.

The steps stand side by side in one process and take turns, so that whatever else the machine does falls on
all of them. Models have random weights: costs do not depend on them. A ratio is the median of the ratios
within a round, and stands with its quartiles; seconds are medians. A generative model's steps run on prompt
and answer, `act` on the prompt (it generates the answer, looks at it once more and remembers).

Memory is what the allocator says: every allocation and release of tensor memory during a warmed-up step is
recorded by `torch.profiler` (`profile_memory`), and the peak is the highest running sum from the start of the
step. Weights, optimizer moments and the adapter's state were there before and do not count; scratch memory
that kernels take outside torch's allocator is not seen, for any of the steps.
"""

import copy
import gc
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from arr_coc import state
from arr_coc.adapters import attach
from arr_coc.config import ArrCocConfig
from arr_coc.eval import bench_models
from arr_coc.eval.methods_lora import with_lora

FORWARD, ATTACH = "the bare model's forward", "attach and detach"
Steps = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """One step on one shape.

    Args:
        seconds: median.
        ratio, low, high: to the bare forward, median and quartiles over rounds.
        megabytes: peak over what was there before the step (1 MB = 10^6 bytes).
        memory_ratio: to the bare forward.
        state_megabytes: what an adapter or an optimizer keeps between steps.
    """

    shape: str
    batch: int
    step: str
    seconds: float
    ratio: float
    low: float
    high: float
    megabytes: float
    memory_ratio: float
    state_megabytes: float


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


def steps(model: Any, batch: int, config: ArrCocConfig | None = None) -> tuple[Steps, dict[str, float]]:
    """Every step on copies of one model, over the same inputs and labels, by name, and the state that each of
    them keeps, MB."""
    taught = bench_models.lesson(model, batch)
    given = {k: v for k, v in taught.items() if k != "labels"}
    writes = model.config.model_type != "clip"
    asked = {} if writes else {"context_ids": bench_models.inputs(model, 1, 1)["input_ids"]}
    prompt = bench_models.inputs(model, batch)
    bare = _twin(model)
    seen, learning, cued, acting = (attach(_twin(model), config) for _ in range(4))
    seen.learn(**taught)
    tuned = with_lora(model, tower="language_model" if writes else "vision_model")
    tuned.train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def forward() -> Any:
        with torch.inference_mode():
            return model(**given)

    def off() -> Any:
        with torch.inference_mode(), seen.disable():
            return seen(**given)

    def rewarded() -> None:
        options = {"max_new_tokens": bench_models.ANSWER, "do_sample": False} if writes else {}
        handle = acting.act(**prompt, **options)
        acting.reward(handle, torch.ones(batch))

    def lora() -> None:
        optimizer.zero_grad()
        if writes:
            loss = tuned(**taught).loss
        else:
            loss = torch.nn.functional.cross_entropy(tuned(**given).logits_per_image, taught["labels"])
        loss.backward()
        optimizer.step()

    made: Steps = {
        FORWARD: forward,
        "attached, learning off": off,
        "attached, answering with what was learned": lambda: seen(**given),
        "one learning step": lambda: learning.learn(**taught),
    }
    if not writes:
        made["one learning step with a context"] = lambda: cued.learn(**taught, **asked)
    made["an action and its reward"] = rewarded
    made["PEFT LoRA r=8 + AdamW step"] = lora
    made[ATTACH] = lambda: attach(bare, config).detach()
    for step in made.values():
        step()
    held = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    kept = dict.fromkeys(made, 0.0)
    kept["one learning step"] = _megabytes(state.tensors(learning.learner).values())
    kept["an action and its reward"] = _megabytes(state.tensors(acting.learner).values())
    kept["PEFT LoRA r=8 + AdamW step"] = _megabytes([*trained, *held])
    return made, kept


def _twin(model: Any) -> Any:
    """A copy that shares its weights with the model: nothing here writes to them."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _megabytes(tensors: Any) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def bench(
    shapes: Sequence[str] = ("B/32", "B/16", "llava"),
    batches: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 7,
    config: ArrCocConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Every step on every shape and batch size.

    Args:
        shapes: see `bench_models.model`.
        threads: of torch, for this process; the number before is put back.
        repeats: rounds, after one that does not count.
        config: of the adapter.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        for shape in shapes:
            model = bench_models.model(shape)
            for batch in batches:
                made, kept = steps(model, batch, config)
                spent: dict[str, list[float]] = {name: [] for name in made}
                for turn in range(repeats):
                    for name, step in made.items():
                        began = time.perf_counter()
                        step()
                        spent[name].append(time.perf_counter() - began)
                    if progress is not None:
                        progress(f"{shape}, batch {batch}", turn + 1, repeats)
                peaks = {name: peak_bytes(step) for name, step in made.items()}
                rows += [_row(shape, batch, name, spent, peaks, kept[name]) for name in made]
                del made
                gc.collect()  # a model and its hooks know each other
    finally:
        torch.set_num_threads(before)
    return rows


def _row(
    shape: str, batch: int, name: str, spent: dict[str, list[float]], peaks: dict[str, int], kept: float
) -> Row:
    ratios = np.divide(spent[name], spent[FORWARD])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    seconds, share = float(np.median(spent[name])), peaks[name] / peaks[FORWARD]
    return Row(
        shape, batch, name, seconds, float(middle), float(low), float(high), peaks[name] / 1e6, share, kept
    )


def cells(row: Row) -> dict[str, str]:
    """A row as it is printed, by column."""
    memory = f"{row.megabytes:.0f} ({row.memory_ratio:.2f}x)"
    return {
        "shape": row.shape,
        "batch": str(row.batch),
        "step": row.step,
        "seconds": f"{row.seconds:.3f}",
        "x forward (quartiles)": f"{row.ratio:.2f} ({row.low:.2f}-{row.high:.2f})",
        "peak MB": memory,
        "state MB": f"{row.state_megabytes:.1f}" if row.state_megabytes else "",
    }
