"""Families 6 to 8 of relevance, on scenes that show one emoji: faithfulness, randomisation, calibration.

One item among three blank cells, asked for by its name beside eight names of what is not there: so there is
an answer to lose when tokens are dropped. Maps of an image are scored on the same dropped tokens' count, the
same redrawn weights and the same split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arr_coc.eval import relevance_baselines as baselines
from arr_coc.eval.intervals import Range, paired_bootstrap
from arr_coc.eval.percepts import Progress
from arr_coc.eval.relevance_calibration import calibration, fit_sigmoid, sparsification
from arr_coc.eval.relevance_exam import OWN, embedded_texts, maps_of, pixels_of
from arr_coc.eval.relevance_faithfulness import FlatScore, curves
from arr_coc.eval.relevance_protocols import Mosaic
from arr_coc.eval.relevance_randomised import entropy_rise, redrawn
from arr_coc.eval.token_dropping import cosines, target
from arr_coc.training import items, scenes
from arr_coc.training.questions import emoji_names

Array = NDArray[np.float64]
TOLD = 9  # texts an image: its item's, and eight others
KEPT = (144, 48, 32, 16, 8)  # n, n / 3, 2 n / 9, n / 9, n / 18
LEAST = 0.05  # of cosine: an item that is not preferred by more has no answer to lose
MEASURED = (OWN, "random", "uniform", "attention", "rollout", "patch-text", "gradient-attention", "legrad")


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        morf, lerf, gap: means over images that have an answer to lose. minus: arr-coc's gap less this one.
        rise: eMPRT over `draws` of the weights; None where every map is constant.
        brier, base, ece: of the odd images, the sigmoid fitted on the even ones.
        mass, accuracy: kept by the KEPT most relevant tokens.
    """

    morf: float
    lerf: float
    gap: float
    minus: Range | None
    rise: float | None
    brier: float
    base: float
    ece: float
    mass: Array
    accuracy: Array


@dataclass(frozen=True)
class Single(Mosaic):
    """shown: tokens of the only cell that is not blank, (12, 12)."""

    shown: NDArray[np.bool_]


def singles(images: int, seed: int) -> list[Single]:
    """Scenes of 2 x 2 cells, three of them blank; the item's text stands first among the asked."""
    rng = np.random.default_rng([seed, 40])
    names, art = emoji_names(held_out=False), items.emoji("noto").images
    made = []
    for i in range(images):
        chosen = [names[k] for k in rng.choice(len(names), TOLD, replace=False)]
        cells: list[np.ndarray | None] = [None] * 4
        cells[int(rng.integers(4))] = art[chosen[0][1]]
        image, masks = scenes.compose(cells, 2, scenes.background(rng), rng)
        made.append(Single(image, 2, tuple(n for n, _ in chosen), (), i, np.asarray(masks.any(0))))
    return made


def _first(name: str, model: Any, processor: Any, shown: Sequence[Mosaic]) -> Array:
    """Each image's map for its own item, (images, 144)."""
    eye, draw = baselines.open_eye(model), torch.Generator().manual_seed(0)
    asked = [Mosaic(m.image, m.grid, m.asked[:1], (), m.square) for m in shown]
    return np.concatenate(
        [maps_of(name, eye, processor, asked[i : i + 8], draw)[:, 0] for i in range(0, len(asked), 8)]
    )


def _calibrated(maps: Array, truths: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Brier score, that of the base rate, and calibration error of the odd images."""
    x = np.log(maps + 1e-12) if maps.min() >= 0 else maps
    p = fit_sigmoid(x[::2], truths[::2])(x[1::2].ravel())
    found = calibration(p, truths[1::2].ravel())
    return found.brier, found.base, found.ece


def measure(
    model: Any,
    processor: Any,
    images: int = 24,
    draws: int = 5,
    seed: int = 0,
    methods: Sequence[str] = MEASURED,
    progress: Progress | None = None,
) -> tuple[dict[str, Row], int]:
    """Every method's row, and how many images had no answer to lose.

    Args:
        images: scenes of one item, two or more. draws: of all weights, for eMPRT. seed: of the scenes.
    """
    shown = singles(images, seed)
    pixels = pixels_of(processor, [m.image for m in shown]).to(next(model.parameters()).dtype)
    texts = embedded_texts(model, processor, [m.asked for m in shown])
    truths = np.stack([m.shown.ravel() for m in shown])
    maps = {name: _first(name, model, processor, shown) for name in methods}
    after: dict[str, list[Array]] = {name: [] for name in methods}
    for draw in range(draws):
        if progress is not None:
            progress("weights drawn anew", draw, draws)
        with redrawn(model, draw):
            for name in methods:
                after[name].append(_first(name, model, processor, shown))
    scores = [target(model, pixels[i : i + 1], texts[i], 0, 144) for i in range(images)]

    def right(i: int, kept: NDArray[np.int64]) -> bool:
        keep = torch.from_numpy(kept).unsqueeze(0)
        return int(cosines(model, pixels[i : i + 1], texts[i], keep, 144).argmax()) == 0

    rows: dict[str, Row] = {}
    gaps: dict[str, Array] = {}
    left = 0
    for name in methods:
        found, left = [], 0
        for i in range(images):
            if progress is not None:
                progress(f"dropping: {name}", i, images)
            try:
                found.append(curves(maps[name][i], scores[i], seed=i, least=LEAST))
            except FlatScore:
                left += 1
        gaps[name] = np.array([c.gap for c in found])
        mass, accuracy = sparsification(list(maps[name]), right, KEPT)
        flat = np.ptp(maps[name], 1).max() == 0
        rise = (
            None if flat else entropy_rise(list(maps[name]) * draws, list(np.concatenate(after[name]))).rise
        )
        rows[name] = Row(
            float(np.mean([c.morf for c in found])),
            float(np.mean([c.lerf for c in found])),
            float(gaps[name].mean()),
            None if name == OWN or OWN not in gaps else paired_bootstrap(gaps[OWN], gaps[name]),
            rise,
            *_calibrated(maps[name], truths),
            mass,
            accuracy,
        )
    return rows, left
