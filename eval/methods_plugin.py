"""The plugin on stored percepts, its ablations, its upper bounds, and the same ladder by backpropagation."""

import math

import torch
from torch import Tensor

from arr_coc import state
from arr_coc.config import ArrCocConfig
from arr_coc.eval.methods_features import Answered, Method
from arr_coc.eval.percepts import Batch, Store
from arr_coc.learner import Learner
from arr_coc.pending import Eligibility
from arr_coc.readout import PrecisionReadout
from arr_coc.rules import make_rule
from arr_coc.teaching import evidence


class Plugin(Method):
    """A `Learner`, stepped on percepts that were stored instead of on the model: the same numbers, sooner.

    Args:
        store: for the shapes.
        config: of the learner.
        fused: answer with the model's own scores mixed in by trust; otherwise values stand alone. A delta
            readout has no predictive variance to be trusted by: its values always do.
    """

    def __init__(self, store: Store, config: ArrCocConfig, fused: bool = True) -> None:
        self.config, self._fused = config, fused and config.readout == "precision"
        self.learner = Learner(config, store.site_widths, store.context.shape[1], store.state_width)
        self.ledger = make_rule(config.rule, config.rule_options).ledger

    def observe(self, batch: Batch) -> None:
        with torch.no_grad():
            self.learner.learn(batch.percept, batch.labels)

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        with torch.no_grad():
            answer = self.learner.answer(batch.percept)
            own = batch.own_logits(texts)
            if self._fused:
                fused = self.learner.fuse(own, texts, answer)
                return Answered(fused, answer.reading, self.learner.probabilities(fused, texts, answer))
            rows = self.learner.readout.rows(texts)
            scores = torch.full((len(own), len(texts)), -torch.inf, dtype=torch.float64)
            if len(self.learner.classes):
                scores[:, rows >= 0] = answer.evened[:, rows[rows >= 0]].double()
            return Answered(scores, answer.reading)

    def state_bytes(self) -> int:
        return state.size(self.learner)


class Sparse(Plugin):
    """The plugin with a label for every fourth sample, and nothing for the others."""

    every = 4

    def __init__(self, store: Store, config: ArrCocConfig) -> None:
        super().__init__(store, config)
        self._store, self._seen = store, 0

    def observe(self, batch: Batch) -> None:
        told = (torch.arange(len(batch.labels)) + self._seen) % self.every == 0
        self._seen += len(batch.labels)
        if told.any():
            super().observe(self._store.batch(batch.rows[told]))


class SecondHalf(Plugin):
    """The plugin, told when half of the stream is over, where a stream that drifts does so: it learns from
    there on. What is left of the first meaning in another learner, and how much was lost with it, is told by
    the distance to this one."""

    told_boundaries = True

    def __init__(self, store: Store, config: ArrCocConfig) -> None:
        super().__init__(store, config)
        count = sum(split == "train" for split, _ in store.place)
        self._before, self._seen = count - count // 2, 0

    def observe(self, batch: Batch) -> None:
        begun = self._seen >= self._before
        self._seen += len(batch.labels)
        if begun:
            super().observe(batch)


class Rewarded(Plugin):
    """The plugin from reward alone: it answers, and is told whether that was right (1) or not (0).

    Args:
        late: each reward comes 1 to so many samples after its answer, drawn anew for each; 0: at once.
        seed: of the delays.
    """

    def __init__(self, store: Store, config: ArrCocConfig, late: int = 0, seed: int = 0) -> None:
        super().__init__(store, config)
        self._candidates, self._late = store.classes, late
        self._draw = torch.Generator().manual_seed(seed)
        self._waiting: list[tuple[int, Eligibility, float]] = []  # due at this sample, what for, how good
        self._seen = 0

    def observe(self, batch: Batch) -> None:
        with torch.no_grad():
            choice, left = self.learner.act(batch.percept, self._candidates)
            for chosen, one, label in zip(choice.tolist(), left, batch.labels, strict=True):
                wait = int(torch.randint(1, self._late + 1, (1,), generator=self._draw)) if self._late else 0
                good = float(self._candidates[chosen] == label)
                self._waiting.append((self._seen + wait, one, good))
                self._seen += 1
            self._pay(self._seen)

    def finish(self) -> None:
        with torch.no_grad():
            self._pay(self._seen + self._late)

    def _pay(self, until: int) -> None:
        due = sorted((w for w in self._waiting if w[0] <= until), key=lambda w: w[0])
        self._waiting = [w for w in self._waiting if w[0] > until]
        if due:
            self.learner.reward([w[1] for w in due], torch.tensor([w[2] for w in due]))


class Joint(Plugin):
    """All data at once, the same features and capacity: relevance from one shuffled pass, then the readout
    solved over every sample with that relevance. The upper bound of the plugin, not a rival.

    Args:
        seed: of the shuffle.
    """

    final_only = True

    def __init__(self, store: Store, config: ArrCocConfig, seed: int) -> None:
        super().__init__(store, config, fused=False)
        self._store, self._seed = store, seed
        self._kept: list[Tensor] = []  # rows of the store, a step each

    def observe(self, batch: Batch) -> None:
        self._kept.append(batch.rows)

    def finish(self) -> None:
        shuffle = torch.Generator().manual_seed(self._seed)
        step = len(self._kept[0])
        rows = torch.cat(self._kept).sort().values  # the order in which they came has no say
        rows = rows[torch.randperm(len(rows), generator=shuffle)]
        with torch.no_grad():
            if self.config.learn_relevance:
                for some in rows.split(step):
                    batch = self._store.batch(some)
                    self.learner.learn(batch.percept, batch.labels)
            joint = PrecisionReadout(self.learner.readout.width, self.config.ridge)
            steps = rows.split(step)
            # phi in the stream's batch size, where its rounding is that of the pass; statistics in chunks
            for start in range(0, len(steps), 256):
                self._count(joint, list(steps[start : start + 256]))
            joint.solve()
        self.learner.readout = joint
        self._kept = []

    def _count(self, joint: PrecisionReadout, steps: list[Tensor]) -> None:
        """Add what these steps' samples are worth under the relevance there is now."""
        phis, weights, labels = [], [], []
        for some in steps:
            batch = self._store.batch(some)
            answer = self.learner.answer(batch.percept)
            weight = evidence(self.learner, batch.percept, answer)
            phis.append(answer.climb.phi.double())
            weights.append(torch.ones(len(batch.labels)) if weight is None else weight)
            labels += batch.labels
        joint.count(torch.cat(phis), joint.rows(labels, grow=True), torch.cat(weights))


class Oracle(Method):
    """Relevance uniform on the true cell, the same readout, no context in the readout."""

    def __init__(self, store: Store, config: ArrCocConfig) -> None:
        if store.mask is None:
            raise ValueError("the oracle needs the truth for relevance, and this stream has none")
        shape = Learner(config, store.site_widths, store.context.shape[1], store.state_width)
        self.ladder = shape.ladder
        self.readout = PrecisionReadout(self.ladder.phi_width, config.ridge)

    def _phi(self, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.mask is not None
        r = batch.mask.float() / batch.mask.sum(1, keepdim=True)
        features = self.ladder.features(batch.percept.tokens)
        drive = torch.bmm(r.unsqueeze(1), features).squeeze(1)
        blank = torch.zeros_like(batch.percept.context, dtype=drive.dtype)
        return self.ladder.climb(drive, blank, None).phi, r

    def observe(self, batch: Batch) -> None:
        with torch.no_grad():
            phi, _ = self._phi(batch)
            self.readout.learn(phi, self.readout.rows(batch.labels, grow=True))

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        if batch.mask is None:  # held-out pictures have no truth: the oracle has no answer
            return Answered(torch.full((len(batch.labels), len(texts)), -torch.inf))
        with torch.no_grad():
            phi, r = self._phi(batch)
            rows = self.readout.rows(texts)
            scores = torch.full((len(phi), len(texts)), -torch.inf, dtype=torch.float64)
            if self.readout.classes:
                scores[:, rows >= 0] = self.readout.values(phi)[:, rows[rows >= 0]]
        return Answered(scores, r)

    def state_bytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.readout.buffers())


def chance(store: Store, rows: Tensor) -> float:
    """What a map that knows nothing points at by luck: the mean share of tokens inside the truth."""
    return math.nan if store.mask is None else float(store.mask[rows].float().mean())
