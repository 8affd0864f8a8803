"""The protocols of relevance by their names: what each prints and keeps."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.adapters import embedded
from arr_coc.eval import (
    relevance_exam,
    relevance_further,
    relevance_questions,
    relevance_questions_report,
    relevance_report,
    relevance_shortcut,
)
from arr_coc.eval.percepts import Progress
from arr_coc.eval.relevance_protocols import KINDS
from arr_coc.eval.shown import Shown

TAUGHT = 800  # questions about other mosaics, for the rows of P2 that learn


@dataclass(frozen=True)
class Asked:
    """How a protocol is run.

    Args:
        seeds: of its samples. images: mosaics a kind and seed. quick: fewer of everything.
        model: "dual", or a folder with another dual encoder of 12 x 12 patches. progress: follows.
    """

    seeds: Sequence[int]
    images: int
    quick: bool
    model: str
    progress: Progress


@dataclass(frozen=True)
class Found:
    """What a protocol found: tables, sentences under them, and raw records as plain values."""

    tables: list[Shown]
    lines: list[str]
    raw: dict[str, Any]


def referral(asked: Asked) -> Found:
    """P1: every cell of a mosaic is asked for by its text."""
    folder = None if asked.model == "dual" else Path(asked.model)
    bare, processor = embedded.load("dual", folder=folder)
    seeds = list(asked.seeds)[:2] if asked.quick else asked.seeds
    results, tables = [], []
    for kind in [k for k in KINDS if not asked.quick or KINDS[k].grid < 4]:
        squares = 1 if asked.quick else relevance_exam.squares_of(kind, asked.images)
        results.append(relevance_exam.exam(bare, processor, kind, seeds, squares, progress=asked.progress))
    asked.progress("costs", 0, 0)
    costs = relevance_exam.costs(bare, processor, 3 if asked.quick else 15)
    for found in results:
        tables += [relevance_report.scores(found, costs), relevance_report.paired(found)]
    lines = [*relevance_report.verdict(results, costs), relevance_report.NOTE]
    return Found(tables, lines, {"costs": costs, "results": [r.to_dict() for r in results]})


def questions(asked: Asked) -> Found:
    """P2: a generative model is asked about mosaics of coloured shapes."""
    bare, processor = embedded.load("generative", folder=None if asked.model == "dual" else Path(asked.model))
    seeds = list(asked.seeds)[:1] if asked.quick else asked.seeds
    taught, tables, results = (32 if asked.quick else TAUGHT), [], []
    for grid in (2,) if asked.quick else (2, 3):
        count = 6 if asked.quick else asked.images
        found = relevance_questions.exam(bare, processor, grid, seeds, count, taught, progress=asked.progress)
        results.append(found.to_dict())
        tables += [
            relevance_questions_report.answered(found),
            relevance_questions_report.located(found, taught),
            *relevance_questions_report.paired(found, taught),
        ]
    return Found(tables, [], {"results": results})


def shortcut(asked: Asked) -> Found:
    """P3: one of two twins was told the label by a dot, and a map of it has to show that."""
    seeds = list(asked.seeds)[:1] if asked.quick else asked.seeds
    asked.progress("twins", 0, 0)
    found = relevance_shortcut.exam(seeds)
    return Found([relevance_report.twins(found, len(seeds))], [], asdict(found))


def further(asked: Asked) -> Found:
    """Faithfulness, randomisation and calibration on scenes of one item; the first seed draws them."""
    bare, processor = embedded.load("dual", folder=None if asked.model == "dual" else Path(asked.model))
    images, draws = (6, 1) if asked.quick else (24, 5)
    rows, left = relevance_further.measure(
        bare, processor, images, draws, next(iter(asked.seeds)), progress=asked.progress
    )
    raw = {
        name: {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(row).items()}
        for name, row in rows.items()
    }
    return Found([relevance_report.further(rows, left, images)], [], {"left_out": left, "rows": raw})


PROTOCOLS: dict[str, Callable[[Asked], Found]] = {
    "P1": referral,
    "P2": questions,
    "P3": shortcut,
    "further": further,
}


def run(protocol: str, asked: Asked) -> Found:
    """Run a protocol by its name.

    Raises:
        ValueError: for an unknown one.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol](asked)
