"""One ladder learned by one rule: many passes or one, with labels or with reward alone."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.rules_tasks import Task
from arr_coc.ladder import Climb, Ladder
from arr_coc.neuromodulator import max_boltzmann
from arr_coc.optimizer import Optimizer
from arr_coc.readout import PrecisionReadout
from arr_coc.rules import Rule, Teaching, Updates, make_rule

RELEVANCE = torch.zeros(1, 1)  # there is nothing to be relevant here


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        rule: a name of `RULES`; "" leaves the rungs as they were drawn and teaches the readout alone.
        reward: learn from being right or wrong, the answer chosen by max-Boltzmann, instead of from labels.
        epochs: times as many passes as the others get.
        published: the cell of the literature that this one should be compared with.
    """

    name: str
    rule: str
    options: dict[str, Any] = field(default_factory=dict)
    reward: bool = False
    epochs: float = 1.0
    published: str = ""


class Network:
    """A ladder of `width`, read at its top, with squared error on one-hot targets.

    W starts with standard deviation sqrt(2 / fan-in) (He et al., 2015), R with .05. All that is learned takes
    steps of Adam with one rate.

    Args:
        entry: what teaches it.
        seed: of the weights, of the rule's own draws and of the choices under reward.
        rate: of Adam.
        precise: read by recursive least squares, which needs no rate; it starts at zero.
    """

    def __init__(
        self, entry: Entry, task: Task, width: int, seed: int, rate: float, precise: bool = False
    ) -> None:
        below = task.below.shape[1]
        self.entry, self.rate, self.classes = entry, rate, task.classes
        self.ladder = Ladder([width] * task.depth, below, 0, width, 0, seed, "top", "relu", 2**0.5)
        draw = torch.Generator().manual_seed(seed)
        self.readout = 0.05 * torch.randn(task.classes, self.ladder.phi_width, generator=draw)
        self.readout[:, -1] = 0.0
        self.precise: PrecisionReadout | None = None
        if precise:
            self.precise = PrecisionReadout(self.ladder.phi_width)
            self.precise.rows([str(k) for k in range(task.classes)], grow=True)
            self.readout = self.precise.weight.float()
        options = {"seed": seed, **entry.options}
        self.rule: Rule = make_rule(entry.rule or "attention_gated", options)
        self.rule.prepare(self.ladder, task.classes)
        self.optimizer = Optimizer("adam")
        self.chance = torch.Generator().manual_seed(seed + 1)
        self.steps = 0

    def climb(self, below: Tensor, drive: Tensor | None) -> Climb:
        """The pass that is answered from."""
        if drive is None:
            drive = below.new_zeros(1, self.ladder.depth * self.ladder.width).expand(len(below), -1)
        return self.rule.infer(self.ladder, self.ladder.climb(drive, below, None))

    def teaching(self, climb: Climb, label: Tensor) -> Teaching:
        """With labels t - v for every answer; with reward r - q_s for the chosen one and 0 for the rest."""
        values = climb.phi @ self.readout.T
        target = torch.nn.functional.one_hot(label, self.classes).to(values)
        if self.entry.reward:
            chosen = max_boltzmann(values, 0.02, self.chance)
            shown = torch.nn.functional.one_hot(chosen, self.classes).to(values)
            target = target * shown  # the reward: 1 where the chosen answer is right
        else:
            shown = torch.ones_like(values)

        def forward(copies: dict[str, Tensor]) -> Tensor:
            drive = torch.cat(climb.drives, 1)
            # what was not shown has no error: its value is held at its target
            moved = self.ladder.climb(drive, climb.below, None, copies).phi @ copies["readout"].T
            return moved * shown + target * (1 - shown)

        return Teaching(
            (target - values) * shown,
            target,
            self.readout,
            values,
            RELEVANCE,
            forward,
            error_of=lambda v: (target - v) * shown,
            step=self.steps,
        )

    def updates(self, below: Tensor, drive: Tensor | None, label: Tensor) -> Updates:
        """What the rule asks for; nothing changes."""
        climb = self.climb(below, drive)
        return self.rule.step(self.ladder, climb, self.teaching(climb, label))

    def learn(self, below: Tensor, drive: Tensor | None, label: Tensor) -> Updates:
        """One step."""
        climb = self.climb(below, drive)
        teaching = self.teaching(climb, label)
        found = self.rule.step(self.ladder, climb, teaching)
        if self.entry.rule:
            for name, direction in found.ladder.items():
                self.optimizer.move(name, self.ladder.get_buffer(name), direction, self.rate)
            for name, direction in found.own.items():
                self.optimizer.move(f"rule.{name}", self.rule.state[name], direction, self.rate)
        if self.precise is None:
            self.optimizer.move("readout", self.readout, found.readout, self.rate)
        else:
            self._read(self.precise, climb.phi, teaching)
            self.readout = self.precise.weight.float()
        self.steps += len(label)
        return found

    def _read(self, readout: PrecisionReadout, phi: Tensor, teaching: Teaching) -> None:
        """Recursive least squares: on the whole one-hot where it is known, else on what was chosen."""
        if not self.entry.reward:
            readout.learn(phi, teaching.target.argmax(1))
            return
        chosen = teaching.error.abs().argmax(1)  # the error of what was not shown is exactly 0
        readout.learn_outcomes(phi, chosen, teaching.target.gather(1, chosen.unsqueeze(1)).squeeze(1))

    def accuracy(self, below: Tensor, drive: Tensor | None, label: Tensor) -> float:
        right = []
        for start in range(0, len(label), 1000):
            some = slice(start, start + 1000)
            phi = self.climb(below[some], None if drive is None else drive[some]).phi
            right.append((phi @ self.readout.T).argmax(1) == label[some])
        return float(torch.cat(right).float().mean())

    def alignment(self, below: Tensor, drive: Tensor | None, label: Tensor) -> float | None:
        """Cosine between the rule's update of W and the gradient's, all rungs in one vector; None where there
        is none."""
        if not self.entry.rule:
            return None
        found = self.updates(below, drive, label)
        climb = self.ladder.climb(
            below.new_zeros(len(below), self.ladder.depth * self.ladder.width) if drive is None else drive,
            below,
            None,
        )
        values = climb.phi @ self.readout.T
        target = torch.nn.functional.one_hot(label, self.classes).to(values)
        taught = Teaching(target - values, target, self.readout, values, RELEVANCE)
        true = make_rule("attention_gated", {}).step(self.ladder, climb, taught)
        names = [n for n in true.ladder if n.startswith("weight")]
        one, other = (torch.cat([u.ladder[n].flatten() for n in names]) for u in (found, true))
        if not (one.norm() > 0 and other.norm() > 0):
            return None
        return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


@dataclass(frozen=True)
class Course:
    """What one run left.

    Args:
        accuracy: on the held-out split, before learning and after each epoch.
        alignment: cosine with the gradient at the same times.
        seconds: per step, median.
        notes: means of the rule's notes in the last epoch.
    """

    accuracy: list[float]
    alignment: list[float | None]
    seconds: float
    notes: dict[str, float]


@torch.no_grad()
def train(
    entry: Entry,
    task: Task,
    width: int,
    seed: int,
    rate: float,
    epochs: int,
    batch: int = 64,
    readout: str = "delta",
) -> Course:
    """Epochs of a shuffled pass each; the same shuffles for every rule of a seed. `epochs` may be a single
    one."""
    net = Network(entry, task, width, seed, rate, readout == "precision")
    shuffle = torch.Generator().manual_seed(seed + 2)
    test = (task.test_below, task.test_drive, task.test_label)
    probe = torch.randperm(len(task.label), generator=torch.Generator().manual_seed(seed + 3))[:256]

    def probed() -> float | None:
        drive = None if task.drive is None else task.drive[probe]
        return net.alignment(task.below[probe], drive, task.label[probe])

    accuracy, alignment, spent = [net.accuracy(*test)], [probed()], []
    notes: dict[str, list[float]] = {}
    for epoch in range(epochs):
        for some in torch.randperm(len(task.label), generator=shuffle).split(batch):
            drive = None if task.drive is None else task.drive[some]
            began = time.perf_counter()
            found = net.learn(task.below[some], drive, task.label[some])
            spent.append(time.perf_counter() - began)
            if epoch == epochs - 1:
                for name, value in found.notes.items():
                    notes.setdefault(name, []).append(value)
        accuracy.append(net.accuracy(*test))
        alignment.append(probed())
    middle = float(torch.tensor(spent).median())
    return Course(accuracy, alignment, middle, {n: sum(v) / len(v) for n, v in notes.items()})
