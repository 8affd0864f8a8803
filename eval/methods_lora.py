"""PEFT LoRA + AdamW, one pass: the way most people would let the model learn.

r = 8 on q_proj and v_proj, alpha 16, no dropout. Dual encoder: in the vision tower; cross-entropy of the
scaled cosines over the candidate texts of the sample; the texts are embedded once by the frozen text tower.
Where a sample has a context, every candidate is said with it: "a photo of a red sandal". Generative: in the
language model; cross-entropy of the answer's tokens. Both run on images, so they cost a forward and a
backward pass through the model at every step and a forward pass at every probe.
"""

import copy
import re
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.methods_features import Answered, Method, joined_logits
from arr_coc.eval.percepts import Batch, TextBook
from arr_coc.eval.percepts_words import WordBatch, said


def with_lora(model: Any, rank: int = 8, tower: str = "vision_model") -> Any:
    """A copy of the model with LoRA on q_proj and v_proj of one of its towers; nothing else trains."""
    from peft import LoraConfig, get_peft_model

    targets = rf".*{tower}.*\.(q_proj|v_proj)"
    if not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise ValueError(f"{type(model).__name__} has no q_proj and v_proj in a {tower}")
    bare = copy.deepcopy(model)
    return get_peft_model(bare, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))


def held_bytes(trained: list[Any], optimizer: torch.optim.Optimizer) -> int:
    """Of what is trained and of what its optimizer remembers."""
    held = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in [*trained, *held])


class _Adapted(Method):
    """A copy of the model with LoRA, and AdamW over it.

    Args:
        model: the bare model; it is copied.
        rate: of AdamW, its other settings as torch has them.
        rank: r.
        seed: of the adapter's start.
    """

    needs_images = True
    tower: str

    def __init__(self, model: Any, rate: float = 1e-3, rank: int = 8, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = with_lora(model, rank, self.tower)
        self.model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate)

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state_bytes(self) -> int:
        """The adapter and AdamW's two moments."""
        return held_bytes(self.trained, self.optimizer)


class Lora(_Adapted):
    """LoRA in a dual encoder's vision tower.

    Args:
        texts: embeds with the frozen text tower.
        candidates: the stream's classes, for the cross-entropy.
        further: see `_Adapted`.
    """

    tower = "vision_model"

    def __init__(self, model: Any, texts: TextBook, candidates: list[str], **further: Any) -> None:
        super().__init__(model, **further)
        self.texts, self.candidates = texts, candidates

    def _embed(self, images: list[Any] | None) -> Tensor:
        if images is None:
            raise ValueError("LoRA looks for itself: batches need their images")
        shown = self.texts.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixel_values=shown)
        features = features if isinstance(features, Tensor) else features.pooler_output
        return torch.nn.functional.normalize(features, dim=1)

    def observe(self, batch: Batch) -> None:
        scores = joined_logits(batch, self._embed(batch.images), self.candidates)
        rows = torch.tensor([self.candidates.index(x) for x in batch.labels])
        self._step(torch.nn.functional.cross_entropy(scores, rows))

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        self.model.eval()
        with torch.no_grad():
            scores = joined_logits(batch, self._embed(batch.images), texts)
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
        super().__init__(model, **further)
        self.processor = processor

    def _logits(self, batch: WordBatch) -> tuple[Tensor, Tensor]:
        """Logits where the next token is taught, (E, V), and those tokens, (E,)."""
        if batch.images is None:
            raise ValueError("LoRA looks for itself: batches need their images")
        inputs, labels = said(self.processor, batch.images, batch.questions, batch.answers)
        taught = labels[:, 1:] != -100
        return self.model(**inputs).logits[:, :-1][taught], labels[:, 1:][taught]

    def observe(self, batch: WordBatch) -> None:  # type: ignore[override]
        self._step(torch.nn.functional.cross_entropy(*self._logits(batch)))

    def answer(self, batch: WordBatch, texts: list[str]) -> Answered:  # type: ignore[override]
        self.model.eval()
        with torch.no_grad():
            scores, _ = self._logits(batch)
        self.model.train()
        return Answered(scores[:, torch.tensor([int(t) for t in texts])])
