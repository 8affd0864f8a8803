"""Streams: samples in the order in which they are met, once each, and held-out probes.

A sample is a dict: `image` (PIL, RGB), `candidates` (texts), `label` (one of them), `context` (a text or
None), `experience` (int, for the harness; never shown to a learner), `mask` ((12, 12) bool, the truth for
relevance, or None) and `index` (the same sample has the same index in every order of a seed, so that features
can be kept).
"""

import difflib
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Sample = dict[str, Any]

PROMPT = "a photo of a {}"  # how a class is said to a dual encoder

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
    "scene-qa": ("stream_scene_qa", {}),
}


class Rendered(Sequence[Sample]):
    """Samples that are made when they are looked at: `render(key)` for each of `keys`."""

    def __init__(self, keys: Sequence[Any], render: Callable[[Any], Sample]) -> None:
        self.keys, self.render = keys, render

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
        skipped: why and how often a row was passed over.
    """

    name: str
    samples: Sequence[Sample]
    experiences: list[list[str]]
    classes: list[str]
    probes: list[Sequence[Sample]]
    batch: int = 1
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Steps: batches."""
        return -(-len(self.samples) // self.batch)

    def __iter__(self) -> Iterator[Any]:
        for group in self.batches():
            yield group if self.batch > 1 else group[0]

    def batches(self) -> Iterator[list[Sample]]:
        """The same as iterating, as lists whatever the batch size."""
        group: list[Sample] = []
        for place in range(len(self.samples)):
            try:
                group.append(self.samples[place])
            except (OSError, ValueError, SyntaxError) as error:
                self.skipped[type(error).__name__] += 1
                continue
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
        name: one of STREAMS.
        seed: of the samples.
        split: "train", or "test" for a stream of the held-out samples.
        order: of the experiences: 0, 1, 2, ... are permutations drawn from the seed.
        batch: samples per step.
        options: of that kind of stream (n_train, n_test, ...).

    Raises:
        ValueError: for an unknown name (the nearest is named), split, order, batch or option.
    """
    if name not in STREAMS:
        near = difflib.get_close_matches(name, STREAMS, n=1, cutoff=0.0)
        raise ValueError(
            f"no stream is called {name!r}; the nearest is {near[0]!r}. There are {', '.join(STREAMS)}"
        )
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: possible are 'train', 'test'")
    for what, given, least in (("seed", seed, 0), ("order", order, 0), ("batch", batch, 1)):
        if isinstance(given, bool) or not isinstance(given, int) or given < least:
            raise ValueError(f"{what}={given!r}: a whole number of at least {least} is needed")
    module_name, fixed = STREAMS[name]
    module = importlib.import_module(f"arr_coc.training.{module_name}")
    unknown = set(options) - set(module.OPTIONS)
    if unknown or set(options) & set(fixed):
        free = sorted(set(module.OPTIONS) - set(fixed))
        raise ValueError(
            f"{name} has no option {', '.join(sorted(options))}; its options are {', '.join(free)}"
        )
    stream: Stream = module.make(name, seed=seed, order=order, **{**fixed, **options})
    stream.batch = batch
    if split == "test":
        keys = [(p, i) for p, probe in enumerate(stream.probes) for i in range(len(probe))]
        probes = stream.probes
        stream.samples = Rendered(keys, lambda key: probes[key[0]][key[1]])
    return stream


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
    """A stream of anything that `datasets` loads; unreadable images and bad rows are skipped and counted.

    Args:
        source: a `datasets.Dataset`, a folder of images (one folder per class), or a name on the hub.
        image, label, context, experience: columns; labels are texts or a ClassLabel.
        prompt: how a class is said.

    Raises:
        FileNotFoundError: for a path that does not exist. KeyError: for a column that does not; the nearest
            is named.
    """
    import datasets

    if isinstance(source, (str, Path)):
        folder = Path(source)
        if folder.is_dir():
            data = datasets.load_dataset("imagefolder", data_dir=str(folder), split=split)
        elif folder.suffix or str(source).startswith((".", "/")):
            raise FileNotFoundError(f"{source} is no folder")
        else:
            data = datasets.load_dataset(str(source), split=split)
    else:
        data = source
    for column in filter(None, (image, label, context, experience)):
        if column not in data.column_names:
            near = difflib.get_close_matches(column, data.column_names, n=1, cutoff=0.0)
            raise KeyError(f"no column {column!r}; the nearest of {data.column_names} is {near[0]!r}")
    names = getattr(data.features[label], "names", None)
    raw = data.cast_column(image, datasets.Image(decode=False))
    said = [prompt.format(_text(value, names)) for value in data[label]]
    classes = list(dict.fromkeys(said))
    turns = list(data[experience]) if experience else [0] * len(said)

    def render(place: int) -> Sample:
        row = raw[place]
        return {
            "image": _decode(row[image]),
            "candidates": classes,
            "label": said[place],
            "context": row[context] if context else None,
            "experience": int(turns[place]),
            "mask": None,
            "index": place,
        }

    taught = [sorted({s for s, t in zip(said, turns, strict=True) if t == e}) for e in sorted(set(turns))]
    return Stream(str(source)[:80], Rendered(range(len(said)), render), taught, classes, [], batch)


def _text(value: Any, names: Iterable[str] | None) -> str:
    return str(list(names)[value] if names is not None and isinstance(value, int) else value)


def _decode(cell: Any) -> Any:
    """The picture of an undecoded image cell; raises OSError for one that cannot be read."""
    import io

    from PIL import Image

    if cell is None:
        raise ValueError("no image")
    picture = Image.open(io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"])
    return picture.convert("RGB")
