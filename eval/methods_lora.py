"""PEFT LoRA + AdamW, one pass: the way most people would let the model learn.

r = 8 on q_proj and v_proj of the vision tower, alpha 16, no dropout; cross-entropy of the scaled cosines over
the candidate texts of the sample; the texts are embedded once by the frozen text tower. Where a sample has a
context, every candidate is said with it: "a photo of a red sandal". Runs on images, so it costs a forward and
a backward pass through the tower at every step and a forward pass at every probe.
"""

import copy
import re
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.methods_features import Answered, Method, joined_logits
from arr_coc.eval.percepts import Batch, TextBook

TARGETS = r".*vision_model.*\.(q_proj|v_proj)"


def with_lora(model: Any, rank: int = 8) -> Any:
    """A copy of the model with LoRA on q_proj and v_proj of its vision tower; nothing else trains."""
    from peft import LoraConfig, get_peft_model

    if not any(re.fullmatch(TARGETS, name) for name, _ in model.named_modules()):
        raise ValueError(f"{type(model).__name__} has no q_proj and v_proj in a vision_model")
    bare = copy.deepcopy(model)
    return get_peft_model(bare, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))


class Lora(Method):
    """See the module's docstring.

    Args:
        model: the bare model; it is copied.
        texts: embeds with the frozen text tower.
        candidates: the stream's classes, for the cross-entropy.
        rate: of AdamW, its other settings as torch has them.
        seed: of the adapter's start.
    """

    needs_images = True

    def __init__(
        self,
        model: Any,
        texts: TextBook,
        candidates: list[str],
        rate: float = 1e-3,
        rank: int = 8,
        seed: int = 0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = with_lora(model, rank)
        self.model.train()
        self.texts, self.candidates = texts, candidates
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate)

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
        loss = torch.nn.functional.cross_entropy(scores, rows)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        self.model.eval()
        with torch.no_grad():
            scores = joined_logits(batch, self._embed(batch.images), texts)
        self.model.train()
        return Answered(scores)

    def state_bytes(self) -> int:
        """The adapter and AdamW's two moments."""
        held = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in [*self.trained, *held])
