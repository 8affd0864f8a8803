"""Percepts of a generative model, once: one entry for every taught token of every answer.

An answer counts when greedy decoding gives exactly it, and that is so if and only if every token of it, the
end included, scores best given the ones before: so stored percepts at the answers' positions tell it.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.percepts import Progress, faults, good
from arr_coc.percept import Percept
from arr_coc.training import questions
from arr_coc.training.streams import Sample
from arr_coc.training.train_generative import pixels


@dataclass(frozen=True)
class WordBatch:
    """The entries of some samples, as a method sees them (see `percepts.Batch`).

    Args:
        percept: E entries.
        labels: the token taught at each entry, as text, E of them.
        own: the frozen model's logits, (E, V).
        mask: the truth for relevance at the first entry of each sample, (E, N); empty at the others.
        questions, answers: of each sample, for the methods that look for themselves; with `images`.
        rows: of the store.
    """

    percept: Percept
    labels: list[str]
    own: Tensor
    mask: Tensor
    questions: list[str]
    answers: list[str]
    rows: Tensor
    images: list[Any] | None = None

    def own_logits(self, texts: Sequence[str]) -> Tensor:
        """The frozen model's logits of these tokens, (E, len(texts))."""
        return self.own[:, torch.tensor([int(t) for t in texts])]


@dataclass(frozen=True)
class WordStore:
    """What the frozen model makes of n samples with E taught tokens in all.

    Args:
        tokens: per site (n, N, d), float16. context: (n, C). match: the percepts' own score, (n, N). mask:
            (n, N).
        start: first entry of each sample, and E, (n + 1,).
        attention: (E, N). state: (E, S). own: (E, V). key: the token taught, (E,).
        classes: every answer that occurs. pieces: its tokens, the end included.
        place: row of a sample by its split and index.
        images: the pictures, where they are few.
        skipped: why and how often a sample was passed over; what was has no place.
    """

    tokens: tuple[Tensor, ...]
    context: Tensor
    match: Tensor
    mask: Tensor
    start: Tensor
    attention: Tensor
    state: Tensor
    own: Tensor
    key: Tensor
    classes: list[str]
    pieces: dict[str, list[int]]
    questions: list[str]
    answers: list[str]
    place: dict[tuple[str, int], int]
    grid: tuple[int, int] | None
    seconds: float
    images: list[Any] | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()  # a question is part of the sequence, not a text of its own

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def site_widths(self) -> list[int]:
        return [t.shape[-1] for t in self.tokens]

    @property
    def state_width(self) -> int:
        return self.state.shape[1]

    @property
    def candidates(self) -> list[str]:
        """The whole vocabulary: nobody tells a generative model what may be said."""
        return [str(i) for i in range(self.own.shape[1])]

    def union(self, classes: list[str]) -> list[str]:
        return self.candidates

    def beside(self, taught: Sequence[str]) -> "WordStore":
        """All of it: an answer that is taught may be right about other questions too."""
        return self

    def allowed(self, answers: Sequence[str]) -> Tensor:
        """Which tokens occur in these answers, (V,)."""
        said = torch.zeros(self.own.shape[1], dtype=torch.bool)
        said[[i for a in answers for i in self.pieces[a]]] = True
        return said

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of these samples, in order, and whose they are (a place in `rows`), (E',) each."""
        begin, count = self.start[rows], self.start[rows + 1] - self.start[rows]
        whose = torch.arange(len(rows)).repeat_interleave(count)
        within = torch.arange(len(whose)) - (count.cumsum(0) - count)[whose]
        return begin[whose] + within, whose

    def labels(self, rows: Tensor) -> list[str]:
        """The answer of each of these samples."""
        return [self.answers[i] for i in rows.tolist()]

    def right(self, scores: Tensor, rows: Tensor) -> Tensor:
        """Whether every token of a sample's answer scores best, (len(rows),) of 0 and 1."""
        entries, whose = self.entries(rows)
        hit = (scores.argmax(1) == self.key[entries]) & (scores.max(1).values > -torch.inf)
        return (torch.zeros(len(rows)).index_add(0, whose, (~hit).float()) == 0).float()

    def sure(self, best: Tensor, rows: Tensor) -> Tensor:
        """How sure the answers of these samples are, (len(rows),): the product over the tokens of each of the
        probability of the best one, (E,), given the right ones before it, as `right` asks too."""
        _, whose = self.entries(rows)
        return torch.zeros(len(rows)).double().index_add(0, whose, best.double().log()).exp()

    def batch(self, rows: Tensor, images: list[Any] | None = None) -> WordBatch:
        """The entries of these samples."""
        entries, whose = self.entries(rows)
        sample = rows[whose]
        first = torch.ones(len(whose), dtype=torch.bool)
        first[1:] = whose[1:] != whose[:-1]
        percept = Percept(
            tuple(t[sample] for t in self.tokens),
            self.attention[entries],
            self.context[sample],
            own=self.match[sample],
            state=self.state[entries],
            grid=self.grid,
            asked="sequence",
        )
        return WordBatch(
            percept,
            [str(int(k)) for k in self.key[entries]],
            self.own[entries],
            self.mask[sample] & first.unsqueeze(1),
            [self.questions[i] for i in rows.tolist()],
            self.labels(rows),
            rows,
            images,
        )


def said(
    processor: Any, images: Sequence[Any], asked: Sequence[str], answers: Sequence[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """The model's inputs for questions with their answers, and the labels, (B, T) with -100 where nothing is
    taught."""
    rows = [[questions.Turn(q, a, "")] for q, a in zip(asked, answers, strict=True)]
    packed = questions.pack(processor.tokenizer, rows)
    inputs = {
        "input_ids": packed["input_ids"],
        "attention_mask": (packed["turn"] >= 0).long(),
        "pixel_values": pixels(list(images)),
    }
    return inputs, packed["labels"]


def perceive_words(
    attached: Any,
    processor: Any,
    groups: Sequence[tuple[str, Sequence[Sample]]],
    classes: list[str],
    batch: int = 16,
    progress: Progress | None = None,
    keep_images: bool = False,
) -> WordStore:
    """Run the frozen model over samples with their answers, once each.

    Args:
        attached: an `ArrCocModel` over a generative model.
        groups: (split, samples) one after another; `context` is the question and `label` the answer.
        classes: every answer that occurs. A sample whose answer has a character that the tokenizer lacks is
            passed over: all such answers would be the same to the model.
    """
    total, done, spent = sum(len(samples) for _, samples in groups), 0, 0.0
    skipped: Counter[str] = Counter()
    unknown = processor.tokenizer.unk_token_id
    pieces = {c: processor.tokenizer(c)["input_ids"] for c in classes}
    parts: dict[str, list[Tensor]] = {}
    tokens: list[list[Tensor]] = []
    asked: list[str] = []
    answers: list[str] = []
    place: dict[tuple[str, int], int] = {}
    kept: list[Any] = []
    for split, samples in groups:
        for begin in range(0, len(samples), batch):
            some = good(samples, range(begin, min(begin + batch, len(samples))), skipped)
            sayable = [s for s in some if unknown not in pieces.get(s["label"], ())]
            if len(sayable) < len(some):
                skipped["an answer that the tokenizer lacks characters for"] += len(some) - len(sayable)
            if not (some := sayable):
                continue
            images = [s["image"] for s in some]
            q, a = [s["context"] for s in some], [s["label"] for s in some]
            inputs, labels = said(processor, images, q, a)
            began = time.perf_counter()
            seen = attached.perceive(labels=labels, **inputs)
            spent += time.perf_counter() - began
            taught = labels[:, 1:] != -100
            count = taught.sum(1)
            first = count.cumsum(0) - count  # a sample's tokens are the same at each of its entries
            rows = {
                "count": count,
                "context": seen.percept.context[first],
                "match": torch.zeros_like(seen.percept.attention[first])
                if seen.percept.own is None
                else seen.percept.own[first],
                "attention": seen.percept.attention,
                "state": seen.percept.state,
                "own": seen.output.logits[:, :-1][taught].float(),
                "key": labels[:, 1:][taught],
                "mask": torch.stack(
                    [
                        torch.from_numpy(s["mask"]).flatten()
                        if s["mask"] is not None
                        else torch.zeros(seen.percept.attention.shape[1], dtype=torch.bool)
                        for s in some
                    ]
                ),
            }
            for name, tensor in rows.items():
                parts.setdefault(name, []).append(tensor.clone())
            tokens.append([t[first].half() for t in seen.percept.tokens])
            place.update({(split, s["index"]): done + i for i, s in enumerate(some)})
            asked, answers, done = asked + q, answers + a, done + len(some)
            kept += images if keep_images else []
            if progress is not None:
                progress("frozen forward", done, total)
    if not done:
        raise ValueError(f"no sample could be read: {faults(skipped)}")
    whole: dict[str, Any] = {name: torch.cat(tensors) for name, tensors in parts.items()}
    count = whole.pop("count")
    end = [processor.tokenizer.eos_token_id]
    return WordStore(
        tokens=tuple(torch.cat(site) for site in zip(*tokens, strict=True)),
        start=torch.cat([count.new_zeros(1), count.cumsum(0)]),
        classes=classes,
        pieces={c: [*ids, *end] for c, ids in pieces.items()},
        questions=asked,
        answers=answers,
        place=place,
        grid=seen.percept.grid,
        seconds=spent / done,
        images=kept or None,
        skipped=dict(skipped),
        **whole,
    )
