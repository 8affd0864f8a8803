"""Models of known shapes with random weights, and inputs for them: what the bench measures costs on."""

from typing import Any

import torch
from torch import Tensor

TEXTS = 10  # candidates of a dual encoder
QUESTION, ANSWER = 24, 2  # tokens, of a generative model
DUAL, GENERATIVE = ("B/32", "B/16", "tiny"), ("llava", "llava-tiny")

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
_SMALL_EYE = {**_SMALL, "image_size": 32, "patch_size": 8}


def model(shape: str) -> Any:
    """A model in eval mode.

    Args:
        shape: "B/32" or "B/16": a `CLIPModel` at 224 px. "llava": a CLIP B/32 tower and a Llama of 8 layers,
            768 wide, with 32,000 words. "tiny", "llava-tiny": for a try.

    Raises:
        ValueError: for another shape.
    """
    if shape not in (*DUAL, *GENERATIVE):
        raise ValueError(f"shape={shape!r}: possible are {', '.join((*DUAL, *GENERATIVE))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (_clip(shape) if shape in DUAL else _llava(shape)).eval()


def _clip(shape: str) -> Any:
    from transformers import CLIPConfig, CLIPModel

    configs: dict[str, dict[str, Any]] = {
        "B/32": {},
        "B/16": {"vision_config": {"patch_size": 16}},
        "tiny": {
            "vision_config": _SMALL_EYE,
            "text_config": {**_SMALL, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 99},
            "projection_dim": 16,
        },
    }
    return CLIPModel(CLIPConfig(**configs[shape]))


def _llava(shape: str) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    wide = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 12}
    eye = {} if shape == "llava" else _SMALL_EYE
    words = {**wide, "vocab_size": 32_000} if shape == "llava" else {**_SMALL, "vocab_size": 100}
    patches = (eye.get("image_size", 224) // eye.get("patch_size", 32)) ** 2
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **eye},
        text_config={"model_type": "llama", "pad_token_id": 0, **words},
        image_token_index=words["vocab_size"] - 1,
        image_seq_length=patches,
        vision_feature_layer=-2,
    )
    made: Any = LlavaForConditionalGeneration(config)
    made.generation_config.pad_token_id = 0
    return made


def inputs(made: Any, batch: int, texts: int = TEXTS) -> dict[str, Tensor]:
    """Noise and token ids: `pixel_values` (batch, 3, S, S) and, for a dual encoder, candidates (texts, 8), or
    for a generative model prompts (batch, N + QUESTION)."""
    draw = torch.Generator().manual_seed(1)
    eye, words = made.config.vision_config, made.config.get_text_config()
    pixels = torch.randn(batch, 3, eye.image_size, eye.image_size, generator=draw)
    if made.config.model_type == "clip":
        ids = torch.randint(2, words.vocab_size - 2, (texts, 8), generator=draw)
        ids[:, -1] = words.eos_token_id
    else:
        asked = torch.randint(3, words.vocab_size - 2, (batch, QUESTION), generator=draw)
        image = torch.full((batch, made.config.image_seq_length), made.config.image_token_id)
        ids = torch.cat([asked[:, :1], image, asked[:, 1:]], 1)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def lesson(made: Any, batch: int) -> dict[str, Tensor]:
    """`inputs` with `labels`: rows of the candidates, or answers of ANSWER tokens behind the prompts."""
    given = inputs(made, batch)
    if made.config.model_type == "clip":
        return {**given, "labels": torch.arange(batch) % TEXTS}
    answers = torch.arange(batch * ANSWER).view(batch, ANSWER) % 7 + 3
    ids = torch.cat([given["input_ids"], answers], 1)
    labels = torch.cat([torch.full_like(given["input_ids"], -100), answers], 1)
    return {**given, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
