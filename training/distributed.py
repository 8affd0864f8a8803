"""Learning in several processes: every rank learns from its own part, and at a merge statistics are summed.

What the readout, the familiarity of scenes and the contexts know are sums over samples. Each rank hands over
what its sums have gained since the last merge, so however often one merges no sample counts twice, and with U
and W fixed the merged readout is the one of a single process over the same samples, whatever the split. (The
same to 1e-10 for the same activations; those of a model in float32 may differ by 1e-7 with the batch's size.)

What is no sum (U, the own gain, W and b, the error modules, confidence, a delta readout) takes the average of
the ranks' changes, weighted by their samples (federated averaging, McMahan et al., 2017); statistics that
ranks took under a U of their own are summed as they are, so the last claim is made for fixed U and W only.
What a rule or an optimizer keeps for itself, and the random generator, are rank 0's. In the end all ranks
hold rank 0's state bit for bit.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from arr_coc import state
from arr_coc.familiarity import leverage_of, moments
from arr_coc.learner import Learner

_SUMS = (
    *("readout.cross", "readout.class_count", "readout.familiarity.gram", "scenes.gram"),
    "unlearned.moments",
)
_LEVERAGE = ("readout.familiarity.leverage", "scenes.leverage")
_INVERSE, _MEAN, _COUNT, _MET = (f"context_key.{n}" for n in ("inverse_correlation", "mean", "count", "met"))


@dataclass(frozen=True)
class Base:
    """A state that all ranks share: its tensors by name, and its classes."""

    tensors: dict[str, Tensor]
    classes: list[str]


@dataclass(frozen=True)
class Gain:
    """What one rank has gained since the base.

    Args:
        samples: n, learned since then.
        classes: of the rank, those of the base first.
        sums: what adds up, by name; tensors with a row per class follow `classes`.
        changes: n times the change of what is averaged.
        last_met: when each class was last met, as a share of the n samples in (0, 1]; 0: not since the base.
        met: the context texts met for the first time, (K, C).
    """

    samples: int
    classes: list[str]
    sums: dict[str, Tensor]
    changes: dict[str, Tensor]
    last_met: Tensor
    met: Tensor


def base_of(learner: Learner) -> Base:
    """A copy of the state as it is."""
    return Base({k: t.detach().clone() for k, t in state.tensors(learner).items()}, list(learner.classes))


def gain(learner: Learner, base: Base) -> Gain:
    """What a learner has gained since it was at `base`."""
    now, before = state.tensors(learner), _grown(base.tensors, len(learner.classes))
    n = int(now["step"] - before["step"])
    sums = {name: now[name] - before[name] for name in _SUMS}
    sums |= {name: moments(now[name]) - moments(before[name]) for name in _LEVERAGE}
    contexts = int(now[_COUNT] - before[_COUNT])
    # (rho I + sum c c') is what adds; nothing has to be inverted where no context was met
    spread = now[_INVERSE] * 0 if not contexts else now[_INVERSE].inverse() - before[_INVERSE].inverse()
    sums |= {_INVERSE: spread, _MEAN: now[_MEAN] * now[_COUNT] - before[_MEAN] * before[_COUNT]}
    sums |= {_COUNT: now[_COUNT] - before[_COUNT]}
    changes = {name: n * (now[name].double() - before[name].double()) for name in _averaged(learner)}
    met = now["readout.last_met"]
    share = ((met - before["step"]).clamp_min(0) / max(n, 1)) * (met > before["readout.last_met"])
    return Gain(n, list(learner.classes), sums, changes, share, now[_MET][len(base.tensors[_MET]) :].clone())


def combine(learner: Learner, base: Base, gains: Iterator[Gain] | list[Gain]) -> None:
    """Put base + all gains into a learner; its own gain must be the first of them.

    The order of classes is the base's, then that of the gains.
    """
    classes, samples = list(base.classes), 0
    total: dict[str, Tensor] = {}
    last, met = torch.zeros(len(classes), dtype=torch.float64), []
    for one in gains:
        classes += [name for name in one.classes if name not in classes]
        place = {name: k for k, name in enumerate(classes)}
        rows = torch.tensor([place[name] for name in one.classes], dtype=torch.int64)
        for name, tensor in {**one.sums, **one.changes}.items():
            there = _rows(total.get(name, tensor.new_zeros(())), name, len(classes), tensor)
            total[name] = there + _spread(tensor, name, rows, len(classes))
        samples += one.samples
        share = _spread(one.last_met, "readout.last_met", rows, len(classes))
        last = torch.maximum(_rows(last, "readout.last_met", len(classes), last), share.to(last))
        met += list(one.met)
    learner.readout.rows(classes, grow=True)
    _write(learner, base, classes, samples, total, last)
    for context in met:
        learner.context_key.meet(context)


def _write(
    learner: Learner,
    base: Base,
    classes: list[str],
    samples: int,
    total: dict[str, Tensor],
    last: Tensor,
) -> None:
    before, after = _grown(base.tensors, len(classes)), dict(state.tensors(learner))
    for name in _SUMS:
        after[name] = before[name] + total[name]
    for name in _LEVERAGE:
        after[name] = leverage_of(moments(before[name]) + total[name])
    after[_COUNT] = before[_COUNT] + total[_COUNT]
    if int(total[_COUNT]):
        after[_INVERSE] = (before[_INVERSE].inverse() + total[_INVERSE]).inverse()
        after[_MEAN] = (before[_MEAN] * before[_COUNT] + total[_MEAN]) / after[_COUNT]
    else:
        after[_INVERSE], after[_MEAN] = before[_INVERSE], before[_MEAN]
    after[_MET] = before[_MET]
    for name in _averaged(learner):
        after[name] = (before[name].double() + total[name] / max(samples, 1)).to(before[name])
    after["step"] = before["step"] + samples
    known = before["readout.last_met"]
    # as if the ranks had learned in turns: a share of a rank's samples is that share of all
    after["readout.last_met"] = torch.where(
        last.to(known) > 0, before["step"] + last.to(known) * samples, known
    )
    state.load(learner, after, {**state.meta(learner), "classes": classes})
    if learner.config.readout == "precision":
        learner.readout.solve()
        learner.scenes.solve()


def _averaged(learner: Learner) -> list[str]:
    ladder = [f"ladder.{name}" for name in learner.ladder.weights()]
    errors = [f"errors.{name}" for name in learner.errors.state_names]
    delta = ["readout.weight"] if learner.config.readout == "delta" else []
    own = ["relevance_weight", "own_gain.weight", "surprise_watch", "confidence.log_scale"]
    return [*own, *ladder, *errors, *delta]


def _grown(tensors: dict[str, Tensor], classes: int) -> dict[str, Tensor]:
    """With zeros for the classes that appeared since."""
    return {k: _rows(t, k, classes, t) for k, t in tensors.items()}


def _rows(tensor: Tensor, name: str, classes: int, like: Tensor) -> Tensor:
    if name not in state.PER_CLASS:
        return tensor
    grown = like.new_zeros(classes, *like.shape[1:])
    if tensor.dim():
        grown[: len(tensor)] = tensor
    return grown


def _spread(tensor: Tensor, name: str, rows: Tensor, classes: int) -> Tensor:
    """Rows of a tensor per class, put where those classes are among all."""
    if name not in state.PER_CLASS:
        return tensor
    there = tensor.new_zeros(classes, *tensor.shape[1:])
    return there.index_copy(0, rows.to(tensor.device), tensor)


# -- between processes ---------------------------------------------------------------------------------------


class Merging:
    """Learners whose ranks are merged now and then; without further processes it does nothing.

    Args:
        device: that the process group's backend sends from.
        timeout: seconds after which a rank that does not answer is an error on the others.
    """

    def __init__(self, device: torch.device, timeout: float = 1800) -> None:
        self.device, self.timeout = device, timeout
        self.shared: list[tuple[Learner, Base]] = []
        # a group of its own: the Trainer gives its timeout to processes on GPUs alone
        self.group: Any = dist.new_group(timeout=timedelta(seconds=timeout)) if ranks() > 1 else None

    @contextlib.contextmanager
    def _answered(self) -> Iterator[None]:
        """A rank that ended or is stuck is an error on every other, in words that say so."""
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                "another process of this training has ended or did not answer in "
                f"{self.timeout:g} s (TrainingArguments.ddp_timeout); its own output says why. Here: {error}"
            ) from error

    def largest(self, values: list[int]) -> list[int]:
        """The largest of each value over all ranks."""
        return [int(v) for v in self._reduced(torch.tensor(values), dist.ReduceOp.MAX)]

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def _reduced(self, values: Tensor, how: Any) -> Tensor:
        if self.group is None:
            return values
        there = values.to(self.device, copy=True)
        with self._answered():
            dist.all_reduce(there, how, self.group)
            return there.to(values)

    def begin(self, learners: list[Learner]) -> None:
        """All ranks start from rank 0's state of these learners; a collective call.

        Raises:
            ValueError: where what is learned depends on the order of the samples, which are split.
        """
        if self.group is not None:
            if any(one.config.forgetting != 1 for one in learners):
                raise ValueError(
                    "forgetting weighs a sample by how many came after it, which no rank knows: set it to 1, "
                    "or learn in one process"
                )
            if any(one.growth is not None for one in learners):
                raise ValueError(
                    "columns are added when one process's surprise stays high: set columns=1, or learn in "
                    "one process"
                )
            if any(one.drift is not None for one in learners):
                raise ValueError(
                    "drift drops what came before labels changed, which no rank knows: set it to 'off', or "
                    "learn in one process"
                )
            if any(one.sources is not None for one in learners):
                raise ValueError("sources are kept by one process: set sources=False, or learn in one")
            if any(one.transport is not None for one in learners):
                raise ValueError("transport follows one process's phi: set it to 0, or learn in one process")
            if any(one.in_time.on for one in learners):
                raise ValueError(
                    "predict_gain and temporal_gain need a stream whole and in order: set both to None, or "
                    "learn in one process"
                )
            if any(one.sequence is not None or one.answers is not None for one in learners):
                raise ValueError(
                    "what sequence=True and surprise='answer' learn is not summed up: learn in one process"
                )
            self.shared = [(one, self._follow(one)) for one in learners]

    def merge(self) -> None:
        """Sum up what all ranks have gained since the last merge; a collective call.

        Raises:
            ValueError: on every rank, where one has actions that wait for a reward, or rewarded single rows.
        """
        self.shared = [(one, self._merged(one, base)) for one, base in self.shared]

    def _merged(self, learner: Learner, base: Base) -> Base:
        own = gain(learner, base)
        partial = learner.readout.partial
        alone = bool(learner.pending.groups) or not _same(partial, base.tensors["readout.partial"])
        learned, stuck = self.largest([own.samples, int(alone)])
        if stuck:
            raise ValueError(
                "a rank has actions that wait for their reward, or rows that were rewarded on their own: "
                "such learning cannot be merged; learn from labels, or with one process"
            )
        if not learned:
            return base
        with self._answered():
            if dist.get_rank() == 0:
                combine(learner, base, self._gather(own, learner))
            else:
                self._send(own)
        return self._follow(learner)

    def _gather(self, own: Gain, learner: Learner) -> Iterator[Gain]:
        """One rank's gain after the other: memory does not grow with the ranks."""
        yield own
        for rank in range(1, ranks()):
            length = torch.zeros(1, dtype=torch.int64, device=self.device)
            dist.recv(length, rank, self.group)
            data = torch.empty(int(length), dtype=torch.uint8, device=self.device)
            dist.recv(data, rank, self.group)
            about, tensors = _unpacked(data, learner.relevance_weight.device)
            parts: dict[str, dict[str, Tensor]] = {"sums": {}, "changes": {}}
            for name, tensor in tensors.items():
                kind, _, inner = name.partition("/")
                if inner:
                    parts[kind][inner] = tensor
            last, met = tensors["last_met"], tensors["met"]
            yield Gain(about["samples"], about["classes"], parts["sums"], parts["changes"], last, met)

    def _send(self, own: Gain) -> None:
        tensors = {f"sums/{k}": t for k, t in own.sums.items()}
        tensors |= {f"changes/{k}": t for k, t in own.changes.items()}
        tensors |= {"last_met": own.last_met, "met": own.met}
        data = _packed({"samples": own.samples, "classes": own.classes}, tensors).to(self.device)
        dist.send(torch.tensor([len(data)], device=self.device), 0, self.group)
        dist.send(data, 0, self.group)

    def _follow(self, learner: Learner) -> Base:
        """Take over rank 0's whole state; gains count from it."""
        first = dist.get_rank() == 0
        data = _packed(state.meta(learner), state.tensors(learner)) if first else torch.empty(0)
        with self._answered():
            length = torch.tensor([len(data)], device=self.device)
            dist.broadcast(length, 0, self.group)
            data = data.to(self.device) if first else length.new_empty(int(length), dtype=torch.uint8)
            dist.broadcast(data, 0, self.group)
        if not first:
            about, tensors = _unpacked(data, torch.device("cpu"))
            state.load(learner, tensors, about)
        return base_of(learner)


def ranks() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one, two)


def _packed(about: Any, tensors: dict[str, Tensor]) -> Tensor:
    said = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    kept = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
    return torch.frombuffer(bytearray(save_bytes({**kept, "about": said})), dtype=torch.uint8)


def _unpacked(data: Tensor, device: torch.device) -> tuple[Any, dict[str, Tensor]]:
    tensors = load_bytes(data.cpu().numpy().tobytes())
    about = json.loads(tensors.pop("about").numpy().tobytes())
    return about, {k: t.to(device) for k, t in tensors.items()}
