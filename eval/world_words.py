"""The frozen world of a run on a generative model (see `world`)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arr_coc.adapters import attach
from arr_coc.eval.percepts import Progress
from arr_coc.eval.percepts_file import fingerprint
from arr_coc.eval.percepts_words import WordStore, perceive_words, said
from arr_coc.training import streams
from arr_coc.training.questions import Composer


@dataclass
class WordWorld:
    """A bare generative model and what it knows beside the stream.

    Args:
        held_limit: questions for zero-shot retention; None for 300.
    """

    model: Any
    processor: Any
    held_limit: int | None = None

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.model)

    @cached_property
    def held(self) -> WordStore:
        """Questions about scenes of the kind that the model was trained on, with their answers."""
        samples = held_out_questions(300 if self.held_limit is None else self.held_limit)
        attached = attach(self.model, processor=self.processor)
        try:
            answers = list(dict.fromkeys(s["label"] for s in samples))
            asked = attached, self.processor, [("held", samples)], answers
            return perceive_words(*asked, keep_images=True)
        finally:
            attached.detach()

    def store(self, stream: streams.Stream, cache: Path | None, progress: Progress | None) -> WordStore:
        """Percepts of the stream and its probes; these are not kept on disk."""
        groups = [("train", stream.samples), *(("test", probe) for probe in stream.probes)]
        attached = attach(self.model, processor=self.processor)
        try:
            return perceive_words(attached, self.processor, groups, list(stream.classes), progress=progress)
        finally:
            attached.detach()

    def forward_seconds(self, samples: Sequence[Any], classes: list[str], repeats: int = 9) -> float:
        """Median seconds of one frozen forward pass over these questions and answers."""
        texts = [s["context"] for s in samples], [s["label"] for s in samples]
        inputs, _ = said(self.processor, [s["image"] for s in samples], *texts)
        spent = []
        with torch.inference_mode():
            for _ in range(repeats + 2):
                began = time.perf_counter()
                self.model(**inputs)
                spent.append(time.perf_counter() - began)
        return float(np.median(spent[2:]))


def held_out_questions(count: int) -> list[streams.Sample]:
    """One question about each of `count` fresh 2x2 scenes of seen concepts, as training asked them."""
    chance = np.random.default_rng(78)
    composer = Composer(chance)
    samples: list[streams.Sample] = []
    for index in range(count):
        scene = composer.draw(2)
        turn = scene.turns[int(chance.integers(len(scene.turns)))]
        told = {"image": scene.image, "label": turn.answer, "context": turn.question, "mask": None}
        samples.append(told | {"index": index})
    return samples


def word_world(model: str | tuple[Any, Any] = "generative", held: int | None = None) -> WordWorld:
    """The built-in generative model by name, one in a folder, or a (model, processor).

    Args:
        held: questions for zero-shot retention; None for 300.
    """
    if isinstance(model, tuple):
        bare, processor = model
    else:
        from arr_coc.adapters import embedded

        folder = model if Path(model).is_dir() else None
        bare, processor = embedded.load("generative" if folder else model, folder=folder)
    return WordWorld(bare, processor, held)
