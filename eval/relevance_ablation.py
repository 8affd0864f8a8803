"""What each part of relevance is worth to its map, nothing learned: every part taken away or put in, alone.

    python -m arr_coc.eval.relevance_ablation

On mosaics whose every cell is asked for (P1, a dual encoder) and on questions about mosaics (P2, a generative
model, where its bare answer is right). Each row is one change of `ArrCocConfig`; beside its scores stands the
default minus it, paired bootstrap over images. Parts that need a stream (prediction, time, surprise, what is
learned) and steering have commands of their own, since a single picture has none of them.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval import relevance_metrics as metrics
from arr_coc.eval.intervals import paired_bootstrap
from arr_coc.eval.mosaic_questions import mosaics as asked_mosaics
from arr_coc.eval.relevance_contrast import mass_matrix, of_pairs, query_contrast
from arr_coc.eval.relevance_exam import own_maps, pixels_of, squares_of
from arr_coc.eval.relevance_protocols import mosaics
from arr_coc.eval.relevance_questions import answers, by_image, own_relevance, rows_of
from arr_coc.training.collate import AnswerCollator

Array = NDArray[np.float64]
DEFAULT = "as it is"
DUAL: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "score: attention alone": {"own_gain": 0.0, "attention_gain": 1.0},
    "score: attention and the model's own match": {"attention_gain": 1.0},
    "settle: lateral support of .5": {"lateral": 0.5},
    "settle: lateral support of 1": {"lateral": 1.0},
    "neighbours have no say": {"spread": 0},
}
GENERATIVE: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "score: attention alone": {"own_gain": 0.0},
    "score: the words' match alone": {"attention_gain": 0.0},
    "settle: lateral support of .5": {"lateral": 0.5},
    "settle: lateral support of 1": {"lateral": 1.0},
    "neighbours have no say": {"spread": 0},
}


@dataclass(frozen=True)
class Row:
    """Of every image, the share of its questions that are pointed at rightly, and its query contrast; NaN
    where nothing counts, (images,)."""

    pointing: Array
    contrast: Array


def of_mosaics(
    model: Any, processor: Any, kind: str, seeds: Sequence[int], images: int, changes: Mapping[str, Any]
) -> Row:
    """P1 with a changed config.

    Args:
        kind: of mosaic. images: a seed, at the least one Latin square of them. changes: of `ArrCocConfig`.
    """
    shown = [m for seed in seeds for m in mosaics(kind, squares_of(kind, images), seed)]
    attached = attach(model, ArrCocConfig(**changes), processor)
    pointing, contrast = [], []
    try:
        for start in range(0, len(shown), 9):
            some = shown[start : start + 9]
            maps = own_maps(attached, pixels_of(processor, [m.image for m in some]), [m.asked for m in some])
            for of, mosaic in zip(maps.double().numpy(), some, strict=True):
                truths = mosaic.truths.reshape(mosaic.grid**2, -1)
                pointing.append(np.mean([metrics.pointing(r, g) for r, g in zip(of, truths, strict=True)]))
                contrast.append(of_pairs(mass_matrix(of, truths)).contrast)
    finally:
        attached.detach()
    return Row(np.array(pointing), np.array(contrast))


def of_questions(
    model: Any,
    processor: Any,
    grid: int,
    seeds: Sequence[int],
    images: int,
    changes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Row]:
    """P2 with changed configs, by name.

    Args:
        grid: tiles along a side. images: a seed. changes: of `ArrCocConfig`, by name.
    """
    rows = [row for seed in seeds for row in rows_of(asked_mosaics(grid, images, seed))]
    said = answers(model, AnswerCollator(processor, model), rows)
    right = np.array([s == row["answer"] for s, row in zip(said, rows, strict=True)])
    truths = np.stack([row["mask"].ravel() for row in rows])
    found = {}
    for name, of in changes.items():
        maps = own_relevance(model, processor, rows, ArrCocConfig(**of))
        hits = [
            metrics.pointing(r, t) if ok else np.nan for r, t, ok in zip(maps, truths, right, strict=True)
        ]
        pairs = zip(*(a.reshape(-1, 2, *a.shape[1:]) for a in (maps, truths, right)), strict=True)
        contrast = [query_contrast(m, t).contrast if ok.all() else np.nan for m, t, ok in pairs]
        found[name] = Row(by_image(np.array(hits).reshape(-1, 2)), np.array(contrast))
    return found


def table(title: str, found: Mapping[str, Row]) -> str:
    """As markdown; differences are the default minus a row."""
    lines = [f"**{title}**", "", "| | pointing % | query contrast | as it is minus it: pointing | contrast |"]
    lines.append("|---|---|---|---|---|")
    default = found[DEFAULT]
    for name, row in found.items():
        cells = [f"{100 * np.nanmean(row.pointing):.1f}", f"{np.nanmean(row.contrast):.3f}"]
        for score, times, digits in (("pointing", 100, 1), ("contrast", 1, 3)):
            a, b = getattr(default, score), getattr(row, score)
            there = np.isfinite(a)
            gain = paired_bootstrap(times * a[there], times * b[there])
            shown = f"{gain.mean:+.{digits}f} [{gain.low:.{digits}f}, {gain.high:.{digits}f}]"
            cells.append("" if name == DEFAULT else shown)
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--images", type=int, default=40, help="of each seed")
    given = parser.parse_args()
    if given.images < 1:
        parser.error(f"--images {given.images}: at least 1 is needed")
    torch.set_num_threads(1)
    model, processor = embedded.load("dual")
    for kind in ("emoji-3x3", "garments-3x3"):
        found = {n: of_mosaics(model, processor, kind, given.seeds, given.images, c) for n, c in DUAL.items()}
        print(table(f"P1, {kind}, dual encoder", found), flush=True)
    model, processor = embedded.load("generative")
    for grid in (2, 3):
        rows = of_questions(model, processor, grid, given.seeds, given.images, GENERATIVE)
        print(table(f"P2, {grid}x{grid} tiles, generative", rows), flush=True)


if __name__ == "__main__":
    main()
