"""PEFT LoRA + AdamW, one pass: the way most people would let the model learn.

r = 8 on q_proj and v_proj, alpha 16, no dropout. Dual encoder: in the vision tower; cross-entropy of the
scaled cosines over the candidate texts of the sample; the texts are embedded once by the frozen text tower.
Where a sample has a context, every candidate is said with it: "a photo of a red sandal". Generative: in the
language model; cross-entropy of the answer's tokens. Both run on images, so they cost a forward and a
backward pass through the model at every step and a forward pass at every probe.
"""

import copy
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.methods_features import Answered, joined_logits
from arr_coc.eval.percepts import Batch, TextBook
from arr_coc.eval.percepts_words import WordBatch, said
from arr_coc.eval.trained import Seen, Strategy, Trained


def with_lora(model: Any, rank: int = 8, tower: str = "vision_model") -> Any:
    """A copy of the model with LoRA on q_proj and v_proj of one of its towers; nothing else trains."""
    from peft import LoraConfig, get_peft_model

    targets = rf".*{tower}.*\.(q_proj|v_proj)"
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise ValueError(f"{type(model).__name__} has no q_proj and v_proj in a {tower}")
    bare = copy.deepcopy(model)
    return get_peft_model(bare, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


@dataclass(frozen=True)
class Shown:
    """One sample: its picture, what is asked of it, and the answer; `row` is the answer's among the classes
    of a dual encoder."""

    image: Any
    asked: str | None
    answer: str
    row: int = -1

    @property
    def bytes(self) -> int:
        """Of the picture at eight bits a channel, and of the texts."""
        wide, high = self.image.size
        return wide * high * len(self.image.getbands()) + len(self.asked or "") + len(self.answer)


class _Adapted(Trained):
    """A copy of the model with LoRA, and AdamW over it.

    Args:
        model: the bare model; it is copied.
        rate: of AdamW, its other settings as torch has them.
        rank: r.
        seed: of the adapter's start.
        strategy: None for naive fine-tuning.
    """

    needs_images = True
    tower: str

    def __init__(
        self,
        model: Any,
        rate: float = 1e-3,
        rank: int = 8,
        seed: int = 0,
        strategy: Strategy | None = None,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = with_lora(model, rank, self.tower)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        super().__init__(trained, torch.optim.AdamW(trained, lr=rate), strategy)

    def example_bytes(self, example: Shown) -> int:
        return example.bytes

    @staticmethod
    def _images(batch: Any) -> list[Any]:
        if batch.images is None:
            raise ValueError("LoRA looks for itself: batches need their images")
        return batch.images


class Lora(_Adapted):
    """LoRA in a dual encoder's vision tower.

    Args:
        texts: embeds with the frozen text tower.
        candidates: the stream's classes, for the cross-entropy.
        further: see `_Adapted`.
    """

    tower = "vision_model"

    def __init__(self, model: Any, texts: TextBook, candidates: list[str], **further: Any) -> None:
        self.texts, self.candidates = texts, candidates
        super().__init__(model, **further)

    def _scores(self, images: list[Any], contexts: list[str | None], texts: list[str]) -> Tensor:
        shown = self.texts.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixel_values=shown)
        features = features if isinstance(features, Tensor) else features.pooler_output
        return joined_logits(self.texts, contexts, torch.nn.functional.normalize(features, dim=1), texts)

    def examples(self, batch: Batch) -> list[Shown]:
        row = self.candidates.index
        told = zip(self._images(batch), batch.contexts, batch.labels, strict=True)
        return [Shown(image, context, label, row(label)) for image, context, label in told]

    def look(self, examples: list[Shown]) -> Seen:
        scores = self._scores([e.image for e in examples], [e.asked for e in examples], self.candidates)
        return Seen(scores, torch.tensor([e.row for e in examples]), torch.arange(len(examples)))

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        self.model.eval()
        with torch.no_grad():
            scores = self._scores(self._images(batch), batch.contexts, texts)
        self.model.train()
        return Answered(scores)


class LoraWords(_Adapted):
    """LoRA in a generative model's language model.

    Args:
        processor: of the model.
        further: see `_Adapted`.
    """

    tower = "language_model"

    def __init__(self, model: Any, processor: Any, **further: Any) -> None:
        self.processor = processor
        super().__init__(model, **further)

    def examples(self, batch: WordBatch) -> list[Shown]:
        told = zip(self._images(batch), batch.questions, batch.answers, strict=True)
        return [Shown(image, question, answer) for image, question, answer in told]

    def look(self, examples: list[Shown]) -> Seen:
        """Rows where the next token is taught."""
        images, asked = [e.image for e in examples], [e.asked or "" for e in examples]
        inputs, labels = said(self.processor, images, asked, [e.answer for e in examples])
        taught = labels[:, 1:] != -100
        whose = torch.arange(len(examples)).repeat_interleave(taught.sum(1))
        return Seen(self.model(**inputs).logits[:, :-1][taught], labels[:, 1:][taught], whose)

    def answer(self, batch: WordBatch, texts: list[str]) -> Answered:  # type: ignore[override]
        self.model.eval()
        with torch.no_grad():
            scores = self.look(self.examples(batch)).scores
        self.model.train()
        return Answered(scores[:, torch.tensor([int(t) for t in texts])])
