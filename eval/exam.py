"""One method, one pass, examined after every experience: the raw matrices that all else is derived from.

R[t][j] is the accuracy on probe j after experience t (row 0 before any learning); C[t][k] the accuracy on the
union of probes 1..k with the answers restricted to the classes of 1..k; P and CP the same for pointing.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval import percepts
from arr_coc.eval.methods_features import Method
from arr_coc.eval.percepts import Plan, Progress, Store

Record = dict[str, Any]
EXAM_BATCH = 100
BINS = 15  # of confidence


def pointing(relevance: Tensor, mask: Tensor) -> Tensor:
    """|argmax(r) and B| / |argmax(r)|, expected under ties, (B,)."""
    top = relevance == relevance.max(1, keepdim=True).values
    return (top & mask).sum(1) / top.sum(1)


@dataclass
class Exam:
    """One row of every matrix.

    Args:
        accuracy: R[t], (T,). pointing: the same for relevance, or None.
        union: C[t], (T,), None for experiences that are not over. union_pointing: the same for pointing.
        by_class: of each probe, by label: how many were answered right, and of how many.
        calibration: of each probe, what `binned` makes of how sure the answers were; None where a method
            claims no probabilities.
    """

    accuracy: list[float]
    pointing: list[float] | None
    union: list[float | None]
    union_pointing: list[float | None] | None
    by_class: list[dict[str, list[int]]]
    calibration: list[list[list[float]]] | None


def pictures(plan: Plan, split: str, which: Iterable[int], probe: int = 0) -> list[Any]:
    """The images at these positions of the plan's stream or of a probe."""
    if split == "train":
        return [plan.stream.samples[plan.shown[i]]["image"] for i in which]
    return [plan.stream.probes[probe][i]["image"] for i in which]


def examine(method: Method, plan: Plan, store: Store, over: int) -> Exam:
    """Score every probe once, after `over` experiences."""
    right: list[Tensor] = []
    scores: list[Tensor] = []
    hits: list[Tensor] = []
    sure: list[Tensor] = []

    every = store.candidates
    column = {text: i for i, text in enumerate(every)}

    def ask(probe: int, texts: list[str]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Scores of all candidates for a probe that is answered among these texts, -inf for the others; how
        well relevance pointed, and how sure the answers were."""
        answered, pointed, believed = [], [], []
        rows = plan.probes[probe]
        for start in range(0, len(rows), EXAM_BATCH):
            some = rows[start : start + EXAM_BATCH]
            seen = plan.places[probe][start : start + EXAM_BATCH]
            images = pictures(plan, "test", seen, probe) if method.needs_images else None
            batch = store.batch(some, images)
            answer = method.answer(batch, texts)
            answered.append(answer.scores.float())
            if answer.probabilities is not None:
                believed.append(answer.probabilities.gather(1, answered[-1].argmax(1, keepdim=True))[:, 0])
            if answer.relevance is not None and batch.mask is not None:
                true = batch.mask.any(1)  # a sample without a truth has nothing to be pointed at
                if true.any():
                    pointed.append(pointing(answer.relevance[true], batch.mask[true]))
        told = torch.cat(answered)
        if texts is every:
            return told, pointed, believed
        scores = torch.full((len(told), len(every)), -torch.inf, dtype=told.dtype)
        scores[:, [column[t] for t in texts]] = told
        return scores, pointed, believed

    # who is told the task of a probe is asked for its classes alone
    among = plan.stream.asked or [every] * len(plan.probes)
    for probe, rows in enumerate(plan.probes):
        found, pointed, believed = ask(probe, among[probe])
        scores.append(found)
        hits += [torch.cat(pointed)] if pointed else []
        right.append(store.right(found, rows))
        sure.append(store.sure(torch.cat(believed), rows) if believed else torch.zeros(0))

    def narrowed(probe: int, allowed: Tensor) -> Tensor:
        """The scores of a probe where only these candidates may be said."""
        if not method.asked_again:
            return scores[probe].masked_fill(~allowed, -torch.inf)
        return ask(probe, [t for t in among[probe] if allowed[column[t]]])[0]

    union: list[float | None] = []
    for k in range(len(plan.probes)):
        if k >= over:
            union.append(None)
            continue
        allowed = store.allowed(plan.met[k])
        told = [store.right(narrowed(j, allowed), plan.probes[j]) for j in range(k + 1)]
        union.append(float(torch.cat(told).mean()))
    cumulated = [float(torch.cat(hits[: k + 1]).mean()) if k < over else None for k in range(len(hits))]
    return Exam(
        [float(r.mean()) for r in right],
        [float(h.mean()) for h in hits] or None,
        union,
        cumulated or None,
        [by_class(store.labels(rows), r) for rows, r in zip(plan.probes, right, strict=True)],
        [binned(s, r[: len(s)]) for s, r in zip(sure, right, strict=True)] if any(map(len, sure)) else None,
    )


def binned(sure: Tensor, right: Tensor) -> list[list[float]]:
    """[bin, how many, sum of their confidence, how many are right] of every bin that is not empty, of 15 of
    equal width; from confidence (n,) and whether the answer is right (n,) of 0 and 1.

    Raises:
        ValueError: for a confidence that is no number.
    """
    if not bool(torch.isfinite(sure).all()):
        raise ValueError("a method's probabilities are no numbers: None says that it claims none")
    place = (sure.double() * BINS).long().clamp(0, BINS - 1)
    found = []
    for b in place.unique().tolist():
        some = place == b
        found.append([b, int(some.sum()), float(sure[some].double().sum()), int(right[some].sum())])
    return found


def by_class(labels: Sequence[str], right: Tensor) -> dict[str, list[int]]:
    """By label, sorted: how many of these answers, (len(labels),) of 0 and 1, are right, and how many there
    are."""
    count = Counter(labels)
    hit = Counter(label for label, r in zip(labels, right.tolist(), strict=True) if r)
    return {label: [hit[label], count[label]] for label in sorted(count)}  # as JSON gives it back


def zero_shot(method: Method, held: Store, classes: list[str]) -> float:
    """Accuracy on held-out pictures, the candidates being the union of learned and held-out texts."""
    texts, right = held.union(classes), []
    images = held.images if method.needs_images else None
    for start in range(0, len(held), EXAM_BATCH):
        rows = torch.arange(start, min(start + EXAM_BATCH, len(held)))
        batch = held.batch(rows, images[start : start + EXAM_BATCH] if images is not None else None)
        right.append(held.right(method.answer(batch, texts).scores.float(), rows))
    return float(torch.cat(right).mean())


def among_all(method: Method, plan: Plan, store: Store, held: Store) -> float:
    """Accuracy on the samples of all probes, the candidates being the same union."""
    texts, right = store.union(held.classes), []
    for probe, (rows, places) in enumerate(zip(plan.probes, plan.places, strict=True)):
        for some, seen in zip(rows.split(EXAM_BATCH), _split(places), strict=True):
            images = pictures(plan, "test", seen, probe) if method.needs_images else None
            right.append(store.right(method.answer(store.batch(some, images), texts).scores.float(), some))
    return float(torch.cat(right).mean())


def _split(places: list[int]) -> list[list[int]]:
    return [places[i : i + EXAM_BATCH] for i in range(0, len(places), EXAM_BATCH)]


def one(
    method: Method,
    plan: Plan,
    store: Store,
    size: int,
    held: Store | None = None,
    n_train: int | None = None,
    progress: Progress | None = None,
    last_only: bool = False,
) -> Record:
    """One pass of a method over one order; returns the raw matrices, seconds and bytes.

    Where labels come late (`Stream.delay` d), step s + d teaches what step s showed: the harness holds those
    samples until their labels come, and no longer (`samples_waiting`, at most; they are not the method's
    bytes). What waits when an experience ends is not known to its examination; after the last sample the
    labels that are still to come come before the last one.

    Args:
        size: samples per step.
        held: for zero-shot retention; None to leave it out.
        n_train: learn from this many samples, evenly spread over the stream; None for all of them.
        last_only: examine at the end alone (for choosing settings).
    """
    exams: list[Exam | None] = [None if last_only else examine(method, plan, store, 0)]
    before = None if held is None else zero_shot(method, held, store.classes)
    kept = percepts.thin(len(plan.train), n_train)
    spent, steps, examining, most = 0.0, 0, 0.0, 0
    waiting: deque[list[int]] = deque()

    def learn(some: list[int]) -> None:
        nonlocal spent, steps
        images = pictures(plan, "train", some) if method.needs_images else None
        batch = store.batch(plan.train[some], images)
        began = time.perf_counter()
        method.observe(batch)
        spent += time.perf_counter() - began
        steps += 1
        if progress is not None and steps % 50 == 0:
            progress("learning", steps * size, len(kept))

    for over, end in enumerate(plan.ends, 1):
        begin = plan.ends[over - 2] if over > 1 else 0
        turn = [i for i in kept if begin <= i < end]
        for start in range(0, len(turn), size):
            waiting.append(turn[start : start + size])
            most = max(most, sum(map(len, waiting)))
            if len(waiting) > plan.stream.delay:
                learn(waiting.popleft())
        last = over == len(plan.ends)
        while last and waiting:
            learn(waiting.popleft())
        began = time.perf_counter()
        method.experience_over()
        if last:
            method.finish()
        spent += time.perf_counter() - began
        began = time.perf_counter()
        skip = (method.final_only or last_only) and over < len(plan.ends)
        exams.append(None if skip else examine(method, plan, store, over))
        examining += time.perf_counter() - began
    after = None if held is None else zero_shot(method, held, store.classes)
    beside = None if held is None else among_all(method, plan, store, held)
    last_exam = exams[-1]
    assert last_exam is not None
    points = any(e is not None and e.pointing is not None for e in exams)
    return {
        "R": [None if e is None else e.accuracy for e in exams],
        "C": [None if e is None else e.union for e in exams],
        "P": [None if e is None else e.pointing for e in exams] if points else None,
        "CP": [None if e is None else e.union_pointing for e in exams] if points else None,
        "by_class": last_exam.by_class,
        "calibration": last_exam.calibration,
        "zero_shot_before": before,
        "zero_shot_after": after,
        "learned_after": beside,
        "n_learned": len(kept),
        "n_probe": [len(rows) for rows in plan.probes],
        "samples_waiting": most if plan.stream.delay else 0,
        "steps": steps,
        "step_seconds": spent / max(steps, 1),
        "exam_seconds": examining,
        "state_bytes": method.state_bytes(),
        "stored_samples": method.stored_samples,
        "told_boundaries": method.told_boundaries,
        "ledger": None if method.ledger is None else [k for k, v in asdict(method.ledger).items() if v],
    }
