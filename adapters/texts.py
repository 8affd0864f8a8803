"""Texts as a dual encoder's tokens: candidates and contexts."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from arr_coc.adapters.families import family_of


def tokenized(processor: Any, texts: Sequence[str], model: Any) -> dict[str, Tensor]:
    """`input_ids` (C, T) and, where the tokenizer makes one, `attention_mask` (C, T), as the model was taught
    to read texts: padded to the longest of them, or to its full length where padding is read as well."""
    tokenizer = getattr(processor, "tokenizer", processor)
    length: dict[str, Any] = {"padding": True}
    if family_of(model).padded:
        text = model.config.get_text_config()
        length = {"padding": "max_length", "max_length": text.max_position_embeddings}
    made = tokenizer(list(texts), return_tensors="pt", truncation=True, **length)
    return {name: made[name] for name in ("input_ids", "attention_mask") if name in made}


def context(processor: Any, texts: Sequence[str], model: Any) -> dict[str, Tensor]:
    """The same texts as `context_ids` and `context_attention_mask`: what relevance is asked for."""
    made = tokenized(processor, texts, model)
    return {f"context_{name.removeprefix('input_')}": tensor for name, tensor in made.items()}
