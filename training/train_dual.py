"""Trains the built-in dual encoder on composed scenes; about an hour on two cores, no GPU, deterministic
from --seed and --threads.

    python -m arr_coc.training.train_dual --out runs/dual
    cp -r runs/dual/final/* adapters/embedded/dual/

What is taught: which item (patch tokens and cells against names), where (uniform mass over a named cell), of
what colour, what is at a named place, which caption is true. EfficientNet-lite0 and MiniLM are the teachers
of picture and word; MiniLM of common English words too, so that a name that no picture taught has a place.
Patch tokens are projected exactly as at use: visual_projection(post_layernorm(tokens)).
"""

import argparse
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPProcessor

from arr_coc.training import dual_model, teachers
from arr_coc.training.captions import GROUP_WORDS, NAME_TEMPLATES, Scene, World

CELLS, PHRASES, PCA = 16, 24, 128
COMMON, HEARD = 10_000, 128  # English words beside those of the scenes, and how many a step hears


class Heads(nn.Module):
    """Training only: linear maps onto what the teachers say. picture: lite0; thumb: 10x10 grey; word:
    MiniLM."""

    def __init__(self, width: int, shared: int) -> None:
        super().__init__()
        self.picture, self.thumb, self.word = (
            nn.Linear(width, PCA),
            nn.Linear(width, 100),
            nn.Linear(shared, 384),
        )


def taught(world: World, common: list[str], cache: Path) -> dict[str, np.ndarray]:
    """The teachers' answers: lite0 (A, E, 128) principal components, MiniLM (T, 384) for every text in
    world.plain and (COMMON, 384) for the common words."""
    if not cache.is_file():
        images = [teachers.on_background(rgba) for art in world.images for rgba in art]
        features = teachers.lite0_features(images)
        features -= features.mean(0)
        _, _, axes = np.linalg.svd(features[:: max(1, len(features) // 3000)], full_matrices=False)
        pictures = features @ axes[:PCA].T
        pictures /= pictures.std()
        words = teachers.minilm_features(sorted(world.plain))
        centre = words.mean(0)
        np.savez(
            cache,
            pictures=pictures.reshape(len(world.images), world.emoji, PCA),
            words=words - centre,
            common=teachers.minilm_features(common) - centre,
        )
    return dict(np.load(cache))


class Batcher:
    """Scenes as padded arrays: every unique text once, every phrase and cell with its tokens."""

    def __init__(
        self,
        world: World,
        common: list[str],
        processor: CLIPProcessor,
        answers: dict[str, np.ndarray],
        seed: int,
    ) -> None:
        self.world, self.common, self.answers = world, common, answers
        self.words = processor.tokenizer
        self.rng = np.random.default_rng(seed)
        self.plain = sorted(world.plain)
        self.row = {text: i for i, text in enumerate(self.plain)}
        for template in NAME_TEMPLATES:
            self.row |= {template.format(name): self.row[name] for name in world.names}
        self.ids: dict[str, list[int]] = {}

    def encode(self, texts: list[str]) -> dict[str, Tensor]:
        """Token ids, right-padded to the longest: input_ids and attention_mask (U, T)."""
        for text in texts:
            if text not in self.ids:
                self.ids[text] = self.words(text, truncation=True)["input_ids"]
        rows = [self.ids[text] for text in texts]
        ids = torch.full((len(rows), max(map(len, rows))), self.words.pad_token_id)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        return {"input_ids": ids, "attention_mask": (ids != self.words.pad_token_id).long()}

    def by_length(self, texts: list[str]) -> list[str]:
        """The texts, shortest (in tokens) first, so that they can be encoded in thirds without much
        padding."""
        self.encode(texts)
        return sorted(texts, key=lambda text: (len(self.ids[text]), text))

    def __call__(self, size: int) -> dict[str, Tensor | dict[str, Tensor]]:
        """A batch of `size` fresh scenes."""
        scenes = [self.world.sample(self.rng) for _ in range(size)]
        told = scenes[: size // 2]  # captions are long: half the scenes get them
        short = sorted({p.text for s in scenes for p in s.phrases})
        extra = [self.plain[i] for i in self.rng.integers(len(self.plain), size=64)]
        short = self.by_length([*short, *sorted(set(extra) - set(short))])
        where = {text: i for i, text in enumerate(short)}
        heard = self.rng.choice(len(self.common), HEARD, replace=False)
        cell_mask = np.zeros((size, CELLS, 144), np.float32)
        concept = np.full((size, CELLS), -1)
        cell_text = np.zeros((size, CELLS), int)
        picture = np.zeros((size, CELLS, PCA), np.float32)
        thumb = np.zeros((size, CELLS, 100), np.float32)
        phrase = np.full((size, PHRASES), -1)
        phrase_mask = np.zeros((size, PHRASES, 144), np.float32)
        asked = np.full((size, PHRASES), -1)  # the one cell that a colour or place phrase names
        for b, s in enumerate(scenes):
            n = len(s.concepts)
            cell_mask[b, :n], concept[b, :n], thumb[b, :n] = s.masks, s.concepts, s.thumbs
            for c in np.flatnonzero((s.concepts >= 0) & (s.concepts < self.world.emoji)):
                picture[b, c] = self.answers["pictures"][s.arts[c], s.concepts[c]]
            for p, said in enumerate(s.phrases[-PHRASES:]):
                phrase[b, p], phrase_mask[b, p] = where[said.text], said.mask
                if said.kind == "name":
                    for c in np.flatnonzero((s.masks & said.mask).any(1)):
                        cell_text[b, c] = where[said.text]
                elif said.kind in ("colour", "place"):
                    asked[b, p] = said.cell
        return {
            "pixels": torch.from_numpy(np.stack([s.pixels for s in scenes])).permute(0, 3, 1, 2).float()
            / 127.5
            - 1,
            "short": self.encode(short),
            "long": self.encode([s.caption for s in told] + [s.wrong_caption or s.caption for s in told]),
            "heard": self.encode([self.common[i] for i in heard]),
            "heard_word": torch.from_numpy(self.answers["common"][heard]).float(),
            "true": torch.from_numpy(self._true(short)),
            "same": torch.from_numpy(self._same(told)),
            "word": torch.from_numpy(
                np.stack(
                    [self.answers["words"][self.row[t]] if t in self.row else np.zeros(384) for t in short]
                )
            ).float(),
            "cell_mask": torch.from_numpy(cell_mask),
            "concept": torch.from_numpy(concept),
            "cell_text": torch.from_numpy(cell_text),
            "picture": torch.from_numpy(picture),
            "thumb": torch.from_numpy(thumb),
            "phrase": torch.from_numpy(phrase),
            "phrase_mask": torch.from_numpy(phrase_mask),
            "asked": torch.from_numpy(asked),
        }

    def _true(self, texts: list[str]) -> np.ndarray:
        """(concepts, U): which texts are true of which concept."""
        true = np.zeros((len(self.world.names), len(texts)), bool)
        for u, text in enumerate(texts):
            true[list(self.world.told.get(text, ())), u] = True
        return true

    def _same(self, scenes: list[Scene]) -> np.ndarray:
        """(B, 2B) for these scenes: caption j is also true of scene i (equal text, or a name of the only
        item shown)."""
        said = [s.caption for s in scenes] + [s.wrong_caption or s.caption for s in scenes]
        only = [int(s.concepts[0]) if s.grid == 1 else -1 for s in scenes]
        return np.array(
            [
                [said[i] == t or only[i] in self.world.told.get(t, ()) for t in said]
                for i in range(len(scenes))
            ]
        )


def contrast(logits: Tensor, true: Tensor) -> Tensor:
    """Cross-entropy against the uniform distribution over the true columns; rows without one are left out."""
    rows = true.any(1)
    target = true[rows].float()
    return -(logits[rows].log_softmax(1) * target / target.sum(1, keepdim=True)).sum(1).mean()


def say(model: CLIPModel, inputs: dict[str, Tensor]) -> Tensor:
    """Text embeddings in the shared space, not normalised: (U, D)."""
    return model.text_projection(model.text_model(**inputs).pooler_output)


def thirds(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Three parts of texts that stand shortest first, each cut to its own longest: padding costs as much as
    text."""
    lengths = inputs["attention_mask"].sum(1)
    parts = torch.arange(len(lengths)).chunk(3)
    return [{k: v[rows, : int(lengths[rows].max())] for k, v in inputs.items()} for rows in parts]


def losses(model: CLIPModel, heads: Heads, batch: dict) -> dict[str, Tensor]:
    """Every term of the loss, unweighted."""
    with torch.autocast("cpu", torch.bfloat16):
        tower = model.vision_model
        hidden = tower.post_layernorm(tower(pixel_values=batch["pixels"]).last_hidden_state)  # (B, 145, H)
        projected = model.visual_projection(hidden)  # (B, 145, D)
        names = torch.cat([say(model, part) for part in thirds(batch["short"])])
        captions = say(model, batch["long"])
        heard = say(model, batch["heard"])
    hidden, projected = hidden.float(), projected.float()
    scale = model.logit_scale.exp()
    names, captions = (
        F.normalize(names.float(), dim=1),
        F.normalize(captions.float(), dim=1),
    )  # (U, D), (B, D)
    tokens = projected[:, 1:]  # (B, 144, D)
    unit = F.normalize(tokens, dim=2)
    out = {}

    # where: mass uniform over the named tokens
    known = batch["phrase"] >= 0  # (B, P)
    asked_texts = names[batch["phrase"].clamp(min=0)]  # (B, P, D)
    maps = (scale * asked_texts @ unit.transpose(1, 2)).log_softmax(2)  # (B, P, 144)
    share = batch["phrase_mask"] / batch["phrase_mask"].sum(2, keepdim=True).clamp(min=1)
    entropy = share.sum(2).clamp(min=1e-9) / batch["phrase_mask"].sum(2).clamp(min=1)
    out["where"] = (-(maps * share).sum(2) + entropy.log())[
        known
    ].mean()  # a KL divergence: zero when perfect

    # which: cells (and the whole picture, where it shows one item) against every name in the batch
    weights = batch["cell_mask"] / batch["cell_mask"].sum(2, keepdim=True).clamp(min=1)
    shown = batch["concept"] >= 0  # (B, C)
    cells = F.normalize((weights @ tokens)[shown], dim=1)  # (R, D)
    alone = batch["cell_mask"][:, 0].sum(1) == 144  # (B,)
    regions = torch.cat([cells, F.normalize(projected[alone, 0], dim=1)])
    concept = torch.cat([batch["concept"][shown], batch["concept"][alone, 0]])
    logits, true = scale * regions @ names.T, batch["true"][concept]  # (R, U)
    out["which"] = contrast(logits, true) + 0.5 * contrast(logits.T, true.T)

    # what is there: cells pooled by the map of the words that ask for a place or colour
    asks = batch["asked"] >= 0  # (B, P)
    scene = asks.nonzero()[:, 0]
    pooled = F.normalize((maps.exp() @ tokens)[asks], dim=1)  # (A, D)
    candidates = names[batch["cell_text"][scene]]  # (A, C, D)
    target = batch["asked"][asks]
    concepts = batch["concept"][scene]  # (A, C)
    there = concepts.gather(1, target[:, None])
    open_ = (concepts >= 0) & ((concepts != there) | (torch.arange(CELLS) == target[:, None]))
    named = (scale * torch.einsum("ad,acd->ac", pooled, candidates)).masked_fill(~open_, -1e4)
    sensible = (there[:, 0] >= 0) & (open_.sum(1) > 1)
    out["there"] = F.cross_entropy(named[sensible], target[sensible])

    # which caption: the whole picture against all captions and wrong captions
    size = len(captions) // 2
    summary = F.normalize(projected[:size, 0], dim=1)
    logits = scale * summary @ captions.T  # (B / 2, B)
    out["caption"] = contrast(logits, batch["same"]) + 0.5 * contrast(
        logits[:, :size].T, batch["same"][:, :size].T
    )

    # teachers
    features = (weights @ hidden[:, 1:])[shown]  # (R, H)
    emoji = batch["picture"][shown].abs().sum(1) > 0
    distilled = F.mse_loss(heads.picture(features[emoji]), batch["picture"][shown][emoji])
    whole = alone & (batch["picture"][:, 0].abs().sum(1) > 0)
    out["picture"] = distilled + 0.3 * F.mse_loss(heads.picture(hidden[whole, 0]), batch["picture"][whole, 0])
    out["thumb"] = 20 * F.mse_loss(heads.thumb(features), batch["thumb"][shown])
    worded = batch["word"].abs().sum(1) > 0
    out["word"] = 1 - F.cosine_similarity(heads.word(names[worded]), batch["word"][worded]).mean()
    heard = heads.word(F.normalize(heard.float(), dim=1))
    out["heard"] = 1 - F.cosine_similarity(heard, batch["heard_word"]).mean()
    meaning = batch["word"][batch["cell_text"][shown]]
    out["meaning"] = 1 - F.cosine_similarity(heads.word(cells), meaning)[meaning.abs().sum(1) > 0].mean()
    return out


WEIGHTS = {
    "where": 1.0,
    "which": 0.7,
    "there": 0.4,
    "caption": 0.3,
    "picture": 1.0,
    "thumb": 0.3,
    "word": 1.5,
    "heard": 1.0,
    "meaning": 0.5,
}


def save(model: CLIPModel, processor: CLIPProcessor, folder: Path) -> None:
    """Weights in float16, config, tokenizer and processor: complete or absent, never half."""
    fresh = folder.with_suffix(".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    half = CLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(fresh)
    processor.save_pretrained(fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def main() -> None:
    """Trains and saves out/step_N every --save-every steps and out/final."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    # model
    world = World()
    common = teachers.common_words(COMMON)
    scene_words = world.told.keys() | {g for many in GROUP_WORDS.values() for g in many}
    words = dual_model.tokenizer([*sorted(scene_words), *common])
    processor = dual_model.processor(words)
    model = dual_model.build(words, args.width)
    heads = Heads(args.width, 256)
    answers = taught(world, common, args.out / "teachers.npz")
    batcher = Batcher(world, common, processor, answers, args.seed)
    dual_model.start(model, np.stack([world.sample(np.random.default_rng(i)).pixels for i in range(200)]))
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(words)} tokens",
        flush=True,
    )

    # training
    everything = [*model.parameters(), *heads.parameters()]
    matrices, others = [p for p in everything if p.ndim > 1], [p for p in everything if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98), fused=True)
    model.train()
    began = time.time()
    seen: dict[str, Any] = {}
    for step in range(args.steps):
        done = step / args.steps
        rate = args.rate * min(1, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * done))
        for group in optimiser.param_groups:
            group["lr"] = max(rate, 1e-6)
        terms = losses(model, heads, batcher(args.batch))
        loss = torch.stack([WEIGHTS[k] * v for k, v in terms.items()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(everything, 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(math.log(5), math.log(40))
        for k, v in terms.items():
            seen[k] = 0.98 * seen.get(k, v.item()) + 0.02 * v.item()
        if step % 25 == 0:
            speed = (step + 1) * args.batch / (time.time() - began)
            said = "  ".join(f"{k} {v:.3f}" for k, v in seen.items())
            print(f"{step:5d}  {speed:5.1f}/s  scale {model.logit_scale.exp():.1f}  {said}", flush=True)
        if step and step % args.save_every == 0:
            save(model, processor, args.out / f"step_{step}")
    save(model, processor, args.out / "final")
    print(f"done: {step + 1} steps, {(time.time() - began) / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
