"""Answers of a generative model: how they stand behind a prompt, and how they are found in what it wrote."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters.families import Family

IGNORE = -100  # as everywhere in transformers: nothing is taught here


def behind(inputs: Mapping[str, Any], answers: Tensor, family: Family) -> dict[str, Any]:
    """The inputs of a prompt with answers (B, A) behind it, every input with a value per position as long."""
    ids = inputs["input_ids"]
    width = ids.shape[1] - int(family.separated)
    longer = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape and not value.is_floating_point():
            kept = value[:, :width]
            longer[name] = torch.cat([kept, _further(name, kept, answers, family)], 1)
    return longer


def _further(name: str, value: Tensor, answers: Tensor, family: Family) -> Tensor:
    """What an input says of the answers' positions: attended to, and seeing what the last word saw."""
    if name == "input_ids":
        return answers
    last = value[:, -1:].expand(-1, answers.shape[1], *value.shape[2:])
    if name == "attention_mask":
        return torch.ones_like(last)
    if name == "token_type_ids":
        return torch.full_like(last, family.answer_type)
    return last if "mask" in name and name != family.marker else torch.zeros_like(last)


def labels_for(inputs: Mapping[str, Any], answers: Tensor, pad: int | None, family: Family) -> Tensor:
    """Labels of `behind`, (B, T + A): the answers, and IGNORE before them and on padding."""
    shown = answers if pad is None else answers.masked_fill(answers == pad, IGNORE)
    before = inputs["input_ids"].shape[1] - int(family.separated)
    return torch.cat([shown.new_full((len(shown), before), IGNORE), shown], 1)


def new_tokens(written: Tensor, ids: Tensor, family: Family) -> Tensor:
    """What `generate` added to a prompt (B, T); some models give the prompt back with it, some do not."""
    width = ids.shape[1] - int(family.separated)
    # the first token is left out: some put another one there
    whole = written.shape[1] >= width and torch.equal(written[:, 1:width], ids[:, 1:width])
    return written[:, width:] if whole else written


def token_rows(classes: list[str], vocabulary: int, device: Any = None) -> Tensor:
    """The row of every token id among the classes, -1 where it was never an answer, (vocabulary,)."""
    rows = torch.full((vocabulary,), -1, device=device)
    rows[[int(key) for key in classes]] = torch.arange(len(classes), device=device)
    return rows
