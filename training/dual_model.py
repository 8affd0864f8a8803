"""The built-in dual encoder before training: tokenizer, processor, and a CLIPModel with a start worth having.

96 px at patch 8 gives 12 x 12 patch tokens. The text side is small; its byte-level BPE splits words it
never met ("dax") into pieces instead of dropping them.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer, trainers
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
LENGTH = 32  # text tokens
MEAN = STD = 0.5


def tokenizer(texts: Iterable[str], vocabulary: int = 8000) -> CLIPTokenizer:
    """CLIP's own tokenizer with merges learned from these texts. Single characters are in, so nothing is
    unknown."""
    base = CLIPTokenizer(bos_token=BOS, eos_token=EOS, pad_token=PAD, unk_token=EOS)
    raw: Tokenizer = base.backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        special_tokens=[BOS, EOS, PAD],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    characters = [chr(c) for c in range(33, 127)]
    pairs = [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "abcdefghijklmnopqrstuvwxyz"]
    raw.train_from_iterator([*sorted(texts), *characters, *pairs], trainer)
    import json

    model = json.loads(raw.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(m) for m in model["merges"]],  # type: ignore[misc]
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=EOS,
        model_max_length=LENGTH,
    )


def processor(words: CLIPTokenizer) -> CLIPProcessor:
    """96 px, no crop, (x / 255 - .5) / .5; with the tokenizer."""
    size = {"height": 96, "width": 96}
    pictures = CLIPImageProcessor(
        size=size, do_center_crop=False, crop_size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3
    )
    return CLIPProcessor(pictures, words)


def build(words: CLIPTokenizer, width: int = 192, layers: int = 6, heads: int = 3) -> CLIPModel:
    """An untrained CLIPModel: vision width x layers, text 192 x 4, shared space of 256 dimensions."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(words),
            "hidden_size": 192,
            "intermediate_size": 768,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": LENGTH,
            "hidden_act": "gelu",
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": 96,
            "patch_size": 8,
            "hidden_act": "gelu",
        },
        projection_dim=256,
        logit_scale_init_value=math.log(12.0),
    )
    return CLIPModel._from_config(config, attn_implementation="eager")


@torch.no_grad()
def start(model: CLIPModel, scenes: np.ndarray) -> None:
    """A better start than noise: whitening patch filters, and sine-cosine positions on the 12 x 12 grid.

    Args:
        scenes: (N, 96, 96, 3) uint8 sample, from whose patches the principal components are taken.
    """
    embeddings = model.vision_model.embeddings
    x = torch.from_numpy(scenes).permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = torch.nn.functional.unfold(x, 8, stride=8).transpose(1, 2).reshape(-1, 192)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    filters = vectors / (values + 3e-3).sqrt()  # (192, 192), columns; the ridge keeps noise small
    filters = filters.T.flip(0)[: embeddings.patch_embedding.out_channels]
    filters *= 0.5 / filters.matmul(patches.T[:, :4000]).std()
    embeddings.patch_embedding.weight[: len(filters)] = filters.reshape(-1, 3, 8, 8).float()
    width = embeddings.embed_dim
    angles = torch.arange(12)[:, None] * torch.exp(-torch.linspace(0, 3, width // 4))  # (12, width / 4)
    line = torch.cat([angles.sin(), angles.cos()], 1)  # (12, width / 2)
    grid = torch.cat([line[:, None].expand(12, 12, -1), line[None].expand(12, 12, -1)], 2).reshape(144, -1)
    embeddings.position_embedding.weight[1:] = 0.3 * grid
