"""The frozen world of a run: a bare model, its texts, and what it knows beside the stream."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arr_coc.adapters import attach
from arr_coc.eval import percepts, percepts_file
from arr_coc.eval.percepts import Progress, Store, TextBook
from arr_coc.training import items, scenes, streams


@dataclass
class World:
    """A bare model, its processor, and what is the same for every run on it.

    Args:
        held_limit: held-out concepts per artwork, at most.
    """

    model: Any
    processor: Any
    texts: TextBook
    held_limit: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        return percepts_file.fingerprint(self.model)

    @cached_property
    def held(self) -> Store:
        """Single held-out emoji with their names as labels: what the frozen model knows beside the stream."""
        samples = held_out_samples(self.held_limit)
        attached = attach(self.model)
        try:
            names = list(dict.fromkeys(s["label"] for s in samples))
            shown = percepts.perceive_all(attached.perceive, self.texts, [("held", samples)], names)
            return replace(shown, images=[s["image"] for s in samples])
        finally:
            attached.detach()

    def store(self, stream: streams.Stream, cache: Path | None, progress: Progress | None) -> Store:
        attached = attach(self.model)
        try:
            return percepts_file.of_stream(attached, self.texts, stream, cache, progress=progress)
        finally:
            attached.detach()

    def forward_seconds(self, samples: Sequence[Any], classes: list[str], repeats: int = 9) -> float:
        """Median seconds of one frozen forward pass over these samples with the candidate texts."""
        shown = self.processor.image_processor([s["image"] for s in samples], return_tensors="pt")
        said = self.texts.tokens(classes)
        spent = []
        with torch.inference_mode():
            for _ in range(repeats + 2):
                began = time.perf_counter()
                self.model(pixel_values=shown["pixel_values"], **said)
                spent.append(time.perf_counter() - began)
        return float(np.median(spent[2:]))


def held_out_samples(limit: int | None = None) -> list[streams.Sample]:
    """Held-out emoji concepts in both artworks, one to a picture; no context, no truth for relevance."""
    chance = np.random.default_rng(77)
    samples: list[streams.Sample] = []
    for art in ("noto", "twemoji"):
        found = items.emoji(art)
        kept = [i for i in np.flatnonzero(found.held_out) if found.groups[i] != "flags"]
        for i in (kept[j] for j in percepts.thin(len(kept), limit)):
            image, _ = scenes.compose([found.images[i]], 1, scenes.background(chance), chance)
            label = streams.PROMPT.format(found.names[i])
            samples.append(
                {"image": image, "label": label, "context": None, "mask": None, "index": len(samples)}
            )
    return samples


def world(model: str | tuple[Any, Any] = "dual", random: bool = False, held: int | None = None) -> World:
    """The built-in model by name, one in a folder, or a (model, processor); `random` re-draws its weights.

    Args:
        held: held-out concepts per artwork, at most.
    """
    if isinstance(model, tuple):
        bare, processor = model
    else:
        from arr_coc.adapters import embedded

        folder = model if Path(model).is_dir() else None
        bare, processor = embedded.load("dual" if folder else model, folder=folder)
    if random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            bare = type(bare)(bare.config).eval()
    return World(bare, processor, TextBook(bare, processor), held)
