"""coin and ucit: questions about images, one data set after another, for a generative model.

    coin?source=FOLDER      ucit?source=FOLDER

CoIN (Chen et al. 2024) has ScienceQA, TextVQA, ImageNet, GQA, VizWiz, Grounding, VQAv2 and OCR-VQA, UCIT
(Guo et al. 2025) ImageNet-R, ArxivQA, VizWiz captions, IconQA, CLEVR-Math and Flickr30k: an experience each,
in this order; further orders are drawn from the seed. An answer is right word for word, so the tasks that
have no short answer are left out, which the stream's notes say: captions, and boxes.

The folder is as it is published: FOLDER/GQA/train.json and test.json (of UCIT also train_4w.json and
test_3000.json), JSON or JSON lines. A row has `image`, a path, and either `conversations`, what "human" and
"gpt" say in turn (LLaVA's form), or `text` and `answer`. Rows without an image, a question or an answer are
left out and counted; an image that cannot be read is passed over when it is met.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.training import sources
from arr_coc.training.stream_sets import found
from arr_coc.training.streams import BadRow, Rendered, Sample, Stream, decoded

OPTIONS = ("kind", "source", "images", "tasks", "n_train", "n_test")
TASKS = {
    "coin": ("ScienceQA", "TextVQA", "ImageNet", "GQA", "VizWiz", "Grounding", "VQAv2", "OCR-VQA"),
    "ucit": ("ImageNet-R", "ArxivQA", "VizWiz", "IconQA", "CLEVR", "Flickr30k"),
}
_CAPTIONS = "its answers are captions, which are scored against several references"
NO_SHORT_ANSWER = {
    "coin": {"Grounding": "its answers are boxes, which are scored by their overlap"},
    "ucit": {"VizWiz": _CAPTIONS, "Flickr30k": _CAPTIONS},
}
_ALIASES = {"clevrmath": "CLEVR", "vizwizcaption": "VizWiz", "vizwizcap": "VizWiz"}
_BESIDE = (".", "../datasets", "../cl_dataset", "..")  # where images are, seen from the instructions
IMAGE = "<image>"


@dataclass(frozen=True)
class Asked:
    """One question: the image's path as it is written, what is asked, and the answer."""

    image: str
    question: str
    answer: str


@dataclass(frozen=True)
class _Key:
    split: str
    turn: int
    index: int
    asked: Asked
    images: Path


def make(
    name: str,
    seed: int,
    order: int,
    kind: str = "coin",
    source: str = "",
    images: str = "",
    tasks: tuple[str, ...] = (),
    n_train: int | None = None,
    n_test: int | None = None,
) -> Stream:
    """One data set, one experience; the context is the question as it is written, without <image>.

    The candidates are answers: while learning those of the tasks met so far, on a probe those of every task.

    Args:
        kind: "coin" or "ucit".
        source: the folder of instructions, with a folder for each task.
        images: what their paths are seen from; by default the source, a folder `datasets` or `cl_dataset`
            beside it, or the folder that it is in, whichever has one of a task's first images.
        tasks: some of the tasks, where not all of them are wanted.
        n_train, n_test: questions at most, every task the same number as far as it has them, drawn from the
            seed.

    Raises:
        FileNotFoundError: for a task without a folder or files, and where no image is found. ValueError: for
            a task that does not exist or has no short answers, a file that is no JSON, and one in which no
            row can be used.
    """
    if kind not in TASKS:
        raise ValueError(f"kind={kind!r}: possible are {', '.join(TASKS)}")
    chosen = _chosen(kind, tasks)
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if given is not None and given < len(chosen):
            raise ValueError(f"{what}={given!r}: at least one for each of {len(chosen)} tasks is needed")
    folders = sources.parts(found(kind, source, ""), TASKS[kind], _ALIASES, chosen, "tasks")
    coming = chosen
    if order > 0:
        mixed = np.random.default_rng([seed, order, 7]).permutation(len(chosen))
        coming = [chosen[i] for i in mixed]
    notes = [f"{task} is left out: {why}." for task, why in NO_SHORT_ANSWER[kind].items()]
    notes.append(f"{kind}: {', '.join(coming)}; an answer is right word for word. 'final %' is MFN.")
    keys: dict[str, list[_Key]] = {}
    answers: dict[str, list[str]] = {}
    for split, most in (("train", n_train), ("test", n_test)):
        start, drawn = 0, list[_Key]()
        for task in chosen:  # in one order whatever comes when: the same question has the same index
            file = _file(folders[task], split)
            rows, left = _rows(str(file))
            notes += [f"{file}, left out: {count} with {why}." for why, count in left]
            where = _images(images, folders[task].parent, rows)
            chance = np.random.default_rng([seed, 46 + (split == "test"), TASKS[kind].index(task)])
            share = None if most is None else most // len(chosen)
            kept = chance.permutation(len(rows))[:share].tolist()
            drawn += [_Key(split, coming.index(task), start + i, rows[i], where) for i in kept]
            answers.setdefault(task, []).extend(rows[i].answer for i in kept)
            start += len(rows)
        keys[split] = sorted(drawn, key=lambda k: k.turn)
    said = {task: sorted(set(several)) for task, several in answers.items()}
    met = [list(dict.fromkeys(a for t in coming[: e + 1] for a in said[t])) for e in range(len(coming))]

    def told(key: _Key) -> str:
        return key.asked.answer

    def render(key: _Key) -> Sample:
        return {
            "image": _picture(key),
            "candidates": met[key.turn] if key.split == "train" else met[-1],
            "label": key.asked.answer,
            "context": key.asked.question,
            "experience": key.turn,
            "mask": None,
            "index": key.index,
        }

    probes = [Rendered([k for k in keys["test"] if k.turn == e], render, told) for e in range(len(coming))]
    return Stream(
        name,
        Rendered(keys["train"], render, told),
        [[task] for task in coming],
        met[-1],
        list(probes),
        met=met,
        rivals=[said[task] for task in coming],
        notes=notes,
    )


def _picture(key: _Key) -> Any:
    path = Path(key.asked.image)
    if path.is_absolute() or ".." in path.parts:
        raise BadRow("an image outside the folder")
    return decoded({"path": str(key.images / path), "bytes": None})


def _chosen(kind: str, tasks: tuple[str, ...]) -> list[str]:
    without = NO_SHORT_ANSWER[kind]
    for task in without.keys() & set(tasks):
        raise ValueError(f"{kind}: {task} has no place here: {without[task]}")
    return sources.wanted(kind, [t for t in TASKS[kind] if t not in without], tasks)


def _file(folder: Path, split: str) -> Path:
    """The file of a split: the one that is called so, or the only one whose name begins so."""
    for begin in (split, *(("val",) if split == "test" else ())):
        some = sorted(f for end in ("json", "jsonl") for f in folder.glob(f"{begin}*.{end}"))
        exact = [f for f in some if f.stem == begin]
        if len(exact) == 1 or len(some) == 1:
            return (exact or some)[0]
        if some:
            said = ", ".join(f.name for f in some)
            raise ValueError(f"{folder} has several files for {split!r}: {said}; one is needed")
    raise FileNotFoundError(f"{folder} has no {split}.json or {split}.jsonl")


def _images(said: str, folder: Path, rows: Sequence[Asked]) -> Path:
    """What the paths of images are seen from: where one of the first hundred is."""
    roots = [Path(said)] if said else [folder / beside for beside in _BESIDE]
    for root in roots:
        if any((root / row.image).is_file() for row in rows[:100]):
            return root
    looked = ", ".join(str(root / rows[0].image) for root in roots)
    raise FileNotFoundError(f"no image {looked}; say what the paths are seen from, as in 'images=FOLDER'")


@lru_cache(maxsize=32)
def _rows(file: str) -> tuple[tuple[Asked, ...], tuple[tuple[str, int], ...]]:
    """The questions of a file, and why and how often one was left out."""
    left: Counter[str] = Counter()
    rows = []
    for row in _read(Path(file)):
        if not isinstance(row, dict):
            left["no row with names"] += 1
            continue
        image = row.get("image")
        for question, answer in _turns(row):
            lacks = [
                what
                for what, given in (("image", image), ("question", question), ("answer", answer))
                if not isinstance(given, str) or not given.strip()
            ]
            if lacks:
                left[f"no {lacks[0]}"] += 1
            else:
                rows.append(Asked(str(image), question.strip(), answer.strip()))
    if not rows:
        said = ", ".join(f"{count} with {why}" for why, count in left.items()) or "it is empty"
        raise ValueError(f"{file} has no question that can be used: {said}")
    return tuple(rows), tuple(left.items())


def _read(file: Path) -> list[Any]:
    """The rows of a JSON list, or of JSON lines.

    The standard library reads them: published files mix types in columns that nobody needs (numbers and texts
    as ids), which a table does not take.
    """
    text = file.read_text(encoding="utf-8")
    whole = text.lstrip()[:1] == "["
    pieces = [text] if whole else text.split("\n")
    rows: list[Any] = []
    for number, piece in enumerate(pieces):
        try:
            if piece.strip():
                rows += json.loads(piece) if whole else [json.loads(piece)]
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number + error.lineno}: no JSON ({error.msg})") from error
    return rows


def _turns(row: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The questions of a row with their answers; of several answers to one the most frequent."""
    spoken = row.get("conversations")
    if isinstance(spoken, list):
        said = [s if isinstance(s, dict) else {} for s in spoken]
        asked = [s.get("value") for s in said if s.get("from") == "human"]
        answers = [s.get("value") for s in said if s.get("from") == "gpt"]
        asked = [q.replace(IMAGE, "") if isinstance(q, str) else q for q in asked]
        if len(asked) == len(answers) and asked:
            return list(zip(asked, answers, strict=True))
        return [(asked[0] if asked else None, None)]
    question, answer = row.get("text"), row.get("answer")
    if isinstance(answer, list):
        texts = [a.get("answer") if isinstance(a, dict) else a for a in answer]
        counted = Counter(t for t in texts if isinstance(t, str))
        answer = counted.most_common(1)[0][0] if counted else None
    return [(question.replace(IMAGE, "") if isinstance(question, str) else question, answer)]
