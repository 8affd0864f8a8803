"""How much sooner the first token is there when most visual tokens are dropped, everything included.

A LLaVA-1.5 in its own depth and number of tokens (24 blocks of vision tower, 576 visual tokens, 32 blocks of
language model) and an eighth of its widths, with random weights: what is timed does not depend on them. Wall
clock of `generate` for one token: vision tower, the blocks that say what is relevant, the choice, the pass.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from arr_coc.adapters import attach
from arr_coc.eval.shown import Shown

IMAGE, SIDE, PATCH = 31999, 336, 14
TOKENS = (SIDE // PATCH) ** 2  # 576
WORDS = 40  # of the prompt


@dataclass(frozen=True)
class Speed:
    """Seconds to the first token, medians: the bare model's, attached with all tokens, and by budget.

    `faster` has how many times sooner than the bare model's that is, the median of paired ratios.
    """

    bare: float
    attached: float
    kept: dict[int, float]
    faster: dict[int, float]
    repeats: int
    threads: int


def llava(shrink: int = 8, depth: int = 32, seed: int = 0) -> Any:
    """A LLaVA-1.5 of random weights, `shrink` times narrower."""
    vision = CLIPVisionConfig(
        hidden_size=1024 // shrink,
        intermediate_size=4096 // shrink,
        num_hidden_layers=24 * depth // 32,
        num_attention_heads=max(16 // shrink, 1),
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=4096 // shrink,
        intermediate_size=11008 // shrink,
        num_hidden_layers=depth,
        num_attention_heads=32 // shrink,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(  # type: ignore[call-arg]
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


def prompt(seed: int = 0) -> dict[str, Tensor]:
    """One picture and a question of WORDS tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 31000, (1, WORDS), generator=draw)
    ids = torch.cat([ids[:, :8], torch.full((1, TOKENS), IMAGE), ids[:, 8:]], 1)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


class _Words:
    """A tokenizer to whom every token is a word, so that a question's words are all heard: the dearest
    case."""

    all_special_ids: tuple[int, ...] = ()

    def convert_ids_to_tokens(self, token: int) -> str:
        return "word"


def measure(budgets: tuple[int, ...], repeats: int = 7, shrink: int = 8, depth: int = 32) -> Speed:
    """Medians over `repeats` rounds, in each of which all run in turn, after a round of warming up."""
    model, inputs = llava(shrink, depth), prompt()
    once = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
    bare: list[float] = []
    whole: list[float] = []
    kept: dict[int, list[float]] = {k: [] for k in budgets}
    attached = attach(model, processor=_Words())

    def bare_pass() -> None:
        with attached.disable():
            model.generate(**inputs, **once)

    for _ in range(repeats + 1):
        bare.append(_seconds(bare_pass))
        whole.append(_seconds(lambda: attached.generate(**inputs, **once)))
        for k in budgets:
            kept[k].append(_seconds(lambda k=k: attached.generate(**inputs, **once, keep_tokens=k)))  # type: ignore[misc]

    def median(times: list[float]) -> float:
        return statistics.median(times[1:])

    faster = {
        k: statistics.median(w / t for w, t in zip(bare[1:], kept[k][1:], strict=True)) for k in budgets
    }
    return Speed(
        median(bare),
        median(whole),
        {k: median(v) for k, v in kept.items()},
        faster,
        repeats,
        torch.get_num_threads(),
    )


def _seconds(run: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def shown(speed: Speed) -> Shown:
    """The table."""
    rows = [
        ["the bare model", str(TOKENS), f"{1000 * speed.bare:.0f}", "1.00x"],
        ["attached", str(TOKENS), f"{1000 * speed.attached:.0f}", f"{speed.bare / speed.attached:.2f}x"],
    ]
    for k, seconds in speed.kept.items():
        rows.append(["attached", str(k), f"{1000 * seconds:.0f}", f"{speed.faster[k]:.2f}x"])
    title = (
        f"first token of a LLaVA-1.5 at an eighth of its widths, {speed.threads} thread(s), medians of "
        f"{speed.repeats} rounds; choosing included"
    )
    return Shown(title, ["", "visual tokens", "ms", "as fast as bare"], rows)
