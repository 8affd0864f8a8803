"""Writing: the model's own `generate`, answered with what was learned, over all of a picture or what matters
of it."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.keeping import Keep, Keeping
from arr_coc.adapters.shortening import Rows, Shortening
from arr_coc.adapters.steer import steered

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel


def generate(
    attached: "ArrCocModel",
    args: tuple[Any, ...],
    inputs: dict[str, Any],
    keep_tokens: Keep | None = None,
    mix: float | None = None,
    explore: bool = False,
) -> Any:
    """See `ArrCocModel.generate`.

    Args:
        explore: draw the mix, for a reward to come.
    """
    body = attached.body
    if isinstance(body, DualEncoderBody):
        raise TypeError(f"{type(attached.model).__name__} scores texts and cannot generate any")
    if keep_tokens is None and mix is not None:
        raise ValueError(f"mix={mix!r} is of kept tokens, and keep_tokens is None")
    asked = inputs.get("input_ids", args[0] if args else inputs.get("inputs"))
    prompt = asked if isinstance(asked, Tensor) else inputs.get("inputs_embeds")
    shown = {**inputs, "input_ids": asked}
    attached.kept = None
    keeping = None if keep_tokens is None else Keeping(attached, shown, keep_tokens, mix, explore)
    body.end()
    with torch.inference_mode(), steered(attached, shown):
        body.begin(inputs, prompt.shape[1] if isinstance(prompt, Tensor) else 0)
        try:
            with attached._call(), shortened(attached, keeping):
                return attached.model.generate(*args, **inputs)
        finally:
            body.end()


@contextlib.contextmanager
def shortened(attached: "ArrCocModel", keeping: Keeping | None) -> Iterator[None]:
    """Inside, the language model's passes see the kept rows only; afterwards, whatever happens, all."""
    if keeping is None or keeping.everything:
        yield
        return
    body, steering, capture = keeping.body, attached._steering, attached._capture

    def choose(given: Any) -> Tensor:
        listens, capture.listening = capture.listening, False
        try:
            with contextlib.nullcontext() if steering is None else steering.during(None):
                return keeping.choose(given)
        finally:
            capture.listening = listens

    def begun(rows: Rows) -> None:
        if body.short is None and steering is not None:
            steering.shorten(rows)
        body.short, attached.kept = rows, keeping.kept

    shortening = Shortening(body.tower.module, choose, type(attached.model).__name__, begun)
    try:
        yield
    finally:
        shortening.remove()
        body.short = None
