"""Somebody's own learner as a row: any class with `observe(batch)` and `predict(batch, texts)`.

`batch` is a `percepts.Batch` (a `WordBatch` on a generative model); `predict` gives one of the texts for each
sample (None where it cannot say), or scores, (B, len(texts)). Made without arguments, or from a `spec.Setup`
where its constructor takes one. Read where the class has them: `needs_images` (True: batches come with
`images`), `grid` (at most five settings, told as `Setup.settings`), `experience_over()`, `finish()`,
`state_bytes()`, `stored_samples`.
"""

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arr_coc.eval.methods_features import Answered, Method
from arr_coc.eval.spec import Setup, Spec

BUDGET = 5  # settings that a row may be tuned over


class Own(Method):
    """A learner with `observe` and `predict`, as the harness examines it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.needs_images = bool(getattr(inner, "needs_images", False))
        self.told_boundaries = callable(getattr(inner, "experience_over", None))
        self.asked_again = True

    def observe(self, batch: Any) -> None:
        self.inner.observe(batch)

    def answer(self, batch: Any, texts: list[str]) -> Answered:
        said = self.inner.predict(batch, texts)
        if isinstance(said, Tensor):
            if said.shape != (len(batch.labels), len(texts)):
                raise ValueError(
                    f"{self.name}.predict gave scores of shape {tuple(said.shape)}; asked about were "
                    f"{len(batch.labels)} samples and {len(texts)} texts"
                )
            self.asked_again = False  # scores can be narrowed to fewer texts as they are
            return Answered(said.detach())
        return Answered(self._chosen(list(said), len(batch.labels), texts))

    def _chosen(self, said: list[Any], count: int, texts: list[str]) -> Tensor:
        """1 for the text that was said, -inf for all others."""
        place: dict[Any, int] = {t: i for i, t in enumerate(texts)}
        wrong = [t for t in said if t is not None and t not in place]
        if wrong or len(said) != count:
            told = f"{wrong[0]!r}, which is none of the texts" if wrong else f"{len(said)} answers"
            raise ValueError(
                f"{self.name}.predict gave {told}; {count} samples were asked about, and {texts[:5]} ..."
            )
        scores = torch.full((count, len(texts)), -torch.inf)
        for row, text in enumerate(said):
            if text is not None:
                scores[row, place[text]] = 1.0
        return scores

    @property
    def name(self) -> str:
        return type(self.inner).__name__

    @property
    def stored_samples(self) -> int:  # type: ignore[override]
        return int(getattr(self.inner, "stored_samples", 0))

    def experience_over(self) -> None:
        if self.told_boundaries:
            self.inner.experience_over()

    def finish(self) -> None:
        if callable(getattr(self.inner, "finish", None)):
            self.inner.finish()

    def state_bytes(self) -> int:
        """What it says itself, or the tensors and arrays that are found in its attributes."""
        if callable(getattr(self.inner, "state_bytes", None)):
            return int(self.inner.state_bytes())
        return _bytes(self.inner if isinstance(self.inner, nn.Module) else vars(self.inner))


def _bytes(held: Any) -> int:
    if isinstance(held, Tensor):
        return held.numel() * held.element_size()
    if isinstance(held, np.ndarray):
        return held.nbytes
    if isinstance(held, nn.Module):
        return sum(_bytes(t) for t in [*held.parameters(), *held.buffers()])
    if isinstance(held, dict):
        return sum(map(_bytes, held.values()))
    return sum(map(_bytes, held)) if isinstance(held, list | tuple) else 0


def own_spec(learner: Callable[..., Any]) -> Spec:
    """A row of this class.

    Raises:
        ValueError: without `observe` and `predict`, or with a grid beyond the budget.
    """
    name = getattr(learner, "__qualname__", repr(learner))
    if isinstance(learner, type):
        lacks = [m for m in ("observe", "predict") if not callable(getattr(learner, m, None))]
        if lacks:
            raise ValueError(f"{name} has no {' and no '.join(lacks)}: a method needs observe and predict")
    grid: Sequence[dict[str, float]] = getattr(learner, "grid", ())
    if len(grid) > BUDGET:
        raise ValueError(f"{name} has {len(grid)} settings to choose from; every row has at most {BUDGET}")
    takes = len(inspect.signature(learner).parameters) > 0

    def make(setup: Setup) -> Method:
        made = learner(setup) if takes else learner()
        return made if isinstance(made, Method) else Own(made)

    try:
        mark = inspect.getsource(learner)
    except (OSError, TypeError):  # typed into an interpreter, or made by a call
        mark = name
    about = (inspect.getdoc(learner) or name).splitlines()[0]
    return Spec(
        make,
        about,
        bodies=("dual", "generative"),
        grid=tuple(grid),
        inside=bool(getattr(learner, "needs_images", False)),
        mark=hashlib.sha256(mark.encode()).hexdigest()[:16],
    )


def load(entry: str) -> Callable[..., Any]:
    """ "module:Class", the module found as python finds it, in the folder that this runs in too.

    Raises:
        ValueError: where there is no such module or no such class in it.
    """
    module, _, name = entry.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise ValueError(
            f"no module {module!r} (for the method {entry!r}) here or where python looks"
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(getattr(found, name, None)):
        raise ValueError(f"the module {module} has no class {name!r}")
    return getattr(found, name)
