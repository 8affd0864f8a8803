"""Ordinary fine-tuning of a chosen part of the backbone, beside the local learning."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.teach import own_scores

FILE = "finetuned.safetensors"


class Tuned:
    """The parameters of an attached model's backbone whose names a pattern finds.

    Args:
        pattern: a regular expression, searched for in the names; None: no parameter.

    Raises:
        ValueError: for a pattern that is none, or finds nothing (the nearest names are given).
    """

    def __init__(self, attached: ArrCocModel, pattern: str | None) -> None:
        self.attached, self.pattern = attached, pattern
        named = dict(attached.model.named_parameters())
        try:
            found = [] if pattern is None else [n for n in named if re.search(pattern, n)]
        except re.error as error:
            raise ValueError(f"finetune={pattern!r} is no regular expression: {error}") from error
        if pattern is not None and not found:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.0)
            raise ValueError(f"finetune={pattern!r} finds no parameter; the nearest are {', '.join(near)}")
        whole = [n for n in found if not named[n].is_floating_point()]
        if whole:
            raise ValueError(
                f"{', '.join(whole)} are quantised and have no gradient; choose other parameters"
            )
        self.parameters: dict[str, nn.Parameter] = {n: named[n] for n in found}

    def __bool__(self) -> bool:
        return bool(self.parameters)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, these parameters require a gradient and no other does; then it is as before."""
        chosen = {id(p) for p in self.parameters.values()}
        before = [(p, p.requires_grad) for p in self.attached.parameters()]
        try:
            for parameter, _ in before:
                if parameter.is_floating_point():
                    parameter.requires_grad_(id(parameter) in chosen)
            yield
        finally:
            for parameter, wanted in before:
                if parameter.is_floating_point():
                    parameter.requires_grad_(wanted)
                    parameter.grad = None

    def loss(self, labels: Tensor, inputs: dict[str, Any]) -> Tensor:
        """Cross-entropy of the model's own scores at the labels, the adapter off: a graph over the part."""
        attached, body = self.attached, self.attached.body
        inputs = {k: v for k, v in inputs.items() if not k.startswith("context_")}
        if isinstance(body, GenerativeBody):
            inputs = body.with_answers(inputs, labels)
        with attached.disable(), torch.enable_grad():
            own, right = own_scores(body, attached.model(**inputs), labels)
            return nn.functional.cross_entropy(own, right)

    def moved(self) -> None:
        """To be called after a step: what the body kept of the old weights is let go."""
        if isinstance(self.attached.body, DualEncoderBody):
            self.attached.body.forget_texts()

    def save(self, folder: Path) -> None:
        """Write the part's weights to `finetuned.safetensors`."""
        save_file(
            {n: p.detach().cpu().contiguous().clone() for n, p in self.parameters.items()}, folder / FILE
        )

    def load(self, folder: Path) -> None:
        """The inverse of `save`.

        Raises:
            ValueError: where the folder's part is another one; nothing was changed.
        """
        saved = load_file(folder / FILE) if (folder / FILE).is_file() else {}
        here = {n: tuple(p.shape) for n, p in self.parameters.items()}
        there = {n: tuple(t.shape) for n, t in saved.items()}
        if here != there:
            odd = sorted(set(here.items()) ^ set(there.items()))[:3]
            raise ValueError(
                f"{folder} was saved with another part fine-tuned (finetune={self.pattern!r} here); "
                f"they differ in {', '.join(name for name, _ in odd)}"
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(saved[name])
        self.moved()
