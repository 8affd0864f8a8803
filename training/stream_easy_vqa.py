"""easy-vqa: the questions of easy-VQA (Zhou 2019) about one shape on a plain ground, one kind after another.

For a generative model. The kinds are those of the answers: a shape, a colour, yes or no. The built-in
generative model was trained on the same images and questions, so on it the stream shows what is kept; for any
other model it is something to learn.
"""

from dataclasses import dataclass

import numpy as np

from arr_coc.training.questions import Turn, easy_vqa_picture, easy_vqa_turns
from arr_coc.training.streams import Rendered, Sample, Stream

OPTIONS = ("kinds", "n_train", "n_test", "mixed")
KINDS = ("shape", "colour", "yes or no")


@dataclass(frozen=True)
class _Key:
    """One question: its number among the split's questions, and the image that it is about."""

    split: str
    turn: int
    kind: str
    image: int
    asked: Turn
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    kinds: tuple[str, ...] = KINDS,
    n_train: int = 6_000,
    n_test: int = 1_500,
    mixed: bool = False,
) -> Stream:
    """Experiences are kinds of question, one after another; the same questions in every order of a seed.

    Every question of a split comes at most once, its image as often as it is asked about. The context is the
    question. The candidates are answers: while learning those of the kinds met so far, on a probe all.

    Args:
        kinds: of question, some of KINDS.
        n_train, n_test: questions, drawn from the split of that name, the same number for every kind.
        mixed: shuffle the questions, so that there is no order of experiences.
    """
    kinds = tuple(kinds)
    if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds={kinds!r}: possible are {', '.join(KINDS)}, each at most once")
    there = {split: _by_kind(split, kinds) for split in ("train", "test")}
    for what, given, split in (("n_train", n_train, "train"), ("n_test", n_test, "test")):
        most = len(kinds) * min(map(len, there[split].values()))
        if isinstance(given, bool) or not isinstance(given, int) or not len(kinds) <= given <= most:
            raise ValueError(f"{what}={given!r}: {len(kinds)} to {most} are possible for {len(kinds)} kinds")
    taught = [kinds[i] for i in np.random.default_rng([seed, order, 7]).permutation(len(kinds))]
    answers = {k: sorted({turn.answer for _, _, turn in there["train"][k]}) for k in kinds}
    met = [list(dict.fromkeys(a for k in taught[: e + 1] for a in answers[k])) for e in range(len(taught))]

    def render(key: _Key) -> Sample:
        return {
            "image": easy_vqa_picture(key.split, key.image),
            "candidates": met[key.turn] if key.split == "train" else met[-1],
            "label": key.asked.answer,
            "context": key.asked.question,
            "experience": key.turn,
            "mask": None,
            "index": key.index,
        }

    def told(key: _Key) -> str:
        return key.asked.answer

    def keys(split: str, count: int, turn: int) -> list[_Key]:
        kind = taught[turn]
        code = [seed, 44 + (split == "test"), KINDS.index(kind)]
        mine = there[split][kind]
        chosen = np.random.default_rng(code).permutation(len(mine))[: count // len(kinds)]
        return [_Key(split, turn, kind, mine[i][1], mine[i][2], mine[i][0]) for i in chosen]

    turns = range(len(taught))
    train = [key for t in turns for key in keys("train", n_train, t)]
    if mixed:
        shuffle = np.random.default_rng([seed, order, 8]).permutation(len(train))
        train = [train[i] for i in shuffle]
    probes = [Rendered(keys("test", n_test, t), render, told) for t in turns]
    rivals = [answers[k] for k in taught]
    samples = Rendered(train, render, told)
    return Stream(name, samples, [[k] for k in taught], met[-1], list(probes), met=met, rivals=rivals)


def _by_kind(split: str, kinds: tuple[str, ...]) -> dict[str, list[tuple[int, int, Turn]]]:
    """Number, image and turn of every question of each kind."""
    every = [(image, turn) for image, turns in easy_vqa_turns(split).items() for turn in turns]
    return {k: [(n, i, t) for n, (i, t) in enumerate(every) if t.kind == k] for k in kinds}
