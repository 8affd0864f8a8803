"""Relevance in time, measured: is it predicted from frame to frame, and is what announces it learned?

    python -m arr_coc.eval.relevance_time      # five seeds, the built-in dual encoder, under five minutes

Forecasts are scored before the frame is seen, in nats, on every frame that has one before it in its scene
(nobody tells the predictor where a scene begins), by the stream `moving`:
- missed truth: -log of the mass that the forecast lays on the tokens of the cued item,
- cross-entropy: -sum_n r_n log r^_n to the relevance that the frame itself then settles to.
"same as last" is the last frame's relevance, with the share that turns up anywhere learned in the same way
from the same frames; "uniform" is 1 / N. Relevance is that of a learner that is told the labels in one pass.

Associations are scored on held-out frames of `moving-lead`: the AUROC of what each token announces for the
colour that is asked for less what it announces for others, its sign's tokens (or its afterthought's) against
all others of the frame; 1/2 is chance, and what any map scores that ignores what is asked. "Shuffled" learned
from the very same frames in random order.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval.intervals import Difference, Interval, paired, student_t
from arr_coc.eval.percepts import Progress, Store, TextBook, perceive_all
from arr_coc.eval.relevance_metrics import auroc, mass_accuracy, pointing
from arr_coc.learner import Learner
from arr_coc.relevance import RelevancePredictor
from arr_coc.training import stream_moving, streams

CONFIG = ArrCocConfig(expansion=0)  # relevance is what is measured, and the readout need not be wide
FRAMES, LEARNED, HELD = 320, 1152, 144  # of `moving`; of `moving-lead`, to learn from and to be scored on
SIZES: dict[str, Any] = {
    "colours": 2,
    "frames": 12,
}  # of `moving-lead`: colours that are asked for, frames in a scene
LEAD = 3  # frames, as it has it
GAIN = 0.3  # of forecasts, where they take part
ANNOUNCED = 1.0  # and of what is announced
SEEDS = tuple(range(5, 10))  # 0 to 4 were looked at while the streams' sizes were chosen

Scores = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of a table: a score over seeds, and how it differs from what it is compared with."""

    name: str
    score: Interval
    than: str = ""
    difference: Difference | None = None


class Frames:
    """The frozen model's percepts of a stream's frames, kept in memory."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.model, processor = embedded.load("dual")
        self.texts, self.progress = TextBook(self.model, processor), progress

    def store(self, stream: streams.Stream, held: bool = False) -> Store:
        """Of the samples to learn from and, if asked for, of the held-out ones behind them."""
        groups: list[tuple[str, Sequence[Any]]] = [("train", stream.samples)]
        if held:
            groups.append(("test", stream.probes[0]))
        attached = attach(self.model)
        try:
            return perceive_all(attached.perceive, self.texts, groups, stream.classes, progress=self.progress)
        finally:
            attached.detach()


def learner_for(store: Store, **options: Any) -> Learner:
    """A fresh learner for these percepts."""
    return Learner(replace(CONFIG, **options), store.site_widths, store.context.shape[1])


def moments(store: Store, rows: Sequence[int]) -> Iterator[Any]:
    """The store's batches of one, in this order."""
    for row in rows:
        yield store.batch(torch.tensor([row]))


# -- predicted -----------------------------------------------------------------------------------------------


def predicted(frames: Frames, seed: int, count: int = FRAMES) -> Scores:
    """Every score of one seed."""
    stream = streams.load("moving", seed, n_train=count, n_test=96)
    store = frames.store(stream)
    first = torch.tensor([key.frame == 0 for key in stream.samples.keys])  # type: ignore[attr-defined]
    assert store.mask is not None
    plain, gained = learner_for(store, predict_gain=0.0), learner_for(store, predict_gain=GAIN)
    last = RelevancePredictor(plain.ladder.depth * plain.ladder.width, radius=0)
    moment, rows = None, []
    for batch in moments(store, range(len(store))):
        learned = plain.learn(batch.percept, batch.labels)
        course, grid = learned.course, batch.percept.grid
        assert course is not None
        evidence = course.evidence[0]
        same = last.forecast(moment, grid, len(evidence))
        moment = last.advance(moment, evidence, learned.features[0], grid, None, evidence)
        after = gained.learn(batch.percept, batch.labels).settled.relevance[0]
        rows.append((evidence, course.forecast[0], same, after, course.surprise[0]))  # type: ignore[index]
    evidence, forecast, same, after, surprise = (torch.stack(r).double() for r in zip(*rows, strict=True))
    even = torch.full_like(evidence, 1 / evidence.shape[1])
    counted = ~first & store.mask.any(1)
    found: Scores = {}
    for name, said in (("predicted", forecast), ("same as last", same), ("uniform", even)):
        found[f"missed truth, {name}"] = float(missed(said, store.mask)[counted].mean())
        found[f"cross-entropy, {name}"] = float(-(evidence * said.log()).sum(1)[counted].mean())
    for name, r in (("without", evidence), ("with", after)):
        pairs = list(zip(r[counted].numpy(), store.mask[counted].numpy(), strict=True))
        found[f"pointing {name}"] = float(np.mean([pointing(*pair) for pair in pairs]))
        found[f"mass {name}"] = float(np.mean([mass_accuracy(*pair) for pair in pairs]))
    cut = first.clone()
    cut[0] = False  # before the very first frame there was nothing to be wrong about
    found["surprise at a cut"] = float(surprise[cut].mean())
    found["surprise within"] = float(surprise[~first].mean())
    return found


def missed(forecast: Tensor, mask: Tensor) -> Tensor:
    """-log of the mass on the true tokens, (B,), nats."""
    return -(forecast * mask).sum(1).clamp_min(torch.finfo(forecast.dtype).tiny).log()


# -- announced -----------------------------------------------------------------------------------------------


def announced(frames: Frames, seed: int, learned: int = LEARNED, held: int = HELD) -> Scores:
    """Every score of one seed."""
    stream = streams.load("moving-lead", seed, n_train=learned, n_test=held, **SIZES)
    store = frames.store(stream, held=True)
    count = len(stream.samples)
    shuffle = np.random.default_rng([seed, 14]).permutation(count).tolist()
    found: Scores = {}
    for name, order in (("planted", range(count)), ("shuffled", shuffle)):
        learner = listened(store, order)
        found |= {f"{what}, {name}": score for what, score in told(learner, store, stream, seed).items()}
    return found


def listened(store: Store, order: Sequence[int]) -> Learner:
    """A learner of associations that has met these frames in this order; nothing else is learned."""
    learner = learner_for(store, temporal_gain=0.0)
    for batch in moments(store, order):
        answer = learner.answer(batch.percept)
        assert answer.course is not None
        key = learner.context_key.key(answer.context)
        learner.in_time.observe(batch.percept, answer.features, answer.settled.relevance, answer.course, key)
        learner.context_key.observe(answer.context)
    return learner


def told(learner: Learner, store: Store, stream: streams.Stream, seed: int) -> Scores:
    """What is announced in the held-out frames, mean over frames."""
    association = learner.in_time.association
    assert association is not None
    scores: dict[str, list[float]] = {}
    contexts = store.context_matrix()
    for key in stream.probes[0].keys:  # type: ignore[attr-defined]
        moving = stream_moving.scene(seed, "test", key.scene, lead=LEAD, **SIZES)
        covered = stream_moving.covered(moving, key.frame).reshape(len(moving.pictures), -1)
        batch = store.batch(torch.tensor([store.place["test", key.index]]))
        answer = learner.answer(batch.percept)
        r, said = answer.settled.relevance[0], association.announced(answer.context[0], answer.features[0])
        with_it = (answer.gamma[0] + ANNOUNCED * said.to(answer.gamma)).softmax(0)
        if covered[-2:].any():
            every = [association.announced(c, answer.features[0]) for c in contexts]
            del every[store.contexts.index(str(batch.contexts[0]))]
            others = torch.stack(every).mean(0)
            for name, item in (("sign", -2), ("afterthought", -1)):
                if covered[item].any():
                    at = torch.from_numpy(covered[item])
                    scores.setdefault(name, []).append(auroc((said - others).numpy(), covered[item]))
                    scores.setdefault(f"nats at the {name}", []).append(float(said[at].mean()))
                    scores.setdefault(f"nats for another colour at the {name}", []).append(
                        float(others[at].mean())
                    )
        if covered[-2].any():
            at = torch.from_numpy(covered[-2])
            scores.setdefault("mass on the sign without", []).append(float(r[at].sum()))
            scores.setdefault("mass on the sign with", []).append(float(with_it[at].sum()))
        if covered[0].any():
            scores.setdefault("pointing without", []).append(pointing(answer.gamma[0].numpy(), covered[0]))
            scores.setdefault("pointing with", []).append(pointing(with_it.numpy(), covered[0]))
    return {name: float(np.mean(values)) for name, values in scores.items()}


# -- told ----------------------------------------------------------------------------------------------------

COMPARED = {
    "missed truth, predicted": ("missed truth, same as last", "missed truth, uniform"),
    "cross-entropy, predicted": ("cross-entropy, same as last", "cross-entropy, uniform"),
    "pointing with": ("pointing without",),
    "mass with": ("mass without",),
    "surprise at a cut": ("surprise within",),
    "sign, planted": ("sign, shuffled",),
    "afterthought, planted": ("afterthought, shuffled",),
    "nats at the sign, planted": (
        "nats for another colour at the sign, planted",
        "nats at the sign, shuffled",
    ),
    "nats at the sign, shuffled": ("nats for another colour at the sign, shuffled",),
    "nats at the afterthought, planted": ("nats for another colour at the afterthought, planted",),
    "mass on the sign with, planted": ("mass on the sign without, planted",),
    "pointing with, planted": ("pointing without, planted",),
}


def table(scores: Sequence[Scores]) -> list[Row]:
    """Mean over seeds of every score, and the paired differences of COMPARED."""

    def of(name: str) -> list[float]:
        return [one[name] for one in scores]

    rows = []
    for name in scores[0]:
        rows.append(Row(name, student_t(of(name))))
        for other in COMPARED.get(name, ()):
            rows.append(Row(name, student_t(of(name)), other, paired(of(name), of(other))))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table of scores, then one of differences."""
    lines = ["| score | mean ± half of the 95 % interval over seeds |", "|---|---|"]
    lines += [f"| {r.name} | {_shown(r.score)} |" for r in rows if r.difference is None]
    lines += ["", "| difference | paired | p |", "|---|---|---|"]
    for row in rows:
        if row.difference is not None:
            said = _shown(row.difference.interval)
            lines.append(f"| {row.name} - {row.than} | {said} | {row.difference.p:.2g} |")
    return "\n".join(lines)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} ± {interval.half:.3f}"


def measure(seeds: Sequence[int] = SEEDS, progress: Progress | None = None) -> tuple[list[Row], list[Row]]:
    """The tables of what was predicted and of what was announced."""
    frames = Frames(progress)
    return (
        table([predicted(frames, seed) for seed in seeds]),
        table([announced(frames, seed) for seed in seeds]),
    )


def main() -> None:
    """Print both tables."""

    def progress(what: str, done: int, total: int) -> None:
        print(f"\r{what} {done} of {total} ", end="", file=sys.stderr)

    predictions, associations = measure(progress=progress)
    print(file=sys.stderr)
    print(f"**moving**: forecasts, {FRAMES} frames a seed\n\n{markdown(predictions)}\n")
    print(f"**moving-lead**: associations, {LEARNED} frames a seed\n\n{markdown(associations)}")


if __name__ == "__main__":
    main()
