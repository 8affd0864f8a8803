"""One online step, and what the model and the learner would have answered before it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc import sources
from arr_coc.adapters.answers import token_rows
from arr_coc.adapters.checks import label_rows
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.perceived import Perceived
from arr_coc.answer import Answer
from arr_coc.learner import Learner

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel


@dataclass(frozen=True)
class Lesson:
    """What was seen in one step, and the answer from before it.

    Args:
        seen: the frozen pass.
        answer: of the learner, before the step; one row per sample, or per taught token (generative).
        labels: as given to `learn`.
    """

    seen: Perceived
    answer: Answer
    labels: Tensor


def teach(
    attached: "ArrCocModel", labels: Tensor, inputs: dict[str, Any], source: str | None = None
) -> Lesson:
    """One frozen forward pass and a local update; `ArrCocModel.learn` says the rest."""
    for name in attached.plastic:
        sources.check(attached.adapter(name), source)
    body = attached.body
    if isinstance(body, DualEncoderBody):
        body.check(inputs)
        rows = label_rows(labels, body.batch(inputs), inputs["input_ids"].shape[0])
        seen = attached.perceive(**inputs)
        taught = [seen.keys[int(row)] for row in rows]
        labels = rows
        # of the candidates' texts only the right ones came with a picture
        text = None if seen.text is None else seen.text[rows.to(seen.text.mask.device)]
    else:
        seen = attached.perceive(labels=labels, **inputs)
        taught, text = seen.keys, seen.text

    def step(learner: Learner) -> Answer:
        answer = learner.learn(seen.percept, taught, source)
        learner.read_on(text)
        return answer

    with torch.no_grad():
        answer = attached._teach(step)
        return Lesson(seen, answer, labels)


def own_scores(body: DualEncoderBody | GenerativeBody, output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scores that an output holds for labels: (B, K) over the candidates, and which is right, (B,); for
    a generative model one row per taught token, over the whole vocabulary."""
    if isinstance(body, DualEncoderBody):
        own = body.own_logits(output).float()
        return own, labels.to(own.device)
    sample, place, _, keys = body.taught(labels)
    own = output.logits[sample, place].float()
    return own, torch.tensor([int(key) for key in keys], device=own.device)


def fused_scores(
    attached: "ArrCocModel", seen: Perceived, answer: Answer, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """As `own_scores`, with what was learned mixed in as it stood when the answer was given."""
    with torch.no_grad():
        own, right = own_scores(attached.body, seen.output, labels)
        learner = attached.adapter(attached.plastic[0])  # whose answer it is
        if isinstance(attached.body, DualEncoderBody):
            rows = learner.readout.rows(seen.keys)
        else:
            rows = token_rows(learner.classes, own.shape[1], learner.readout.weight.device)
        rows = rows.masked_fill(rows >= answer.values.shape[1], -1)  # met only since then
        return learner.fuse(own, rows, answer), right
