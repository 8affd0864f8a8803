"""Collators: rows of a data set as the inputs and labels that `learn` and a Trainer take."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters import texts
from arr_coc.adapters.answers import IGNORE, behind, labels_for, new_tokens
from arr_coc.adapters.families import family_of

Row = Mapping[str, Any]


class ChoiceCollator:
    """Rows with a picture and which of some texts is right, for a dual encoder.

    A batch has what the processor makes of the pictures, `input_ids` and `attention_mask` of the candidates,
    (C, T), and `labels` (B,), rows of the candidates.

    Args:
        processor, model: as they were loaded (or the attached model).
        candidates: the texts to choose from, the same for every batch.
        image, label: columns. A label is one of the candidates, or its place among them.
        context: the column with the text that says what relevance is asked for; None: nothing is asked.
        said: the candidate that a label stands for, where labels are names of their own.

    Raises:
        ValueError: for candidates that are none or repeat; when called, for a label that is none of them.
    """

    def __init__(
        self,
        processor: Any,
        model: Any,
        candidates: Sequence[str],
        image: str = "image",
        label: str = "label",
        context: str | None = None,
        said: Mapping[str, str] | None = None,
    ) -> None:
        if not candidates or len(set(candidates)) < len(candidates):
            raise ValueError(f"candidates={list(candidates)!r}: at least one is needed, and none twice")
        self.processor, self.model, self.candidates = processor, model, list(candidates)
        self.image, self.label, self.context = image, label, context
        self._place = {text: place for place, text in enumerate(self.candidates)}
        self._place |= {name: self._place[text] for name, text in (said or {}).items()}
        self._candidates = texts.tokenized(processor, self.candidates, model)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        labels = torch.tensor([self._row(row[self.label]) for row in rows])
        images = [row[self.image] for row in rows]
        batch = _cast(self.processor(images=images, return_tensors="pt"), self.model)
        if self.context is not None:
            asked = [row[self.context] for row in rows]
            batch |= texts.context(self.processor, asked, self.model)
        return {**batch, **self._candidates, "labels": labels}

    def _row(self, label: Any) -> int:
        if isinstance(label, str) and label in self._place:
            return self._place[label]
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(self.candidates):
            return label
        raise ValueError(f"label {label!r} is none of the {len(self.candidates)} candidates, nor a place")


class AnswerCollator:
    """Rows with a picture, a question and its answer, for a generative model.

    A batch is the prompts with the answers' tokens and the end behind them, and `labels` (B, T), -100 outside
    the answers; for an encoder-decoder `labels` (B, A) stand alone. Answers are tokenized by themselves, as
    `generate` writes them: behind a whole prompt.

    Args:
        processor, model: as they were loaded (or the attached model).
        prompt: a text with {question} and the image token; None: the processor's chat template.
        image, question, answer: columns. `image` may hold several pictures.

    Raises:
        ValueError: without a prompt where the processor has no chat template.
    """

    def __init__(
        self,
        processor: Any,
        model: Any,
        prompt: str | None = None,
        image: str = "image",
        question: str = "question",
        answer: str = "answer",
    ) -> None:
        if prompt is None and not getattr(processor, "chat_template", None):
            token = getattr(processor, "image_token", "<image>")
            raise ValueError(
                f"{type(processor).__name__} has no chat template: give a prompt, such as "
                f"{f'{token} {{question}}'!r}"
            )
        if prompt is not None and "{question}" not in prompt:
            raise ValueError(f"prompt={prompt!r} has no {{question}}")
        self.processor, self.model, self.tokenizer = processor, model, processor.tokenizer
        self.family, self.whole = family_of(model), bool(model.config.is_encoder_decoder)
        self.prompt, self.image, self.question, self.answer = prompt, image, question, answer

    def prompts(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The inputs of `generate`, (B, T), padded on the left."""
        shown = [_several(row[self.image]) for row in rows]
        asked = [self._said(row[self.question], len(s)) for row, s in zip(rows, shown, strict=True)]
        made = self.processor(
            text=asked, images=shown, return_tensors="pt", padding=True, padding_side="left"
        )
        return _cast(made, self.model)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        inputs = self.prompts(rows)
        end = [self.tokenizer.eos_token_id]
        said = [self.tokenizer(row[self.answer], add_special_tokens=False)["input_ids"] + end for row in rows]
        taught = torch.full((len(rows), max(map(len, said))), IGNORE)
        for place, ids in enumerate(said):
            taught[place, : len(ids)] = torch.tensor(ids)
        if self.whole:
            return {**inputs, "labels": taught}
        pad = self.tokenizer.pad_token_id
        filled = taught.masked_fill(taught == IGNORE, end[0] if pad is None else pad)
        labels = labels_for(inputs, taught, None, self.family)
        return {**behind(inputs, filled, self.family), "labels": labels}

    def answers(self, model: Any, rows: Sequence[Row], **options: Any) -> list[str]:
        """What a model writes for these rows, decoded greedily; `options` are those of `generate`."""
        inputs = {name: value.to(model.device) for name, value in self.prompts(rows).items()}
        written = model.generate(**inputs, **{"do_sample": False, "num_beams": 1, **options})
        new = written if self.whole else new_tokens(written, inputs["input_ids"], self.family)
        return [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def _said(self, question: str, pictures: int) -> str:
        if self.prompt is not None:
            return self.prompt.format(question=question)
        content: list[dict[str, str]] = [{"type": "image"}] * pictures
        turns = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        text: str = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        return text


def _several(shown: Any) -> list[Any]:
    return list(shown) if isinstance(shown, list | tuple) else [shown]


def _cast(made: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Pixels in the dtype of the model: not every tower casts them itself."""
    dtype = getattr(model, "dtype", None) or torch.get_default_dtype()
    return {n: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t for n, t in made.items()}
