"""Tiny configurations of the real architectures, and inputs for them."""

from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 16,
    "eos_token_id": 49,
    "bos_token_id": 48,
    "pad_token_id": 0,
}
IMAGE = 55


def dual(kind: str = "clip", attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=24))
    else:
        model = SiglipModel(SiglipConfig(text_config={**TEXT, "projection_size": 32}, vision_config=VISION))
    model.set_attn_implementation(attention)
    return model.eval()


def dual_inputs(batch: int = 3, texts: int = 5) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 48, (texts, 6), generator=draw)
    ids[:, -1] = 49
    return {
        "pixel_values": torch.randn(batch, 3, 32, 32, generator=draw),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def generative(attention: str = "sdpa", layers: int = 3) -> Any:
    torch.manual_seed(0)
    words = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 60,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    config = LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 24},
        text_config=words,
        image_token_index=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    model.generation_config.pad_token_id = 0
    return model.eval()


def generative_inputs(batch: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    prompt = torch.randint(3, 50, (batch, 4), generator=draw)
    ids = torch.cat([torch.ones(batch, 1).long(), torch.full((batch, 16), IMAGE), prompt], 1)
    pixels = torch.randn(batch, 3, 32, 32, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def answered(inputs: dict[str, torch.Tensor], answers: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs with answers (B, T) behind them, taught as labels."""
    ids = torch.cat([inputs["input_ids"], answers], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answers], 1)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
