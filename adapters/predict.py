"""The plain-Python way in: pictures and texts, labels and maps out."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc.adapters import texts as texts_of
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.offloaded import device_of
from arr_coc.adapters.perceived import Prediction

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel


def predict(
    attached: "ArrCocModel",
    images: Any,
    texts: list[str],
    context: str | list[str] | None = None,
    templates: tuple[str, ...] = ("{}",),
) -> list[Prediction]:
    """Which of the texts fits each image best, given what the context asks for.

    Args:
        attached: a dual encoder, attached with a processor.
        images: a PIL image or a list of them.
        texts: the candidates; the model's own scores are averaged over the templates, and the learner knows a
            text by the first of them.
        context: one text for all images or one per image.

    Raises:
        TypeError: for a generative model.
        ValueError: without a processor, images, texts or an active adapter.
    """
    body, model, processor = attached.body, attached.model, attached.processor
    if not isinstance(body, DualEncoderBody):
        raise TypeError("predict scores texts and needs a dual encoder; use generate")
    if processor is None:
        raise ValueError("predict needs a processor: attach(model, config, processor=...)")
    answering = attached.who_answers()
    images = list(images) if isinstance(images, list | tuple) else [images]
    if not images or not texts or not templates:
        raise ValueError(
            f"{len(images)} images, {len(texts)} texts and {len(templates)} templates were given; "
            "at least one of each is needed"
        )

    device = device_of(model)

    def placed(made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(device) for name, tensor in made.items()}

    shown = placed(processor(images=images, return_tensors="pt"))
    asked = [context] if isinstance(context, str) else context
    extra = {} if asked is None else placed(texts_of.context(processor, asked, model))
    prompts = [placed(texts_of.tokenized(processor, [t.format(x) for x in texts], model)) for t in templates]
    seen = attached.perceive(**shown, **prompts[0], **extra)
    own = [body.own_logits(seen.output).clone()]
    own += [body.own_logits(attached.perceive(**shown, **p, **extra).output) for p in prompts[1:]]
    with torch.no_grad():
        answer = answering.answer(seen.percept)
        fused = answering.fuse(torch.stack(own).mean(0), seen.keys, answer)
        told = answering.probabilities(fused.float(), seen.keys, answer)
    return [
        Prediction(texts[int(best)], dict(zip(texts, p.tolist(), strict=True)), r)
        for best, p, r in zip(fused.argmax(1), told, answer.relevance, strict=True)
    ]
