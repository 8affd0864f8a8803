"""Trains the built-in generative model on the dual encoder's tower; deterministic from --seed and --threads.

    python -m arr_coc.training.train_generative --out runs/generative
    cp runs/generative/final/* adapters/embedded/generative/

Loss on answer tokens only. A third of the images are easy-VQA's (its train split, flipped and turned); the
others are scenes with cued questions. The tower is frozen at first, then learns at a tenth of the rate.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from arr_coc.adapters import embedded
from arr_coc.training import generative_model, questions
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
    hidden = model.model(
        input_ids=packed["input_ids"],
        pixel_values=pictures,
        attention_mask=packed["attention_mask"].to(torch.bfloat16)
        if torch.is_autocast_enabled("cpu")
        else packed["attention_mask"],
        position_ids=packed["position_ids"],
        use_cache=False,
    ).last_hidden_state
    taught = packed["labels"][:, 1:] != -100
    return model.lm_head(hidden[:, :-1][taught]).float(), packed["labels"][:, 1:][taught]


class Batcher:
    """Batches of images and turns: `share` of them from easy-VQA, at most `most` turns on an image."""

    def __init__(self, seed: int, share: float = 0.35, most: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.composer = Composer(self.rng)
        self.images, self.turns = questions.easy_vqa("train")
        self.share, self.most = share, most

    def __call__(self, size: int) -> tuple[Tensor, list[list[Turn]]]:
        images, rows = [], []
        for i in range(size):
            if i < size * self.share:
                k = self.rng.integers(len(self.images))
                flipped = np.rot90(np.asarray(self.images[k]), int(self.rng.integers(4)))
                images.append(flipped[:, ::-1] if self.rng.random() < 0.5 else flipped)
                turns = self.turns[k]
            else:
                image, turns = self.composer.draw(int(self.rng.choice(GRIDS, p=SHARES)))
                images.append(np.asarray(image))
            keep = self.rng.permutation(len(turns))[: self.most]
            rows.append([turns[j] for j in keep])
        return pixels(images), rows


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
    if args.dual:
        from transformers import CLIPModel, CLIPProcessor

        dual = CLIPModel.from_pretrained(args.dual, dtype=torch.float32, local_files_only=True)
        dual_processor = CLIPProcessor.from_pretrained(args.dual, local_files_only=True)
    else:
        dual, dual_processor = embedded.load("dual")
    batcher = Batcher(args.seed)
    texts = {w for row in batcher.turns for t in row for w in (t.question, t.answer)}
    composer = Composer(np.random.default_rng([args.seed, 9]))
    for i in range(1500):
        for t in composer.draw(2 + i % 2)[1]:
            texts |= {t.question, t.answer}
    for name, _ in questions.emoji_names(False):
        texts |= {name, questions.plural(name)}
    words = generative_model.tokenizer(texts)
    processor = generative_model.processor(words, dual_processor.image_processor)
    model = generative_model.build(words, dual)
    generative_model.inherit(model, words, dual, dual_processor.tokenizer, batcher(64)[0])
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
    begun, saved, running = time.time(), time.time(), 0.0
    for step in range(args.steps):
        for p in tower:
            p.requires_grad_(step >= args.frozen * args.steps)
        pictures, rows = batcher(args.batch)
        with torch.autocast("cpu", torch.bfloat16):
            packed = questions.pack(words, rows, spelled=args.spelled, rng=batcher.rng)
            logits, wanted = answer_logits(model, pictures, packed)
        loss = F.cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shape.step()
        running = 0.97 * running + 0.03 * loss.item() if step else loss.item()
        if step % 20 == 0:
            rate = (step + 1) * args.batch / (time.time() - begun)
            print(f"step {step} loss {running:.3f} {rate:.0f} images/s", flush=True)
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
    parser.add_argument("--tower-rate", type=float, default=0.1)
    parser.add_argument("--warmup", type=int, default=30)
    parser.add_argument("--frozen", type=float, default=0.2, help="share of the steps with a frozen tower")
    parser.add_argument(
        "--spelled", type=float, default=0.05, help="share of question words that are spelled"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=3, help="minutes")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
