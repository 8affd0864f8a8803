"""Percepts, once: a frozen model never changes its mind, so every method and ablation reads the same store.

A `Store` holds what the model makes of a stream's samples (13,500 samples x 144 tokens x 2 sites x 192 in
float16 are 1.5 GB); a `Plan` says in which order of experiences they are met. Orders of a seed share a store.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arr_coc.adapters.dual_encoder import text_embedding
from arr_coc.percept import Percept
from arr_coc.training.streams import BadRow, Sample, Stream, answers_met, outline

PIXELS = 24  # side of the raw pictures that the pixel controls see

Progress = Callable[[str, int, int], None]


class TextBook:
    """Unit-length text embeddings by text, (len(texts), P); each text goes through the text tower once."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor
        self.scale = float(model.logit_scale.detach().exp())
        self._known: dict[str, Tensor] = {}

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, (len(texts), T)."""
        asked = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        device = self.model.logit_scale.device
        return {k: asked[k].to(device) for k in ("input_ids", "attention_mask")}

    def __call__(self, texts: Sequence[str]) -> Tensor:
        missing = [t for t in dict.fromkeys(texts) if t not in self._known]
        for start in range(0, len(missing), 256):
            some = missing[start : start + 256]
            with torch.no_grad():
                rows = text_embedding(self.model.get_text_features(**self.tokens(some)))
            self._known.update(zip(some, rows.float().cpu(), strict=True))
        return torch.stack([self._known[t] for t in texts])


@dataclass(frozen=True)
class Batch:
    """Some rows of a store, as a method sees them.

    Args:
        percept: what the frozen pass left, tokens still in float16.
        labels: one text per sample.
        contexts: one text per sample, None where there is none.
        image: the image embedding, unit length, (B, P).
        pooled: the tower's pooled output beside the mean of its last tokens, (B, 2H).
        pixels: RGB at 24 px, 0 to 1, (B, 1728).
        mask: the truth for relevance, (B, N) bool, or None.
        texts: embeds texts.
        rows: of the store.
        images: PIL images, for the methods that look for themselves.
    """

    percept: Percept
    labels: list[str]
    contexts: list[str | None]
    image: Tensor
    pooled: Tensor
    pixels: Tensor
    mask: Tensor | None
    texts: TextBook
    rows: Tensor
    images: list[Any] | None = None

    def own_logits(self, texts: Sequence[str]) -> Tensor:
        """The frozen model's scores of these texts, (B, len(texts))."""
        return self.texts.scale * self.image @ self.texts(texts).T


@dataclass(frozen=True)
class Store:
    """What the frozen model makes of n samples; tensors as in `Batch`, (n, ...).

    Args:
        label: row of each sample's label in `classes`.
        cue: row of each sample's context in `contexts`, -1 for none.
        place: row of a sample by its split and index.
        grid: rows and columns that the tokens stand in.
        seconds: of one frozen forward pass per sample, as it was run here.
        images: the pictures, where they are few.
        skipped: why and how often a sample was passed over; what was has no place.
    """

    state_width = 0  # a dual encoder's percept has no state

    tokens: tuple[Tensor, ...]
    attention: Tensor
    context: Tensor
    own: Tensor
    image: Tensor
    pooled: Tensor
    pixels: Tensor
    label: Tensor
    cue: Tensor
    mask: Tensor | None
    classes: list[str]
    contexts: list[str]
    place: dict[tuple[str, int], int]
    texts: TextBook
    grid: tuple[int, int] | None = None
    seconds: float = field(default=0.0, compare=False)
    images: list[Any] | None = field(default=None, compare=False)
    skipped: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def candidates(self) -> list[str]:
        """The texts among which a probe is answered."""
        return self.classes

    def union(self, classes: list[str]) -> list[str]:
        """These samples' own classes, and these others."""
        return [*self.classes, *(c for c in classes if c not in self.classes)]

    def allowed(self, answers: Sequence[str]) -> Tensor:
        """Which of the candidates are among these answers, (len(candidates),)."""
        said = set(answers)
        return torch.tensor([t in said for t in self.classes])

    def labels(self, rows: Tensor) -> list[str]:
        """What is right for each of these rows."""
        return [self.classes[i] for i in self.label[rows].tolist()]

    def right(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Whether the best-scored text is right, (len(rows),) of 0 and 1; who can say nothing is wrong."""
        best = scores.max(1)
        return ((best.indices == self.label[rows]) & (best.values > -torch.inf)).float()

    def sure(self, best: Tensor, rows: Tensor) -> Tensor:
        """How sure the answers of these rows are, (len(rows),), of the probability of the best text each."""
        return best

    def __len__(self) -> int:
        return len(self.label)

    def beside(self, taught: Sequence[str]) -> "Store | None":
        """The samples that none of these classes is the label of, and their classes; None where all are."""
        kept = [i for i, row in enumerate(self.label.tolist()) if self.classes[row] not in taught]
        if len(kept) == len(self) or not kept:
            return self if kept else None
        classes = [c for c in self.classes if c not in taught]
        named = ("attention", "context", "own", "image", "pooled", "pixels", "cue")
        return replace(
            self,
            tokens=tuple(t[kept] for t in self.tokens),
            mask=None if self.mask is None else self.mask[kept],
            label=torch.tensor([classes.index(self.classes[i]) for i in self.label[kept].tolist()]),
            classes=classes,
            place={k: kept.index(row) for k, row in self.place.items() if row in kept},
            images=None if self.images is None else [self.images[i] for i in kept],
            **{name: getattr(self, name)[kept] for name in named},
        )

    def batch(self, rows: Tensor, images: list[Any] | None = None) -> Batch:
        """These rows, in this order."""
        percept = Percept(
            tuple(t[rows] for t in self.tokens),
            self.attention[rows],
            self.context[rows],
            self.own[rows],
            grid=self.grid,
            asked="text" if bool((self.cue[rows] >= 0).all()) else "image",
        )
        return Batch(
            percept,
            self.labels(rows),
            [self.contexts[i] if i >= 0 else None for i in self.cue[rows].tolist()],
            self.image[rows],
            self.pooled[rows],
            self.pixels[rows].float() / 255,
            None if self.mask is None else self.mask[rows],
            self.texts,
            rows,
            images,
        )

    @property
    def site_widths(self) -> list[int]:
        return [t.shape[-1] for t in self.tokens]

    def context_matrix(self) -> Tensor:
        """Embedding of each distinct context, (len(contexts), C)."""
        return self.texts(self.contexts) if self.contexts else torch.zeros(0, self.context.shape[1])


@dataclass(frozen=True)
class Plan:
    """One order of a stream over a store.

    Args:
        train: rows of the store in the order in which they are met.
        ends: samples seen when each experience ends; of a mixed stream, T equal parts.
        probes: rows of each experience's probe.
        experiences: what each experience teaches.
        met: the classes that may be answers up to each experience.
        stream: to render images from, and for the candidates of its probes.
        places: of each probe row, its position in the stream's probe.
        shown: of each row of `train`, its position in the stream.
    """

    train: Tensor
    ends: list[int]
    probes: list[Tensor]
    experiences: list[list[str]]
    met: list[list[str]]
    stream: Stream
    places: list[list[int]]
    shown: list[int]


def thin(count: int, limit: int | None) -> list[int]:
    """At most `limit` of `count` places, evenly spread; all of them without a limit."""
    if limit is None or limit >= count:
        return list(range(count))
    return np.linspace(0, count - 1, limit).astype(int).tolist()


def plan(stream: Stream, store: Store, probe_limit: int | None = None) -> Plan:
    """The order of this stream over a store that has its samples; those that it passed over are left out.

    Args:
        probe_limit: samples per probe at most, evenly spread; the count is kept in the records.

    Raises:
        ValueError: for an experience or a probe of which nothing could be read, and for a probe that is
            answered among candidates without its labels.
    """
    index, turn = outline(stream.samples)
    shown = [i for i, number in enumerate(index) if ("train", number) in store.place]
    turn = [turn[i] for i in shown]
    count = len(stream.experiences)
    if turn == sorted(turn):
        ends = [sum(t <= e for t in turn) for e in range(count)]
    else:
        ends = [len(turn) * (e + 1) // count for e in range(count)]
    places, probes = [], []
    for probe in stream.probes:
        asked, _ = outline(probe)
        there = [i for i, number in enumerate(asked) if ("test", number) in store.place]
        kept = [there[i] for i in thin(len(there), probe_limit)]
        places.append(kept)
        probes.append(torch.tensor([store.place["test", asked[i]] for i in kept]))
    nothing = [e for e in range(count) if ends[e] == (ends[e - 1] if e else 0) or not places[e]]
    if nothing:
        said = ", ".join(str(stream.experiences[e]) for e in nothing[:3])
        raise ValueError(f"{stream.name}: no sample could be read of {said} ({faults(store.skipped)})")
    train = torch.tensor([store.place["train", index[i]] for i in shown])
    for texts, rows in zip(stream.asked, probes, strict=False):
        others = {store.classes[i] for i in store.label[rows].tolist()} - set(texts)
        if others:
            raise ValueError(f"{stream.name}: {min(others)!r} is a label, but none of its probe's candidates")
    return Plan(train, ends, probes, stream.experiences, answers_met(stream), stream, places, shown)


def good(samples: Sequence[Sample], places: Sequence[int], skipped: Counter[str]) -> list[Sample]:
    """The samples at these places; those that cannot be made are passed over, and counted."""
    made = []
    for place in places:
        try:
            made.append(samples[place])
        except BadRow as error:
            skipped[str(error)] += 1
    return made


def faults(skipped: dict[str, int]) -> str:
    """Why samples were passed over, as a sentence's end."""
    return ", ".join(f"{count} with {why}" for why, count in skipped.items()) or "none was there"


def perceive_all(
    perceive: Callable[..., Any],
    texts: TextBook,
    groups: Sequence[tuple[str, Sequence[Sample]]],
    classes: list[str],
    batch: int = 32,
    progress: Progress | None = None,
) -> Store:
    """Run the frozen model over samples, once each.

    Args:
        perceive: `ArrCocModel.perceive`, or anything with its signature.
        groups: (split, samples) one after another.
        classes: every label that occurs.
    """
    total = sum(len(samples) for _, samples in groups)
    out: dict[str, Any] = {}
    contexts: list[str] = []
    place: dict[tuple[str, int], int] = {}
    masked, done, spent = True, 0, 0.0
    skipped: Counter[str] = Counter()
    candidates = texts.tokens(classes)
    for split, samples in groups:
        for start in range(0, len(samples), batch):
            some = good(samples, range(start, min(start + batch, len(samples))), skipped)
            if not some:
                continue
            images = [s["image"] for s in some]
            shown = texts.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            asked = [s["context"] for s in some]
            extra = {}
            if all(c is not None for c in asked):
                said = texts.tokens(asked)
                extra = {"context_ids": said["input_ids"], "context_attention_mask": said["attention_mask"]}
                contexts.extend(c for c in dict.fromkeys(asked) if c not in contexts)
            began = time.perf_counter()
            seen = perceive(pixel_values=shown.to(candidates["input_ids"].device), **candidates, **extra)
            spent += time.perf_counter() - began
            vision = seen.output.vision_model_output
            masked = masked and all(s["mask"] is not None for s in some)
            rows = {
                "attention": seen.percept.attention,
                "context": seen.percept.context,
                "own": seen.percept.own,
                "image": torch.nn.functional.normalize(seen.output.image_embeds.float(), dim=1),
                "pooled": torch.cat([vision.pooler_output, vision.last_hidden_state.mean(1)], 1),
                "pixels": torch.from_numpy(np.stack([_pixels(i) for i in images])),
                "label": torch.tensor([classes.index(s["label"]) for s in some]),
                "cue": torch.tensor([contexts.index(c) if extra else -1 for c in asked]),
            }
            if masked:
                rows["mask"] = torch.from_numpy(np.stack([s["mask"] for s in some])).flatten(1)
            for site, tokens in enumerate(seen.percept.tokens):
                rows[f"tokens_{site}"] = tokens.half()
            for name, tensor in rows.items():
                kept = tensor.float() if tensor.dtype in (torch.float64, torch.bfloat16) else tensor
                if name not in out:  # one buffer each, filled as we go: never two copies of the tokens
                    out[name] = torch.empty(total, *kept.shape[1:], dtype=kept.dtype)
                out[name][done : done + len(some)] = kept.cpu()
            place.update({(split, s["index"]): done + i for i, s in enumerate(some)})
            done += len(some)
            if progress is not None:
                progress("frozen forward", done, total)
    if not done:
        raise ValueError(f"no sample could be read: {faults(skipped)}")
    if done < total:
        out = {name: tensor[:done].clone() for name, tensor in out.items()}
    tokens = tuple(out.pop(name) for name in sorted(n for n in out if n.startswith("tokens_")))
    mask = out.pop("mask", None)
    return Store(
        tokens=tokens,
        mask=mask if masked else None,
        classes=classes,
        contexts=contexts,
        place=place,
        texts=texts,
        grid=seen.percept.grid,
        seconds=spent / done,
        skipped=dict(skipped),
        **out,
    )


def _pixels(image: Any) -> np.ndarray:
    return np.asarray(image.resize((PIXELS, PIXELS))).reshape(-1)
