"""Sample-level surprise, measured: does it tell new classes from those met, and does it notice a switch?

One pass of the plugin over a stream, one sample at a time. Every signal is read before the sample is learned,
or on held-out samples after each experience but the last:
- new classes: AUROC of held-out samples of classes not met yet against those met; mean over experiences.
- switch: a CUSUM on the standardised signal, g <- max(0, g + z - k), alarm and g <- 0 at g > h (Page, 1954);
  z by a running mean and deviation, both sides for the mean of the pixels. h is set on another seed, for so
  many false alarms per 1,000 samples; the first alarm behind a switch is its detection, every other one is
  false.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arr_coc.answer import Answer
from arr_coc.config import ArrCocConfig
from arr_coc.eval.percepts import Batch, Plan, Store
from arr_coc.eval.relevance_metrics import auroc
from arr_coc.learner import Learner

TARGET = 5.0  # false alarms per 1,000 samples
DRIFT = 0.5  # k, in deviations
MEMORY = 100  # samples that the running mean and deviation reach back; nothing is said in the first of them
BOTH_SIDES = ("mean of the pixels",)
Signals = dict[str, Tensor]


@dataclass(frozen=True)
class Course:
    """What one pass left.

    Args:
        classes: AUROC of each signal after each experience but the last.
        signals: of every sample in order, before it was learned, (n,) each.
        ends: samples seen when each experience ends.
    """

    classes: dict[str, list[float]]
    signals: dict[str, np.ndarray]
    ends: list[int]


def signals(learner: Learner, batch: Batch, answer: Answer, texts: list[str]) -> Signals:
    """Of each sample, (B,); the higher, the odder."""
    own = batch.own_logits(texts).double().log_softmax(1)
    errors = learner.errors.errors(answer.climb.states, answer.context)
    known = answer.values.shape[1] > 0
    return {
        "surprise, of rungs": learner.errors.surprise(errors),
        "surprise, of answers": answer.surprise,
        "phi' P phi": learner.readout.familiarity.variance(answer.climb.phi).log(),
        "learned values, 1 - max": 1 - answer.values.max(1).values if known else torch.ones(len(own)),
        "own scores, 1 - max": 1 - own.max(1).values.exp(),
        "own scores, entropy": -(own.exp() * own).sum(1),
    }


def course(store: Store, plan: Plan, seed: int, probe_limit: int = 100) -> Course:
    """One pass over this order."""
    config = ArrCocConfig(seed=seed, surprise="answer")  # the rungs' error modules learn all the same
    learner = Learner(config, store.site_widths, store.context.shape[1])
    heard: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    start = 0
    with torch.no_grad():
        for over, end in enumerate(plan.ends, 1):
            for place in range(start, end):
                batch = store.batch(plan.train[place : place + 1])
                answer = learner.answer(batch.percept)
                told = signals(learner, batch, answer, store.classes)
                told["prequential error"] = torch.tensor([_wrong(learner, answer, batch.labels[0])])
                told["mean of the pixels"] = batch.pixels.mean(1)
                for name, value in told.items():
                    heard.setdefault(name, []).append(float(value))
                learner.learn(batch.percept, batch.labels)
            start = end
            if over < len(plan.ends):
                for name, score in new_classes(learner, store, plan, over, probe_limit).items():
                    found.setdefault(name, []).append(score)
    return Course(found, {name: np.array(v) for name, v in heard.items()}, plan.ends)


def _wrong(learner: Learner, answer: Answer, label: str) -> float:
    if not answer.values.shape[1]:
        return 1.0
    return float(learner.classes[int(answer.values[0].argmax())] != label)


def new_classes(learner: Learner, store: Store, plan: Plan, over: int, limit: int) -> dict[str, float]:
    """AUROC of each signal over held-out samples, of classes not met after `over` experiences against met."""
    met = {name for experience in plan.experiences[:over] for name in experience}
    told: dict[str, list[Tensor]] = {}
    new: list[bool] = []
    for rows in plan.probes:
        batch = store.batch(rows[:limit])
        for name, value in signals(learner, batch, learner.answer(batch.percept), store.classes).items():
            told.setdefault(name, []).append(value.double())
        new += [label not in met for label in batch.labels]
    return {name: auroc(torch.cat(v).numpy(), np.array(new)) for name, v in told.items()}


# -- switches ------------------------------------------------------------------------------------------------


def standardised(signal: np.ndarray) -> np.ndarray:
    """z_t by the exponential mean and deviation of what came before, (n,); 0 in the first MEMORY samples."""
    rate, z = 1 / MEMORY, np.zeros(len(signal))
    mean, square = float(signal[:MEMORY].mean()), float(signal[:MEMORY].var())
    for t in range(MEMORY, len(signal)):
        step = float(signal[t]) - mean
        z[t] = step / max(square, 1e-12) ** 0.5
        mean += rate * step
        square = (1 - rate) * (square + rate * step * step)
    return z


def alarms(z: np.ndarray, threshold: float, both: bool = False) -> list[int]:
    """Where the CUSUM passes the threshold; it starts from 0 again after each."""
    found, up, down = [], 0.0, 0.0
    for t, value in enumerate(z.tolist()):
        up = max(0.0, up + value - DRIFT)
        down = max(0.0, down - value - DRIFT) if both else 0.0
        if max(up, down) > threshold:
            found.append(t)
            up = down = 0.0
    return found


def detected(found: Sequence[int], ends: Sequence[int]) -> tuple[list[int], float]:
    """Delay of each switch in samples (the experience's length where it was missed), and false alarms per
    1,000 samples."""
    delays, false = [], sum(t < ends[0] for t in found)
    for begin, end in itertools.pairwise(ends):
        inside = [t for t in found if begin <= t < end]
        delays.append(inside[0] - begin if inside else end - begin)
        false += len(inside[1:])
    return delays, 1000 * false / ends[-1]


def threshold(courses: Sequence[Course], name: str, target: float = TARGET) -> float:
    """The lowest h with at most so many false alarms per 1,000 samples, mean over these passes."""
    z = [standardised(c.signals[name]) for c in courses]
    both = name in BOTH_SIDES
    for h in np.arange(0.25, 60.0, 0.25):
        rates = [detected(alarms(one, h, both), c.ends)[1] for one, c in zip(z, courses, strict=True)]
        if np.mean(rates) <= target:
            return float(h)
    return 60.0


def switches(passed: Course, thresholds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Mean delay, share of switches noticed in 50 samples, and false alarms of every signal."""
    out = {}
    for name, h in thresholds.items():
        z = standardised(passed.signals[name])
        delays, false = detected(alarms(z, h, name in BOTH_SIDES), passed.ends)
        out[name] = {
            "delay": float(np.mean(delays)),
            "within 50": float(np.mean([d < 50 for d in delays])),
            "false alarms": false,
        }
    return out
