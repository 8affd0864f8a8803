"""P2, mosaic question answering: where a generative model's relevance lies when it answers, beside every
baseline.

A map counts where the bare model's own greedy answer is exactly right, since a wrong one says nothing about
what was relevant to the right one; how often it is, flips with the tile that tells it, and stays when another
tile is changed, stands beside. Images are the units that are resampled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arr_coc.adapters import attach
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.config import ArrCocConfig
from arr_coc.eval import question_maps as maps
from arr_coc.eval import relevance_metrics as metrics
from arr_coc.eval.mosaic_questions import Asked, mosaics
from arr_coc.eval.percepts import Progress
from arr_coc.eval.relevance_contrast import query_contrast
from arr_coc.training.collate import AnswerCollator

Array = NDArray[np.float64]
OWN = "arr-coc"
ASKED = f"{OWN}-asked"
TAUGHT = {"masks": "arr-coc, shown where on {n} others", "labels": "arr-coc, told the answers of {n} others"}
BATCH = 16
LONGEST = 6  # tokens of an answer, the end included

METHODS: dict[str, tuple[str, str, maps.Baseline | None]] = {  # name -> (about, sort, maps)
    OWN: ("arr-coc, nothing learned", "own", None),
    ASKED: ("arr-coc, by the question's words: what `keep_tokens` selects by", "own", None),
    **{f"{OWN}-{way}": (about, "own", None) for way, about in TAUGHT.items()},
    "random": ("random", "blind", maps.random),
    "uniform": ("uniform", "blind", maps.uniform),
    "centre": ("centre", "blind", maps.centre),
    "contrast": ("local contrast of the pixels", "blind", maps.contrast),
    "attention": ("raw attention, last block", "forward", maps.raw_attention),
    "attention-middle": ("raw attention, middle block", "forward", maps.middle_attention),
    "rollout": ("attention rollout", "forward", maps.rollout),
    "patch-text": ("cosine of visual tokens and the question's words", "forward", maps.patch_text),
    "gradient-attention": ("gradient x attention (Chefer)", "gradient", maps.gradient_attention),
    "legrad": ("attention gradient (LeGrad-style)", "gradient", maps.layer_gradients),
    "occlusion": ("occlusion of each tile: a ceiling, told the tiles", "ceiling", maps.occlusion),
}
SCORES = ("pointing", "lift", "rank", "auroc")


@dataclass(frozen=True)
class Result:
    """What the exam found.

    Args:
        grid: tiles along a side. seeds: of every image, (images,).
        right: of every question, whether the bare model answers it, (images, 2) bool; kinds: theirs, (images,
            2) text. flips, stays: of the changed pictures of those that are right, whether the answer follows
            or stays; NaN for the others, (images, 2).
        scores: by method and score, (images, 2), NaN where the answer is wrong.
        contrast: by method, (images,), NaN unless both answers are right.
    """

    grid: int
    seeds: NDArray[np.int64]
    right: NDArray[np.bool_]
    kinds: NDArray[np.str_]
    flips: Array
    stays: Array
    scores: dict[str, dict[str, Array]]
    contrast: dict[str, Array]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: raw records."""
        listed = {m: {s: v.tolist() for s, v in of.items()} for m, of in self.scores.items()}
        whole = {name: getattr(self, name).tolist() for name in ("seeds", "right", "kinds", "flips", "stays")}
        contrast = {m: v.tolist() for m, v in self.contrast.items()}
        return {"grid": self.grid, **whole, "scores": listed, "contrast": contrast}


def rows_of(made: Sequence[Asked]) -> list[dict[str, Any]]:
    """Every question of every mosaic as a row for `AnswerCollator`."""
    return [
        {"image": a.image, "question": q.text, "answer": q.answer, "mask": a.truth(q)}
        for a in made
        for q in a.questions
    ]


def answers(model: Any, collate: AnswerCollator, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a model writes, batch by batch."""
    said: list[str] = []
    for start in range(0, len(rows), BATCH):
        said += collate.answers(model, rows[start : start + BATCH], max_new_tokens=LONGEST)
    return said


def teach(attached: ArrCocModel, collate: AnswerCollator, rows: Sequence[dict[str, Any]], way: str) -> None:
    """One pass over other mosaics: "masks" points at the tile, "labels" tells the answer."""
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        if way == "masks":
            mask = torch.from_numpy(np.stack([row["mask"] for row in some])).float()
            inputs: dict[str, Any] = collate.prompts(some)
            attached.point_out(mask=mask, **inputs)
        else:
            attached.learn(**collate(some))


def _own(model: Any, processor: Any, name: str, rows: list[dict[str, Any]], taught: Any) -> Array:
    """arr-coc's relevance at the position that writes the answer's first token, (Q, n): that of its output
    or, `ASKED`, that by which `generate` keeps tokens."""
    way = "" if name == ASKED else name.removeprefix(OWN).removeprefix("-")
    config = ArrCocConfig(question_relevance=way == "labels")
    if name != ASKED:
        return own_relevance(model, processor, rows, config, taught, way)
    attached = attach(model, config, processor)
    try:
        collate, parts = AnswerCollator(processor, attached), []
        for start in range(0, len(rows), BATCH):
            prompts = collate.prompts(rows[start : start + BATCH])
            attached.generate(**prompts, keep_tokens=0.5, mix=0.0, max_new_tokens=1, do_sample=False)
            assert attached.kept is not None
            parts.append(torch.stack(attached.kept.relevance).double().numpy())
        return np.concatenate(parts)
    finally:
        attached.detach()


def own_relevance(
    model: Any,
    processor: Any,
    rows: Sequence[dict[str, Any]],
    config: ArrCocConfig,
    taught: Sequence[dict[str, Any]] = (),
    way: str = "",
) -> Array:
    """`out.relevance` at the position that writes the answer's first token, (Q, n), float64.

    Args:
        taught, way: rows that are learned from first, and how (see `teach`); nothing where `way` is empty.
    """
    attached = attach(model, config, processor)
    try:
        collate = AnswerCollator(processor, attached)
        if way:
            teach(attached, collate, taught, way)
        parts = [
            attached(**collate.prompts(rows[start : start + BATCH])).relevance.double().numpy()
            for start in range(0, len(rows), BATCH)
        ]
        return np.concatenate(parts)
    finally:
        attached.detach()


def maps_of(
    model: Any, processor: Any, name: str, rows: list[dict[str, Any]], grid: int, taught: Any, seed: int
) -> Array:
    """Maps of one method for every row, (Q, n)."""
    make = METHODS[name][2]
    if make is None:
        return _own(model, processor, name, rows, taught)
    if name == "occlusion":
        make = partial(maps.occlusion, cells=grid)
    collate, draw, parts = AnswerCollator(processor, model), torch.Generator().manual_seed(seed), []
    for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        asked = maps.prompts_of(model, processor, collate.prompts(some), [row["answer"] for row in some])
        parts.append(make(asked, draw).detach().double().numpy())
    return np.concatenate(parts)


def exam(
    model: Any,
    processor: Any,
    grid: int,
    seeds: Sequence[int],
    count: int,
    taught: int = 800,
    methods: Sequence[str] = tuple(METHODS),
    progress: Progress | None = None,
) -> Result:
    """Every method on the same mosaics.

    Args:
        model: bare and generative, LLaVA-shaped. processor: its own.
        grid: 2 or 3. seeds: draw the mosaics. count: of them, a seed. taught: questions about other mosaics
            of the same seed that are learned from, where something is.
        methods: rows; all by default.

    Raises:
        ValueError: for an unknown method.
    """
    if unknown := [m for m in methods if m not in METHODS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    collate, parts = AnswerCollator(processor, model), []
    for seed in seeds:
        made = mosaics(grid, count, seed)
        rows = rows_of(made)
        others = rows_of(mosaics(grid, max(taught // 2, 1), seed, split="train"))

        def follow(what: str, done: int = seed) -> None:
            if progress is not None:
                progress(f"{grid}x{grid}, seed {done}: {what}", 0, 0)

        follow("answers")
        right = np.array([s == r["answer"] for s, r in zip(answers(model, collate, rows), rows, strict=True)])
        flips, stays = _changed(model, collate, made, right)
        truths = np.stack([row["mask"].ravel() for row in rows])
        scores, contrast = {}, {}
        for name in methods:
            follow(name)
            found = maps_of(model, processor, name, rows, grid, others, seed)
            each = [
                _scored(r, t) if ok else (np.nan,) * 4 for r, t, ok in zip(found, truths, right, strict=True)
            ]
            scores[name] = np.array(each).reshape(count, 2, 4)
            both = [bool(one and other) for one, other in right.reshape(count, 2)]
            pairs = zip(found.reshape(count, 2, -1), truths.reshape(count, 2, -1), both, strict=True)
            contrast[name] = np.array([query_contrast(m, t).contrast if ok else np.nan for m, t, ok in pairs])
        kinds = np.array([q.kind for a in made for q in a.questions]).reshape(count, 2)
        parts.append((np.full(count, seed), right.reshape(count, 2), kinds, flips, stays, scores, contrast))
    seeds_, right_, kinds_, flips_, stays_ = (np.concatenate([p[i] for p in parts]) for i in range(5))
    joined = {m: np.concatenate([p[5][m] for p in parts]) for m in methods}
    return Result(
        grid=grid,
        seeds=seeds_,
        right=right_,
        kinds=kinds_,
        flips=flips_,
        stays=stays_,
        scores={m: {s: joined[m][..., i] for i, s in enumerate(SCORES)} for m in methods},
        contrast={m: np.concatenate([p[6][m] for p in parts]) for m in methods},
    )


def _scored(relevance: Array, truth: NDArray[np.bool_]) -> tuple[float, ...]:
    return (
        metrics.pointing(relevance, truth),
        metrics.mass_lift(relevance, truth),
        metrics.rank_accuracy(relevance, truth),
        metrics.auroc(relevance, truth),
    )


def _changed(
    model: Any, collate: AnswerCollator, made: Sequence[Asked], right: NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Whether answers that were right flip and stay, (images, 2) each."""
    asked = [q for a in made for q in a.questions]
    flipped = [{"image": q.flipped[0], "question": q.text} for q in asked]
    stayed = [{"image": q.stays, "question": q.text} for q in asked]
    wanted = ([q.flipped[1] for q in asked], [q.answer for q in asked])
    found = []
    for rows, answer in zip((flipped, stayed), wanted, strict=True):
        said = answers(model, collate, rows)
        same = np.array([s == w for s, w in zip(said, answer, strict=True)], float)
        found.append(np.where(right, same, np.nan).reshape(-1, 2))
    return found[0], found[1]


def of_kind(result: Result, name: str, score: str, kind: str) -> float:
    """Mean of a score over the questions of a kind that are answered right; NaN where none is."""
    values = result.scores[name][score][(result.kinds == kind) & result.right]
    return float(values.mean()) if len(values) else float("nan")


def by_image(values: Array) -> Array:
    """Mean over an image's questions that count, (images,); NaN where none does."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(-1)
    return np.where(there.any(-1), total / np.maximum(there.sum(-1), 1), np.nan)
