"""The exam of relevance: arr-coc beside every baseline on the same mosaics, with intervals and costs.

Relevance is that of a model that was attached and has learned nothing, asked by `context_ids`. Every score is
a mean over an image's questions; images are the units that are resampled. All maps of an image come from the
same pixels and texts, and their costs are taken in turns in one process.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arr_coc.adapters import attach
from arr_coc.adapters.dual_encoder import text_embedding
from arr_coc.adapters.texts import context, tokenized
from arr_coc.eval import relevance_baselines as baselines
from arr_coc.eval import relevance_gradients as gradients
from arr_coc.eval import relevance_metrics as metrics
from arr_coc.eval.percepts import Progress
from arr_coc.eval.relevance_contrast import mass_matrix, of_pairs
from arr_coc.eval.relevance_protocols import KINDS, Mosaic, mosaics

Array = NDArray[np.float64]
OWN, NEW = "arr-coc", "arr-coc, a new question"
BATCH = 9


@dataclass(frozen=True)
class Method:
    """A row. about: what it is called. sort: how it comes by its map. maps: None for arr-coc itself."""

    about: str
    sort: str
    maps: baselines.Baseline | None


METHODS: dict[str, Method] = {
    OWN: Method("arr-coc, nothing learned", "own", None),
    "random": Method("random", "blind", baselines.random),
    "uniform": Method("uniform", "blind", baselines.uniform),
    "centre": Method("centre", "blind", baselines.centre),
    "contrast": Method("local contrast of the pixels", "blind", baselines.contrast),
    "attention": Method("raw attention, last block", "forward", baselines.raw_attention),
    "rollout": Method("attention rollout", "forward", baselines.rollout),
    "patch-text": Method("patch-text cosine", "forward", baselines.patch_text),
    "patch-text-softmax": Method(
        "patch-text cosine, softmax at the model's temperature", "forward", baselines.patch_text_softmax
    ),
    "gradient-attention": Method("gradient x attention (Chefer)", "gradient", gradients.gradient_attention),
    "legrad": Method("attention gradient (LeGrad-style)", "gradient", gradients.layer_gradients),
    "occlusion": Method("occlusion of each cell: a ceiling, told the cells", "ceiling", baselines.occlusion),
}

# name -> (heading, what it is multiplied by when shown, decimals)
SCORES: dict[str, tuple[str, int, int]] = {
    "pointing": ("pointing %", 100, 1),
    "lift": ("mass, x chance", 1, 2),
    "rank": ("rank accuracy %", 100, 1),
    "auroc": ("AUROC", 1, 3),
    "contrast": ("query contrast", 1, 3),
    "swap": ("swap accuracy %", 100, 1),
    "absent": ("absent AUROC", 1, 3),
}


@dataclass(frozen=True)
class Result:
    """What an exam found.

    Args:
        kind: of mosaic. scores: by method and score, one number an image, (images,).
        groups: which Latin square each image belongs to, (images,). seeds: which seed, (images,).
    """

    kind: str
    scores: dict[str, dict[str, Array]]
    groups: NDArray[np.int64]
    seeds: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: raw records, one number an image."""
        listed = {m: {s: v.tolist() for s, v in of.items()} for m, of in self.scores.items()}
        units = {"squares": self.groups.tolist(), "seeds": self.seeds.tolist()}
        return {"kind": self.kind, **units, "scores": listed}


def peak_share(maps: Array) -> Array:
    """max(r+) / sum(r+), (Q,): how sure a map is that there is something to find; 1 / n without positive
    mass."""
    r = np.maximum(maps.reshape(len(maps), -1), 0)
    r[r.max(1) == 0] = 1
    return np.asarray(r.max(1) / r.sum(1))


def scored(maps: Array, mosaic: Mosaic) -> dict[str, float]:
    """Every score of one image's maps, (m + absent, n): the m asked for first.

    `absent` is P(the peak share of a present item's map > of an absent one's) + P(equal) / 2.
    """
    truths = mosaic.truths.reshape(mosaic.grid**2, -1)
    m = len(truths)
    present = list(zip(maps[:m], truths, strict=True))
    masses = mass_matrix(maps[:m], truths)
    pairs = of_pairs(masses)
    peaks = peak_share(maps)
    above = peaks[:m, None] - peaks[None, m:]
    return {
        "pointing": float(np.mean([metrics.pointing(r, g) for r, g in present])),
        "lift": float(np.diagonal(masses).mean() / truths.mean()),
        "rank": float(np.mean([metrics.rank_accuracy(r, g) for r, g in present])),
        "auroc": float(np.mean([metrics.auroc(r, g) for r, g in present])),
        "contrast": pairs.contrast,
        "swap": pairs.swap_accuracy,
        "absent": float(((above > 0) + 0.5 * (above == 0)).mean()),
    }


def chance(grid: int) -> dict[str, float]:
    """What a map scores that ignores the question."""
    m = grid**2
    zero = {"contrast": 0.0, "lift": 1.0}
    return {s: zero.get(s, 1 / m if s in ("pointing", "rank") else 0.5) for s in SCORES}


def own_maps(attached: Any, pixels: Tensor, texts: Sequence[Sequence[str]]) -> Tensor:
    """`out.relevance` of every image for each of its texts, (B, Q, n): one forward pass a question."""
    repeated = pixels.repeat_interleave(len(texts[0]), 0)
    flat = [t for of in texts for t in of]
    asked = context(attached.processor, flat, attached.model)
    candidates = tokenized(attached.processor, flat[:1], attached.model)
    parts = []
    for start in range(0, len(flat), 64):
        some = {name: ids[start : start + 64] for name, ids in asked.items()}
        parts.append(attached(pixel_values=repeated[start : start + 64], **candidates, **some).relevance)
    return torch.cat(parts).reshape(len(pixels), len(texts[0]), -1)


@torch.no_grad()
def embedded_texts(model: Any, processor: Any, texts: Sequence[Sequence[str]]) -> Tensor:
    """Unit length, (B, Q, P); each distinct text goes through the text tower once."""
    distinct = list(dict.fromkeys(t for of in texts for t in of))
    rows = text_embedding(model.get_text_features(**tokenized(processor, distinct, model)))
    place = {t: i for i, t in enumerate(distinct)}
    return torch.stack([rows[[place[t] for t in of]] for of in texts])


def pixels_of(processor: Any, images: Sequence[Any]) -> Tensor:
    """(B, 3, S, S) as the model takes them."""
    made = getattr(processor, "image_processor", processor)(list(images), return_tensors="pt")
    return made["pixel_values"]


def maps_of(
    name: str, eye: baselines.Eye, processor: Any, shown: Sequence[Mosaic], draw: torch.Generator
) -> Array:
    """Maps of one method for a batch of mosaics of one grid, (B, m + absent, n)."""
    texts = [(*m.asked, *m.absent) for m in shown]
    pixels = pixels_of(processor, [m.image for m in shown]).to(next(eye.model.parameters()).dtype)
    maps = METHODS[name].maps
    if maps is None:
        attached = attach(eye.model, None, processor)
        try:
            found = own_maps(attached, pixels, texts)
        finally:
            attached.detach()
    else:
        if name == "occlusion":
            maps = partial(baselines.occlusion, cells=shown[0].grid)
        found = maps(eye, pixels, embedded_texts(eye.model, processor, texts), draw)
    return found.detach().double().numpy()


def exam(
    model: Any,
    processor: Any,
    kind: str,
    seeds: Sequence[int],
    squares: int,
    methods: Sequence[str] = tuple(METHODS),
    progress: Progress | None = None,
) -> Result:
    """Every method on the same mosaics.

    Args:
        model: a bare dual encoder whose grid the cells divide (12 x 12). processor: its own.
        kind: of mosaic. seeds: draw the mosaics. squares: Latin squares a seed.
        methods: rows; all by default.

    Raises:
        ValueError: for an unknown method, or a model of another grid.
    """
    if unknown := [m for m in methods if m not in METHODS]:
        raise ValueError(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
    eye = baselines.open_eye(model)
    if eye.grid != (12, 12):
        raise ValueError(f"the model sees {eye.grid[0]} x {eye.grid[1]} patches; mosaics need 12 x 12")
    every = [(seed, m) for seed in seeds for m in mosaics(kind, squares, seed)]
    scores: dict[str, dict[str, list[float]]] = {m: {s: [] for s in SCORES} for m in methods}
    draw = torch.Generator().manual_seed(
        int(np.random.default_rng([7, *kind.encode(), *seeds]).integers(2**31))
    )
    for start in range(0, len(every), BATCH):
        some = [m for _, m in every[start : start + BATCH]]
        for name in methods:
            if progress is not None:
                progress(f"{kind}: {name}", start, len(every))
            for maps, mosaic in zip(maps_of(name, eye, processor, some, draw), some, strict=True):
                for score, value in scored(maps, mosaic).items():
                    scores[name][score].append(value)
    return Result(
        kind=kind,
        scores={m: {s: np.array(v) for s, v in of.items()} for m, of in scores.items()},
        groups=np.array([seed * squares + m.square for seed, m in every]),
        seeds=np.array([seed for seed, _ in every]),
    )


def steps(model: Any, processor: Any, shown: Sequence[Mosaic]) -> dict[str, Callable[..., Any]]:
    """What it takes to have both the model's scores and a map, one question an image, by the name of the
    method; "forward" is the scores alone, `NEW` has its context embedded too. arr-coc's take the attached
    model."""
    eye, draw = baselines.open_eye(model), torch.Generator().manual_seed(0)
    texts = [m.asked[0] for m in shown]
    pixels = pixels_of(processor, [m.image for m in shown]).to(next(model.parameters()).dtype)
    words, asked = tokenized(processor, texts, model), context(processor, texts, model)

    def forward() -> Any:
        with torch.inference_mode():
            return model(pixel_values=pixels, **words)

    def step(name: str, maps: baselines.Baseline) -> Callable[[], Any]:
        def blind() -> Any:
            return forward(), maps(eye, pixels, torch.zeros(len(texts), 1, eye.body.head.width), draw)

        def looking() -> Any:  # the image tower's pass is inside
            with torch.no_grad():
                said = text_embedding(model.get_text_features(**words)).unsqueeze(1)
            return maps(eye, pixels, said, draw)

        return blind if METHODS[name].sort == "blind" else looking

    def own(new: bool) -> Callable[..., Any]:
        def ask(attached: Any) -> Any:
            if new:
                attached.body.forget_texts()
            return attached(pixel_values=pixels, **words, **asked)

        return ask

    made: dict[str, Callable[..., Any]] = {
        "forward": forward,
        OWN: own(False),
        NEW: own(True),
    }
    for name, method in METHODS.items():
        maps = method.maps
        if name == "occlusion":
            maps = partial(baselines.occlusion, cells=shown[0].grid)
        if maps is not None:
            made[name] = step(name, maps)
    return made


def costs(model: Any, processor: Any, rounds: int = 15, batch: int = 4) -> dict[str, float]:
    """Median over rounds of a step's seconds over the frozen forward pass's just before and after it, by
    method.

    Seconds are the process's own on one thread, so that what else the machine does falls on neither. arr-coc
    is attached for its own steps only.
    """
    todo = steps(model, processor, mosaics("emoji-3x3", 1, 0)[:batch])
    forward = todo.pop("forward")
    ratios: dict[str, list[float]] = {name: [] for name in todo}

    def seconds(step: Callable[..., Any], *given: Any) -> float:
        began = time.process_time()
        step(*given)
        return time.process_time() - began

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(rounds + 1):  # the first one warms up
            for name, step in todo.items():
                frozen = seconds(forward)
                given = [attach(model, None, processor)] if name.startswith(OWN) else []
                try:
                    if given:
                        step(*given)  # an adapter's first pass lays things out
                    taken = seconds(step, *given)
                finally:
                    for attached in given:
                        attached.detach()
                frozen = (frozen + seconds(forward)) / 2
                if turn:
                    ratios[name].append(taken / frozen)
    finally:
        torch.set_num_threads(threads)
    return {name: median(of) for name, of in ratios.items()}


def squares_of(kind: str, images: int) -> int:
    """How many Latin squares come nearest to so many images, one at least."""
    return max(1, round(images / KINDS[kind].grid ** 2))
