"""Held-out scores of the built-in generative model, with chance and controls beside them.

    arr-coc card generative

An answer counts when greedy decoding gives exactly it. That is so if and only if every token of it, the end
included, is the largest logit given the ones before: one forward pass per image tells it for all questions.
"""

from collections import Counter, defaultdict
from itertools import chain
from typing import Any

import numpy as np
import torch

from arr_coc.training import questions
from arr_coc.training.questions import Composer, Turn
from arr_coc.training.train_generative import answer_logits, pixels

CONTROL_SCENES = 2000


@torch.inference_mode()
def right(
    model: Any, processor: Any, images: list, rows: list[list[Turn]], blind: bool = False, batch: int = 8
) -> list[list[bool]]:
    """For every image and turn: does greedy decoding give exactly the answer?

    Args:
        images: B RGB images of 96 px. rows: B lists of turns.
        blind: every image is replaced with plain mid grey.
    """
    told = []
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        pictures = pixels(images[start : start + batch])
        packed = questions.pack(processor.tokenizer, some)
        logits, wanted = answer_logits(model, torch.zeros_like(pictures) if blind else pictures, packed)
        hits = (logits.argmax(1) == wanted).tolist()
        taught = packed["labels"][:, 1:] != -100
        where = zip(taught.nonzero()[:, 0].tolist(), packed["turn"][:, 1:][taught].tolist(), strict=True)
        found = [[True] * len(turns) for turns in some]
        for (row, turn), hit in zip(where, hits, strict=True):
            found[row][turn - 1] &= hit
        told += found
    return told


class QuestionOnly:
    """The most frequent training answer to the same question, else of the kind; and chance by kind."""

    def __init__(self, turns: list[Turn]) -> None:
        asked: dict[str, Counter] = defaultdict(Counter)
        kinds: dict[str, Counter] = defaultdict(Counter)
        for t in turns:
            asked[t.question][t.answer] += 1
            kinds[t.kind][t.answer] += 1
        self.asked = {q: c.most_common(1)[0][0] for q, c in asked.items()}
        self.kinds = {k: c.most_common(1)[0][0] for k, c in kinds.items()}
        self.chance = {k: 1 / len(c) for k, c in kinds.items()}

    def __call__(self, turn: Turn) -> str:
        return self.asked.get(turn.question, self.kinds.get(turn.kind, ""))


def _rows(
    section: str, model: Any, processor: Any, images: list, turns: list[list[Turn]], control: QuestionOnly
) -> list[dict]:
    seen = np.array(list(chain.from_iterable(right(model, processor, images, turns))), bool)
    blind = np.array(list(chain.from_iterable(right(model, processor, images, turns, True))), bool)
    flat = [t for row in turns for t in row]
    guess = np.array([control(t) == t.answer for t in flat])
    chance = np.array([control.chance.get(t.kind, 0.0) for t in flat])
    kinds = np.array([t.kind for t in flat])
    made = []
    for kind in ("all", *sorted(set(kinds))):
        mine = np.ones(len(flat), bool) if kind == "all" else kinds == kind
        values = {"score": seen, "chance": chance, "question_only": guess, "blind": blind}
        row: dict[str, Any] = {"section": section, "kind": kind, "n": int(mine.sum())}
        made.append(row | {k: float(v[mine].mean()) for k, v in values.items()})
    return made


def scores(model: Any, processor: Any, seed: int = 0, small: bool = False) -> list[dict]:
    """Rows of section, kind, n, score, chance, question_only, blind (shares, 0 to 1).

    Args:
        model, processor: as `arr_coc.adapters.embedded.load("generative")` returns them.
        seed: draws the scenes.
        small: 200 images a section, not all 1,000 of easy-VQA's test split and 500 scenes.
    """
    images, turns = questions.easy_vqa("test")
    control = QuestionOnly([t for row in questions.easy_vqa("train")[1] for t in row])
    n = 200 if small else len(images)
    made = _rows("easy-VQA test", model, processor, images[:n], turns[:n], control)
    composer = Composer(np.random.default_rng([seed, 11]))
    control = QuestionOnly([t for _ in range(CONTROL_SCENES) for t in composer.draw(2).turns])
    for section, held in (("2x2 scenes, seen concepts", False), ("2x2 scenes, held-out emoji", True)):
        composer = Composer(np.random.default_rng([seed, 12 + held]), held_out=held, only_emoji=held)
        drawn = [composer.draw(2) for _ in range(200 if small else 500)]
        images, turns = [d.image for d in drawn], [d.turns for d in drawn]
        made += _rows(section, model, processor, images, turns, control)
    return made


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table, percentages."""
    lines = [
        "| section | kind | n | score % | chance % | question only % | blind % |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        values = " | ".join(f"{100 * r[k]:.1f}" for k in ("score", "chance", "question_only", "blind"))
        lines.append(f"| {r['section']} | {r['kind']} | {r['n']:,} | {values} |")
    return "\n".join(lines)
