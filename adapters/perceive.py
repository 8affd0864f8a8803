"""Perceiving: one frozen forward pass, with nothing answered and nothing learned."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.perceived import Perceived, ordinary
from arr_coc.adapters.steer import steered
from arr_coc.adapters.text_tokens import ordinary_text, texts
from arr_coc.percept import Percept

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel


def given_context(
    body: DualEncoderBody | GenerativeBody, ids: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor | None] | None:
    """The text that relevance is asked for, as it was given; None for none."""
    if ids is None:
        return None
    if not isinstance(body, DualEncoderBody):
        raise TypeError("a generative model's context is its prompt; context_ids is for dual encoders")
    if not isinstance(ids, Tensor):
        raise TypeError(f"context_ids is {type(ids).__name__}; a tensor (B, T) or (T,) is needed")
    return ids, mask


def perceive(
    attached: "ArrCocModel",
    context_ids: Tensor | None,
    context_attention_mask: Tensor | None,
    labels: Tensor | None,
    inputs: dict[str, Any],
) -> Perceived:
    """See `ArrCocModel.perceive`."""
    body = attached.body
    body.check(inputs)
    given = given_context(body, context_ids, context_attention_mask)
    if isinstance(body, GenerativeBody):
        labels = body.check_labels(labels, inputs.get("input_ids"))
        inputs = body.with_answers(inputs, labels)
    before = getattr(body, "now", None)  # a prompt that is being decoded stays what it was
    # what steers this pass may take one of its own, which has to be over before this one begins
    with (
        steered(attached, inputs, context_ids, context_attention_mask, labels),
        attached._call(silent=True, labels=labels),
    ):
        try:
            with torch.inference_mode():
                embedded = attached._context_embedding(given, inputs)
                output = attached.model(**inputs)
                percept, keys = _read(attached, inputs, output, embedded, labels)
                heard = texts(attached, inputs, labels)
            # inference tensors cannot enter a graph, and the backprop rule makes one of the ladder
            percept, text = ordinary(percept), None if heard is None else ordinary_text(heard.text)
        finally:
            attached._capture.clear()
            if isinstance(body, GenerativeBody):
                body.end(before)
    if not bool(percept.finite().all()):
        bad = (~percept.finite()).nonzero().flatten().tolist()
        raise ValueError(
            f"the model's activations are not finite for entries {bad}; nothing was learned from them"
        )
    return Perceived(percept, output, keys, text)


def _read(
    attached: "ArrCocModel",
    inputs: dict[str, Any],
    output: Any,
    context: Tensor | None,
    labels: Tensor | None,
) -> tuple[Percept, list[str]]:
    body, capture = attached.body, attached._capture
    if isinstance(body, DualEncoderBody):
        keys = body.keys(inputs["input_ids"], inputs.get("attention_mask"))
        return body.percept(capture, output, context, inputs), keys
    assert labels is not None
    seen = body.look(capture, labels)
    if seen is None:
        raise ValueError("no visual tokens were found in this pass: the inputs show no picture")
    sample, place, row, keys = body.taught(labels)
    return body.percept(capture, seen, sample, place, row), keys
