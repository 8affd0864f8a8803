"""What a learning step costs: seconds and peak activation memory beside the frozen forward pass.

Four steps stand side by side in one process and take turns, so that whatever else the machine does falls on
all of them: the frozen forward (pixel values and candidate texts, `inference_mode`), one step of the plugin
without and with a context, and a step of PEFT LoRA (r = 8 on q_proj, v_proj of the vision tower) with AdamW.
Models have random weights: costs do not depend on them. Seconds are medians; a ratio is the median of the
ratios within a round.

Memory is what the allocator says: every allocation and release of tensor memory during a warmed-up step is
recorded by `torch.profiler` (`profile_memory`), and the peak is the highest running sum from the start of the
step. Weights, optimizer moments and the adapter's state were there before and do not count; scratch memory
that kernels take outside torch's allocator is not seen, for any of the four.
"""

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters import attach
from arr_coc.config import ArrCocConfig
from arr_coc.eval.methods_lora import with_lora

TEXTS = 10
STEPS = ("frozen forward", "plugin", "plugin, with a context", "LoRA + AdamW")


@dataclass(frozen=True)
class Row:
    """One step on one shape.

    Args:
        seconds: median. ratio: to the frozen forward, median over rounds.
        megabytes: peak over what was there before the step (1 MB = 10^6 bytes). memory_ratio: to the frozen
            forward.
    """

    shape: str
    batch: int
    step: str
    seconds: float
    ratio: float
    megabytes: float
    memory_ratio: float


def clip(shape: str) -> Any:
    """A `CLIPModel` with random weights: "B/32" or "B/16" at 224 px, or "tiny" for a try.

    Raises:
        ValueError: for another shape.
    """
    from transformers import CLIPConfig, CLIPModel

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    configs: dict[str, dict[str, Any]] = {
        "B/32": {},
        "B/16": {"vision_config": {"patch_size": 16}},
        "tiny": {
            "vision_config": {**tiny, "image_size": 32, "patch_size": 8},
            "text_config": {**tiny, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 99},
            "projection_dim": 16,
        },
    }
    if shape not in configs:
        raise ValueError(f"shape={shape!r}: possible are {', '.join(configs)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(**configs[shape])).eval()


def inputs(model: Any, batch: int, texts: int = TEXTS) -> dict[str, Tensor]:
    """Noise and token ids: pixel_values (batch, 3, S, S), input_ids and attention_mask (texts, 8)."""
    draw = torch.Generator().manual_seed(1)
    size, words = model.config.vision_config.image_size, model.config.text_config
    ids = torch.randint(2, words.vocab_size - 2, (texts, 8), generator=draw)
    ids[:, -1] = words.eos_token_id
    pixels = torch.randn(batch, 3, size, size, generator=draw)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


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


def steps(model: Any, batch: int, config: ArrCocConfig | None = None) -> dict[str, Callable[[], Any]]:
    """The four steps on copies of one model, over the same inputs and labels, by the names of STEPS."""
    given = inputs(model, batch)
    labels = torch.arange(batch) % TEXTS
    asked = {"context_ids": inputs(model, 1, 1)["input_ids"]}
    plain, cued = (attach(copy.deepcopy(model), config) for _ in range(2))
    tuned = with_lora(model)
    tuned.train()
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=1e-4)

    def forward() -> Any:
        with torch.inference_mode():
            return model(**given)

    def lora() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(tuned(**given).logits_per_image, labels).backward()
        optimizer.step()

    made: tuple[Callable[[], Any], ...] = (
        forward,
        lambda: plain.learn(labels=labels, **given),
        lambda: cued.learn(labels=labels, **given, **asked),
        lora,
    )
    return dict(zip(STEPS, made, strict=True))


def bench(
    shapes: Sequence[str] = ("B/32", "B/16"),
    batches: Sequence[int] = (1, 8),
    threads: int = 1,
    repeats: int = 7,
    config: ArrCocConfig | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Row]:
    """Every step on every shape and batch size.

    Args:
        threads: of torch, for this process; the number before is put back.
        repeats: rounds, after two that do not count.
        config: of the plugin.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    try:
        for shape in shapes:
            model = clip(shape)
            for batch in batches:
                made = steps(model, batch, config)
                spent: dict[str, list[float]] = {name: [] for name in made}
                for turn in range(repeats + 2):
                    for name, step in made.items():
                        began = time.perf_counter()
                        step()
                        spent[name].append(time.perf_counter() - began)
                    if progress is not None:
                        progress(f"{shape}, batch {batch}", turn + 1, repeats + 2)
                rows += _rows(shape, batch, spent, {name: peak_bytes(step) for name, step in made.items()})
    finally:
        torch.set_num_threads(before)
    return rows


def _rows(shape: str, batch: int, spent: dict[str, list[float]], peaks: dict[str, int]) -> list[Row]:
    kept = {name: seconds[2:] for name, seconds in spent.items()}
    first = STEPS[0]
    rows = []
    for name, seconds in kept.items():
        ratio = median(s / f for s, f in zip(seconds, kept[first], strict=True))
        share = peaks[name] / peaks[first]
        rows.append(Row(shape, batch, name, median(seconds), ratio, peaks[name] / 1e6, share))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| shape | batch | step | seconds | x forward | peak MB | x forward |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.shape} | {r.batch} | {r.step} | {r.seconds:.3f} | {r.ratio:.2f} | {r.megabytes:.0f} "
        f"| {r.memory_ratio:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What a learning step costs beside the frozen forward pass.")
    parser.add_argument("--shapes", nargs="+", default=["B/32", "B/16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    args = parser.parse_args(argv)
    rows = bench(args.shapes, args.batches, args.threads, args.repeats)
    print(json.dumps([asdict(r) for r in rows]) if args.json else markdown(rows))


if __name__ == "__main__":
    main()
