"""Each sample of a batch beside itself alone: what the others show, or how they are padded, says nothing of
it.

Compared are the model's adapted scores, relevance, surprise, what a reward would teach (phi, the direction of
U and the rungs' gates) and what a label did teach. The samples have to differ, or a mix-up would not show; so
U is random meanwhile, and relevance another one for every picture and question.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters.answers import behind, labels_for
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.perceived import Perceived

SAMPLES = 2
SHORTER = 2  # words that the second sample lacks where prompts are padded
TOLERANCE = 1e-3
_LEFT = ("phi", "scene", "context", "direction", "gates", "states")
Inputs = dict[str, Tensor]


def scores(output: Any) -> Tensor:
    """The logits of a dual encoder's or a generative model's output."""
    names = ("logits_per_image", "logits_per_video", "logits")
    return next(getattr(output, n) for n in names if getattr(output, n, None) is not None)


def of_sample(attached: ArrCocModel, inputs: Inputs, b: int) -> Inputs:
    """The inputs of one of the samples, whose pictures are of one size: the candidate texts stay whole."""
    shared = () if isinstance(attached.body, GenerativeBody) else ("input_ids", "attention_mask")
    mine = {}
    for name, value in inputs.items():
        side = 0 if len(value) % SAMPLES == 0 else -1  # MiniCPM lays all patches side by side in one row
        mine[name] = value if name in shared else value.chunk(SAMPLES, side)[b]
    if "image_token_pooling" in mine:  # Molmo counts its patches over all pictures
        mine["image_token_pooling"] = mine["image_token_pooling"] - mine["image_token_pooling"].min()
    return mine


def padded(attached: ArrCocModel, inputs: Inputs) -> tuple[Inputs, list[Inputs]] | None:
    """The same prompts, the second without its last words and padded in front; and each alone, unpadded. None
    where there is no prompt, or nothing that tells padding."""
    ids = inputs.get("input_ids")
    if not isinstance(attached.body, GenerativeBody) or ids is None or "attention_mask" not in inputs:
        return None
    pad = getattr(attached.model.config.get_text_config(decoder=True), "pad_token_id", None) or 0
    both, alone = dict(inputs), [of_sample(attached, inputs, b) for b in range(SAMPLES)]
    for name, value in inputs.items():
        if value.shape[:2] == ids.shape and not value.is_floating_point():
            kept = value[1:, :-SHORTER]
            front = torch.full_like(value[1:, :SHORTER], pad if name == "input_ids" else 0)
            both[name] = torch.cat([value[:1], torch.cat([front, kept], 1)])
            alone[1][name] = kept
    return both, alone


def with_context(attached: ArrCocModel, inputs: Inputs) -> Inputs:
    """The inputs, with a text for each sample that says what relevance is asked for, where one can be
    given."""
    if isinstance(attached.body, GenerativeBody):
        return inputs
    names = {"input_ids": "context_ids", "attention_mask": "context_attention_mask"}
    return inputs | {new: inputs[old][:SAMPLES] for old, new in names.items() if old in inputs}


def lesson(attached: ArrCocModel, inputs: Inputs, answers: Tensor) -> tuple[Inputs, Tensor]:
    """The inputs with answers (B,) behind them, where the model writes, and the labels that teach them."""
    if not isinstance(attached.body, GenerativeBody):
        return inputs, answers
    column = answers.unsqueeze(1)
    if attached.body.encoder_decoder:
        return inputs, column
    family = attached.body.family
    return behind(inputs, column, family), labels_for(inputs, column, None, family)


@contextmanager
def telling(attached: ArrCocModel) -> Iterator[None]:
    """Inside, U is random; then it is what it was."""
    weight = attached.learner.relevance_weight
    before, draw = weight.clone(), torch.Generator().manual_seed(0)
    weight.copy_(torch.randn(weight.shape, generator=draw))
    try:
        yield
    finally:
        weight.copy_(before)


def compared(attached: ArrCocModel, inputs: Inputs, answers: Tensor) -> tuple[str, dict[str, str]]:
    """What differs between a sample of a batch and the same one alone, "" for nothing; and of each kind of
    batch "yes", or why there is nothing to compare.

    Args:
        inputs: of two different samples.
        answers: what they are taught, (2,): token ids, or rows among the candidates.
    """
    inputs = with_context(attached, inputs)
    kinds = {"batch": (inputs, [of_sample(attached, inputs, b) for b in range(SAMPLES)])}
    short, told = padded(attached, inputs), {}
    if short is not None:
        kinds["padded"] = short
    with telling(attached):
        for kind, (both, alone) in kinds.items():
            told[kind] = _no_measure(attached, both, alone) or "yes"
            if told[kind] == "yes":
                differs = _answered(attached, both, alone) or _taught(attached, both, alone, answers)
                if differs:
                    return f"{differs} ({kind})", told
    return "", told


def _no_measure(attached: ArrCocModel, both: Inputs, alone: list[Inputs]) -> str:
    """Why the bare model is none: it cannot run on one sample, or on padding, or its own scores differ."""
    with attached.disable():
        try:
            together = scores(attached(**both))
            each = [scores(attached(**one)) for one in alone]
        except Exception as error:  # the bare model's own failure, whatever it is
            return f"the bare model cannot: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    same = all(_near(_last(together[b]), _last(one[0])) for b, one in enumerate(each))
    return "" if same else "the bare model's own scores differ"


def _answered(attached: ArrCocModel, both: Inputs, alone: list[Inputs]) -> str:
    together = attached(**both)
    if bool((together.relevance[0] - together.relevance[1]).abs().max() < 1e-3):
        return "two different samples have the same relevance"
    for b, one in enumerate(alone):
        output = attached(**one)
        found = {
            "scores": (_last(scores(together)[b]), _last(scores(output)[0])),
            "relevance": (together.relevance[b], output.relevance[0]),
            "surprise": (together.surprise[b], output.surprise[0]),
        }
        for name, (mine, its) in found.items():
            if not _near(mine, its):
                return f"the {name} of sample {b} differ from its own alone"
    return ""


def _taught(attached: ArrCocModel, both: Inputs, alone: list[Inputs], answers: Tensor) -> str:
    """The same of what a reward would teach, sample by sample, and of what labels do teach, one by one."""

    def perceived(inputs: Inputs, answers: Tensor) -> Perceived:
        given, labels = lesson(attached, inputs, answers)
        if isinstance(attached.body, GenerativeBody):
            return attached.perceive(labels=labels, **given)
        return attached.perceive(**given)

    writes = isinstance(attached.body, GenerativeBody)
    together, batch = copy.deepcopy(attached.learner), perceived(both, answers)
    keys = batch.keys if writes else [batch.keys[int(a)] for a in answers]
    in_turn, places = copy.deepcopy(together), torch.arange(SAMPLES)
    _, left = together.act(batch.percept, keys, places)
    # nothing is asked: else the second sample would meet another U than in the batch
    together.learn(replace(batch.percept, asked="image"), keys)
    for b, one in enumerate(alone):
        seen = perceived(one, answers[b : b + 1])
        _, (mine,) = copy.deepcopy(attached.learner).act(seen.percept, keys, places[b : b + 1])
        for name in _LEFT:
            if not _near(getattr(left[b], name), getattr(mine, name)):
                return f"the {name} that sample {b} leaves differs from its own alone"
        in_turn.learn(replace(seen.percept, asked="image"), keys[b : b + 1])
    for name in ("weight", "cross"):
        if not _near(getattr(together.readout, name), getattr(in_turn.readout, name)):
            return f"the readout's {name} differs from what the samples teach in turn"
    return ""


def _last(logits: Tensor) -> Tensor:
    """Of one sample: over the candidates, (C,), or over the words at its last place, (T, V) -> (V,)."""
    return (logits[-1] if logits.dim() > 1 else logits).float()


def _near(one: Tensor, two: Tensor) -> bool:
    """Equal but for the rounding of a float32 pass over other shapes, as a share of their size."""
    size = max(float(two.abs().max()), 1e-3)
    return one.shape == two.shape and float((one - two).abs().max()) <= TOLERANCE * size
