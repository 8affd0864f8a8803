"""Streams: samples in the order in which they are met, once each, and held-out probes.

A sample is a dict: `image` (PIL, RGB), `candidates` (texts), `label` (one of them), `context` (a text or
None), `experience` (int, for the harness; never shown to a learner), `mask` ((12, 12) bool, the truth for
relevance, or None) and `index` (the same sample has the same index in every order of a seed, so that features
can be kept).
"""

import difflib
import importlib
import inspect
import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.training import sources

Sample = dict[str, Any]

LEAST_SIDE = 4  # pixels: of three rows or one, processors mistake rows for colours
PROMPT = "a photo of a {}"  # how a class is said to a dual encoder


class BadRow(ValueError):
    """A row of somebody's data that no sample can be made of; a stream counts it and goes on."""


# name -> module and the options that make this stream of it; modules are imported when asked for
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "split-fashion": ("stream_fashion", {}),
    "cued-clutter": ("stream_cued", {}),
    "cued-clutter-novel": ("stream_cued", {"cues": "novel"}),
    "cued-clutter-reversed": ("stream_cued", {"cues": "reversed"}),
    "cued-clutter-3x3": ("stream_cued", {"grid": 3}),
    "cued-clutter-novel-3x3": ("stream_cued", {"cues": "novel", "grid": 3}),
    "cued-clutter-place": ("stream_cued", {"cues": "place"}),
    "cued-clutter-artwork": ("stream_cued", {"cues": "artwork"}),
    "cued-clutter-classes": ("stream_cued", {"by": "classes"}),
    "cued-clutter-novel-classes": ("stream_cued", {"cues": "novel", "by": "classes"}),
    "same-different": ("stream_same", {}),
    "moving": ("stream_moving", {}),
    "moving-wrap": ("stream_moving", {"edge": "wrap"}),
    "moving-lead": ("stream_moving", {"lead": 3}),
    "scene-qa": ("stream_scene_qa", {}),
    "permuted-fashion": ("stream_fashion_domains", {"change": "permuted"}),
    "rotated-fashion": ("stream_fashion_domains", {"change": "rotated"}),
    "emoji-vendors": ("stream_emoji", {"by": "artworks"}),
    "emoji-groups": ("stream_emoji", {"by": "groups"}),
    "easy-vqa": ("stream_easy_vqa", {}),
    "cifar-100": ("stream_sets", {"kind": "cifar-100"}),
    "imagenet-r": ("stream_sets", {"kind": "imagenet-r"}),
    "core50": ("stream_core50", {"by": "sessions"}),
    "core50-nc": ("stream_core50", {"by": "classes"}),
    "mtil": ("stream_mtil", {"kind": "mtil"}),
    "x-tail": ("stream_mtil", {"kind": "x-tail"}),
    "coin": ("stream_instructions", {"kind": "coin"}),
    "ucit": ("stream_instructions", {"kind": "ucit"}),
}


class Rendered(Sequence[Sample]):
    """Samples that are made when they are looked at: `render(key)` for each of `keys`.

    Args:
        told: the label of a key, where it is known without rendering; None for a bad row.
    """

    def __init__(
        self,
        keys: Sequence[Any],
        render: Callable[[Any], Sample],
        told: Callable[[Any], str | None] | None = None,
    ) -> None:
        self.keys, self.render, self.told = keys, render, told

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.render(key) for key in self.keys[index]]
        return self.render(self.keys[index])


@dataclass
class Stream:
    """One pass over samples, in order, and the probes it is examined with.

    Args:
        name: of the stream.
        samples: in the order in which they are met.
        experiences: what each experience teaches, in order.
        classes: every answer that occurs, in the order in which they are met.
        probes: held-out samples, one sequence per experience.
        batch: samples per step; 1 yields samples, more yields lists.
        skipped: why and how often a row was passed over; complete once the stream has been walked.
        met: the answers that are possible up to each experience, where experiences are no lists of answers.
        outdated: experiences that a later one contradicts: what is right at the end is not what they taught.
        rivals: by experience, the answers that its samples' labels are told from, where those are not all
            classes (questions of another kind have other answers).
        asked: by probe, the candidates among which it is answered, where it is told from which these are (a
            task that is known when it is tested); empty where every class may be the answer.
        notes: what a reader of its results has to know, a sentence each.
        delay: steps after which the label of a sample comes; who feeds a learner waits so long (see
            `eval.exam.one`).
    """

    name: str
    samples: Sequence[Sample]
    experiences: list[list[str]]
    classes: list[str]
    probes: list[Sequence[Sample]]
    batch: int = 1
    skipped: Counter[str] = field(default_factory=Counter)
    met: list[list[str]] = field(default_factory=list)
    outdated: tuple[int, ...] = ()
    rivals: list[list[str]] = field(default_factory=list)
    asked: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    delay: int = 0

    def __len__(self) -> int:
        """Steps: batches."""
        return -(-len(self.samples) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        for group in self.batches():
            yield group if self.batch > 1 else group[0]

    def batches(self) -> Iterator[list[Sample]]:
        """The same as iterating, as lists whatever the batch size.

        Raises:
            RuntimeError: if a sample came twice: one pass is one pass.
        """
        group: list[Sample] = []
        seen: set[int] = set()
        self.skipped.clear()
        for place in range(len(self.samples)):
            try:
                sample = self.samples[place]
            except BadRow as error:
                self.skipped[str(error)] += 1
                continue
            if sample["index"] in seen:
                raise RuntimeError(f"{self.name} shows sample {sample['index']} twice")
            seen.add(sample["index"])
            group.append(sample)
            if len(group) == self.batch:
                yield group
                group = []
        if group:
            yield group


def load(
    name: str, seed: int = 0, split: str = "train", order: int = 0, batch: int = 1, **options: Any
) -> Stream:
    """A built-in stream.

    Args:
        name: one of STREAMS, with options behind it where they are wanted: its own, or those of every stream
            (`stream_options`), as in "split-fashion?blurry=0.1&noise=0.2".
        seed: of the samples.
        split: "train", or "test" for a stream of the held-out samples.
        order: of the experiences: 0, 1, 2, ... are permutations drawn from the seed.
        batch: samples per step.
        options: of that kind of stream (n_train, n_test, ...).

    Raises:
        ValueError: for an unknown name (the nearest is named), split, order, batch or option.
    """
    from arr_coc.training import stream_options  # it changes streams, and so knows this module

    plain, said = stream_options.split_name(name)
    if plain not in STREAMS:
        near = difflib.get_close_matches(plain, STREAMS, n=1, cutoff=0.0)
        raise ValueError(
            f"no stream is called {plain!r}; the nearest is {near[0]!r}. There are {', '.join(STREAMS)}"
        )
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: possible are 'train', 'test'")
    for what, given, least in (("seed", seed, 0), ("order", order, 0), ("batch", batch, 1)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise ValueError(f"{what}={given!r}: a whole number of at least {least} is needed")
    module_name, fixed = STREAMS[plain]
    module = importlib.import_module(f"arr_coc.training.{module_name}")
    free = [option for option in module.OPTIONS if option not in fixed]
    for option in options:
        if option not in free:
            near = difflib.get_close_matches(option, free, n=1, cutoff=0.0)
            raise ValueError(
                f"{plain} has no option {option!r}; the nearest is {near[0]!r}. "
                f"Its options are {', '.join(free)}"
            )
        if option in said:
            raise ValueError(f"{option} is given twice: {options[option]!r}, and in {name!r}")
    own = {k: _value(k, v, module.make) for k, v in said.items() if k in free}
    further = stream_options.checked({k: v for k, v in said.items() if k not in free}, free)
    stream: Stream = module.make(
        stream_options.written(name), seed=seed, order=order, **{**fixed, **own, **options}
    )
    stream = stream_options.apply(stream, seed, order, **further)
    stream.batch = batch
    if split == "test":
        keys = [(p, i) for p, probe in enumerate(stream.probes) for i in range(len(probe))]
        probes = stream.probes
        stream.samples = Rendered(keys, lambda key: probes[key[0]][key[1]])
    return stream


def _value(name: str, text: str, make: Callable[..., Any]) -> Any:
    """What is written behind a stream's name, as the kind of value that the option's own default is."""
    default = inspect.signature(make).parameters[name].default
    if isinstance(default, tuple):
        return tuple(text.split(","))
    if isinstance(default, str):
        return text
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise ValueError(f"{name}={text}: possible are true, false")
        return text == "true"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{name}={text}: a whole number is needed") from None


def outline(samples: Sequence[Sample]) -> tuple[list[int], list[int]]:
    """Index and experience of every sample, without rendering where the keys say them already."""
    keys: Sequence[Any] = getattr(samples, "keys", [])
    if len(keys) and all(hasattr(k, "index") and hasattr(k, "turn") for k in keys):
        return [k.index for k in keys], [k.turn for k in keys]
    if len(keys) and all(isinstance(k, tuple) and len(k) == 3 and isinstance(k[0], str) for k in keys):
        return [k[1] for k in keys], [k[2] for k in keys]
    seen = [(s["index"], s["experience"]) for s in samples]
    return [i for i, _ in seen], [e for _, e in seen]


def labels(samples: Sequence[Sample]) -> list[str | None]:
    """The label of every sample, without rendering where the keys tell it; None for a bad row."""
    if isinstance(samples, Rendered) and samples.told is not None:
        return [samples.told(key) for key in samples.keys]
    found: list[str | None] = []
    for place in range(len(samples)):
        try:
            found.append(samples[place]["label"])
        except BadRow:
            found.append(None)
    return found


def answers_met(stream: Stream) -> list[list[str]]:
    """The answers that are possible up to each experience; all classes, where experiences are cues."""
    count = len(stream.experiences)
    met = stream.met or [[n for e in stream.experiences[: k + 1] for n in e] for k in range(count)]
    return met if {n for e in met for n in e} <= set(stream.classes) else [stream.classes] * count


def from_dataset(
    source: Any,
    image: str = "image",
    label: str = "label",
    context: str | None = None,
    experience: str | None = None,
    split: str = "train",
    batch: int = 1,
    prompt: str = PROMPT,
) -> Stream:
    """A stream of anything that `datasets` loads; bad rows are skipped and counted.

    Rows come in their own order and are read when they are met; there are no probes. What is learned is what
    the good rows alone would teach, bit for bit. Bad are rows without a label that names a class, without an
    experience or a text where those are asked for, and with an image that is missing, unreadable, not finite,
    with a side under `LEAST_SIDE` pixels, or with more than `PIL.Image.MAX_IMAGE_PIXELS` (89 million; such
    an image is not unpacked).

    Args:
        source: a `datasets.Dataset`, a folder of images (one folder per class), or a name on the hub.
        image, label, context, experience: columns; labels are texts or a ClassLabel, experiences are
            whole numbers.
        split: of a folder or a name.
        prompt: how a class is said.

    Raises:
        FileNotFoundError: for a path that is no folder. KeyError: for a column that does not exist; the
            nearest is named. TypeError: for a source without a length. ValueError: for a prompt without {},
            or a batch below 1.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r}: a whole number of at least 1 is needed")
    if prompt.format("x") == prompt:
        raise ValueError(f"prompt={prompt!r} has no {{}} for the class")
    import datasets

    data = sources.opened(source, split, hub=True) if isinstance(source, str | Path) else source
    if not isinstance(data, datasets.Dataset):
        raise TypeError(f"{type(data).__name__} is no datasets.Dataset: give one split, not streamed")
    sources.check_columns(data, list(filter(None, (image, label, context, experience))))
    names = getattr(data.features[label], "names", None)
    raw = data.cast_column(image, datasets.Image(decode=False))
    said = [_class_text(value, names, prompt) for value in data[label]]
    turns = [_turn(value) for value in data[experience]] if experience else [0] * len(said)
    classes = list(dict.fromkeys(text for text in said if text is not None))

    def render(key: tuple[str, int, int]) -> Sample:
        place = key[1]
        row, text, turn = raw[place], said[place], turns[place]
        if text is None:
            raise BadRow("no label")
        if turn is None:
            raise BadRow("no experience")
        if context and not (isinstance(row[context], str) and row[context].strip()):
            raise BadRow("no context")
        return {
            "image": decoded(row[image]),
            "candidates": classes,
            "label": text,
            "context": row[context] if context else None,
            "experience": turn,
            "mask": None,
            "index": place,
        }

    taught = [
        list(dict.fromkeys(s for s, t in zip(said, turns, strict=True) if t == e and s is not None))
        for e in sorted({t for t in turns if t is not None})
    ]
    name = str(source) if isinstance(source, (str, Path)) else "dataset"
    keys = [("train", place, turn or 0) for place, turn in enumerate(turns)]
    return Stream(name, Rendered(keys, render, lambda key: said[key[1]]), taught, classes, [], batch)


def _class_text(value: Any, names: Sequence[str] | None, prompt: str) -> str | None:
    """The class of a cell as it is said, or None for a cell that names no class."""
    if names is not None:
        known = isinstance(value, int) and 0 <= value < len(names)  # datasets writes -1 for unlabelled
        return prompt.format(names[value]) if known else None
    if not isinstance(value, str | int) or not str(value).strip():
        return None
    return prompt.format(value)


def _turn(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def decoded(cell: Any) -> Any:
    """The picture of an undecoded image cell, RGB."""
    from PIL import Image

    if not cell or (cell.get("bytes") is None and not cell.get("path")):
        raise BadRow("no image")
    try:
        data = cell.get("bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is said as a bad row
            picture = Image.open(cell["path"] if data is None else io.BytesIO(data))
        with picture:
            most = Image.MAX_IMAGE_PIXELS  # known before a pixel is unpacked
            if most is not None and picture.width * picture.height > most:
                raise BadRow("huge image")
            if min(picture.size) < LEAST_SIDE:
                raise BadRow("tiny image")
            if picture.mode == "F" and not np.isfinite(np.asarray(picture)).all():
                raise BadRow("image with NaN or infinity")
            return picture.convert("RGB")
    except BadRow:
        raise
    except Exception as error:  # decoders raise anything at all over foreign bytes
        raise BadRow(f"unreadable image ({type(error).__name__})") from error
