"""Trains the built-in generative model on the dual encoder's tower; deterministic from --seed and --threads.

    python -m arr_coc.training.train_generative --out runs/generative
    cp runs/generative/final/* adapters/embedded/generative/

A third of the images are easy-VQA's (its train split, flipped and turned); the others are scenes with cued
questions. Three losses: on answer tokens; on where two middle layers look when they answer (`looking`); and
on what each cell shows (`naming`). The last two come from the scene's composition, as the captions do.
"""

import argparse
import math
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from arr_coc.adapters import embedded
from arr_coc.training import generative_model, questions, scenes
from arr_coc.training.questions import Composer, Turn

GRIDS, SHARES = (1, 2, 3), (0.1, 0.8, 0.1)


def pixels(images: list) -> Tensor:
    """96 px RGB images -> (B, 3, 96, 96), (x / 255 - .5) / .5 as the processor does."""
    stacked = torch.from_numpy(np.stack([np.asarray(i) for i in images]))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def answer_logits(
    model: LlavaForConditionalGeneration, pictures: Tensor, packed: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Logits (A, V) where the next token is taught, and those tokens (A,), in row order."""
    logits, wanted, _ = answer(model, pictures, packed)
    return logits, wanted


def answer(
    model: LlavaForConditionalGeneration, pictures: Tensor, packed: dict[str, Tensor], looks: bool = False
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """`answer_logits` and, with `looks`, each layer's attention (B, H, T, T)."""
    out = model.model(
        input_ids=packed["input_ids"],
        pixel_values=pictures,
        attention_mask=packed["attention_mask"].to(torch.bfloat16)
        if torch.is_autocast_enabled("cpu")
        else packed["attention_mask"],
        position_ids=packed["position_ids"],
        use_cache=False,
        output_attentions=looks,
    )
    taught = packed["labels"][:, 1:] != -100
    logits = model.lm_head(out.last_hidden_state[:, :-1][taught]).float()
    return logits, packed["labels"][:, 1:][taught], out.attentions or ()


def looking(
    attentions: tuple[Tensor, ...], packed: dict[str, Tensor], rows: list[list[Turn]], image: int
) -> Tensor:
    """-log of the attention that falls on the cells which tell the answer, mean over taught positions.

    In half of the heads of two middle layers: the first of them on `Turn.first`, the second on `Turn.cells`.
    Turns that no cell tells are left out.

    Args:
        attentions: every layer's, (B, H, T, T). image: the token id of `<image>`.
    """
    depth, heads = len(attentions) // 2, attentions[0].shape[1] // 2
    begin = int((packed["input_ids"][0] == image).nonzero()[0])
    row, place = (packed["labels"][:, 1:] != -100).nonzero(as_tuple=True)
    turn = packed["turn"][row, place + 1].tolist()
    asked = [rows[b][k - 1] for b, k in zip(row.tolist(), turn, strict=True)]
    told = torch.tensor([bool(t.cells) for t in asked])
    loss = torch.zeros(())
    for layer, name in ((depth - 1, "first"), (depth, "cells")):
        masks = np.stack([_tokens(t.grid, getattr(t, name)) for t in asked])
        seen = attentions[layer][row, :heads, place, begin : begin + masks.shape[1]].float()  # (A, H / 2, N)
        mass = (seen * torch.from_numpy(masks)[:, None]).sum(2).mean(1)  # (A,)
        if told.any():
            loss = loss - mass[told].clamp_min(1e-4).log().mean()
    return loss / 2


def naming(seen: Tensor, named: list[tuple[int, int, int, int]], table: Tensor) -> Tensor:
    """-log softmax(20 cos) of the right word given what the visual tokens of a cell are on average.

    It keeps a visual token where the word for it lies, and is the densest lesson that a scene has: every item
    of it is named, not only what is asked about.

    Args:
        seen: the projector's output, (B, 144, D). named: (image, grid, cell, token of the name).
        table: the word embeddings, (V, D).
    """
    if not named:
        return seen.new_zeros(())
    pictures, grids, cells, words = zip(*named, strict=True)
    masks = torch.from_numpy(np.stack([_tokens(g, (c,)) for g, c in zip(grids, cells, strict=True)]))
    mean = torch.bmm(masks[:, None].to(seen), seen[list(pictures)]).squeeze(1)  # (K, D), a multiple of it
    cosine = F.normalize(mean.float(), dim=1) @ F.normalize(table.float(), dim=1).T
    return F.cross_entropy(20 * cosine, torch.tensor(words))


@cache
def _tokens(grid: int, cells: tuple[int, ...]) -> np.ndarray:
    """(144,) float32: 1 for the tokens of these cells."""
    there = [scenes.cell_mask(grid, c).ravel() for c in cells]
    return np.any(there, axis=0).astype(np.float32) if there else np.zeros(scenes.TOKENS**2, np.float32)


@dataclass
class Batch:
    """Pictures (B, 3, 96, 96), the turns on each, and what is where: (image, grid, cell, name)."""

    pictures: Tensor
    rows: list[list[Turn]]
    named: list[tuple[int, int, int, str]]


class Batcher:
    """Batches of images and turns: `share` of them from easy-VQA, at most `most` turns on an image."""

    def __init__(self, seed: int, share: float = 0.35, most: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.composer = Composer(self.rng)
        self.images, self.turns = questions.easy_vqa("train")
        self.share, self.most = share, most

    def __call__(self, size: int) -> Batch:
        images, rows, named = [], [], []
        for i in range(size):
            if i < size * self.share:
                k = self.rng.integers(len(self.images))
                flipped = np.rot90(np.asarray(self.images[k]), int(self.rng.integers(4)))
                images.append(flipped[:, ::-1] if self.rng.random() < 0.5 else flipped)
                turns = self.turns[k]
            else:
                scene = self.composer.draw(int(self.rng.choice(GRIDS, p=SHARES)))
                images.append(np.asarray(scene.image))
                turns = scene.turns
                named += [(i, scene.grid, c, name) for c, name in enumerate(scene.names) if name]
            keep = self.rng.permutation(len(turns))[: self.most]
            rows.append([turns[j] for j in keep])
        return Batch(pixels(images), rows, named)


def save(model: LlavaForConditionalGeneration, processor, folder: Path) -> None:
    """float16 weights, configuration, tokenizer and processor, in save_pretrained form."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.config.dtype = torch.float16
    model.save_pretrained(folder, state_dict=state)
    processor.save_pretrained(folder)


def train(args: argparse.Namespace) -> None:
    """The whole run: model, data, steps, save."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    dual, dual_processor = embedded.load("dual", folder=args.dual)
    batcher = Batcher(args.seed)
    texts = {w for row in batcher.turns for t in row for w in (t.question, t.answer)}
    composer = Composer(np.random.default_rng([args.seed, 9]))
    for i in range(1500):
        for t in composer.draw(2 + i % 2).turns:
            texts |= {t.question, t.answer}
    for name, _ in questions.emoji_names(False):
        texts |= {name, questions.plural(name)}
    words = generative_model.tokenizer(texts)
    processor = generative_model.processor(words, dual_processor.image_processor)
    model = generative_model.build(words, dual)
    generative_model.inherit(model, words, dual, dual_processor.tokenizer, batcher(64).pictures)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(words):,} tokens", flush=True)

    tower = list(model.model.vision_tower.parameters())
    mine = {id(p) for p in tower}
    rest = [p for p in model.parameters() if id(p) not in mine]
    groups = [{"params": rest, "lr": args.rate}, {"params": tower, "lr": args.rate * args.tower_rate}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.02)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min(1, (s + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * min(1, s / args.steps))),
    )
    projected: list[Tensor] = []
    projector = model.model.multi_modal_projector
    projector.register_forward_hook(lambda module, given, found: projected.append(found))
    begun, saved, running = time.time(), time.time(), dict[str, float]()
    vocabulary = words.get_vocab()
    for step in range(args.steps):
        for p in tower:
            p.requires_grad_(step >= args.frozen * args.steps)
        batch = batcher(args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            packed = questions.pack(words, batch.rows, spelled=args.spelled, rng=batcher.rng)
            logits, wanted, attentions = answer(model, batch.pictures, packed, looks=True)
        losses = {
            "loss": F.cross_entropy(logits, wanted),
            "looking": looking(attentions, packed, batch.rows, vocabulary[generative_model.IMAGE]),
            "naming": naming(
                projected.pop(),
                [(i, g, c, vocabulary[n]) for i, g, c, n in batch.named],
                cast(Tensor, model.get_input_embeddings().weight),
            ),
        }
        total = losses["loss"] + args.looking * losses["looking"] + args.naming * losses["naming"]
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shape.step()
        for name, value in losses.items():
            running[name] = 0.97 * running.get(name, value.item()) + 0.03 * value.item()
        if step % 20 == 0:
            rate = (step + 1) * args.batch / (time.time() - begun)
            said = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"step {step} {said} {rate:.0f} images/s", flush=True)
        if time.time() - saved > args.save_every * 60:
            save(model, processor, args.out / "latest")
            saved = time.time()
    save(model, processor, args.out / "final")
    print(f"{(time.time() - begun) / 60:.1f} minutes", flush=True)


def main() -> None:
    """Reads the options and trains."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dual", help="a folder with another dual encoder; default: the shipped one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--tower-rate", type=float, default=0.3)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--frozen", type=float, default=0.05, help="share of the steps with a frozen tower")
    parser.add_argument(
        "--spelled", type=float, default=0.05, help="share of question words that are spelled"
    )
    parser.add_argument(
        "--looking", type=float, default=0.5, help="weight of attention on the cells that tell the answer"
    )
    parser.add_argument("--naming", type=float, default=0.5, help="weight of naming what is in each cell")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
