"""Transport: what the readout has counted is carried along when U, W and b have moved phi.

The readout's statistics are of phi as it was. For each sample of a window its phi under the weights from the
start of the window is worked out too; nothing is kept of the sample but its share in two sums, and from these
comes the linear map from old phi to new, after semantic drift compensation (Yu et al., 2020), which has class
means for the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from arr_coc.answer import Answer
from arr_coc.percept import Percept
from arr_coc.readout import PrecisionReadout

if TYPE_CHECKING:
    from arr_coc.learner import Learner


SHRINK = 10.0  # chosen on a seed that no table uses: 0 loses what the map is to win, 100 is like 10


class Transport(nn.Module):
    """Delta = (sum d o') (sum o o' + (rho + s m) I)^-1, then A <- T A T' and B' <- B' T', T = I + f Delta.

    o is phi under the weights from the start of the window, d what it has moved since. A sample is looked at
    before it is learned, so its own step, which moves it more than any other sample, has no part in its d.
    Over a window that moves evenly the mean d is half of the way: what was counted before the window goes
    twice that far, and what was counted within it once, so f = 1 + the share that is older. A window has
    fewer samples than phi has dimensions: with m the mean eigenvalue of sum o o', only what many samples of
    it have in common moves.

    Args:
        every: samples of a window.
        ladder: the ladder's plastic tensors by name.
        relevance: U. gain: the own gain's weight.
        width: D, of phi.
        shrink: s.
    """

    def __init__(
        self,
        every: int,
        ladder: dict[str, Tensor],
        relevance: Tensor,
        gain: Tensor,
        width: int,
        shrink: float = SHRINK,
    ) -> None:
        super().__init__()
        self.every, self.shrink = every, shrink
        self.square: Tensor  # sum o o', (D, D)
        self.drift: Tensor  # sum d o', (D, D)
        self.count: Tensor
        for name in ("square", "drift"):
            self.register_buffer(name, torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for name, tensor in {**ladder, "relevance": relevance, "gain": gain}.items():
            self.register_buffer(f"then_{name}", tensor.clone())
        self.state_names = tuple(name for name, _ in self.named_buffers())

    def follow(self, learner: "Learner", percept: Percept, answer: Answer) -> None:
        """Count what was answered in, after it was learned, and end the window if it is over."""
        with self.before(learner):
            *_, then = learner._look(percept, answer.features, answer.context)
        self.observe(then.phi, answer.climb.phi)
        self.end(learner)

    @contextmanager
    def before(self, learner: "Learner") -> Iterator[None]:
        """Inside, the learner has the weights from the start of the window."""
        owners = _moving(learner)
        now = {name: owner.get_buffer(at) for name, (owner, at) in owners.items()}
        try:
            for name, (owner, at) in owners.items():
                setattr(owner, at, self.get_buffer(f"then_{name}"))
            yield
        finally:
            for name, (owner, at) in owners.items():
                setattr(owner, at, now[name])

    def observe(self, then: Tensor, now: Tensor) -> None:
        """Count samples in: phi (B, D) under the weights from before, and as it is."""
        old = then.to(self.square)
        self.square.addmm_(old.T, old)
        self.drift.addmm_((now.to(old) - old).T, old)
        self.count += len(old)

    def end(self, learner: "Learner") -> None:
        """Carry the readout's statistics along, if the window is over, and begin another."""
        if int(self.count) < self.every:
            return
        if self.drift.any():
            self.carry(learner.readout)
        self.square.zero_()
        self.drift.zero_()
        self.count.zero_()
        for name, (owner, at) in _moving(learner).items():
            self.get_buffer(f"then_{name}").copy_(owner.get_buffer(at))

    def carry(self, readout: PrecisionReadout) -> None:
        """Put T into A and B, and solve."""
        eye = readout.familiarity.eye()
        prior = readout.ridge + self.shrink * float(self.square.trace()) / len(eye)
        delta = torch.linalg.solve(self.square + prior * eye, self.drift.T).T
        counted = float(readout.familiarity.leverage[4])
        older = max(counted - int(self.count), 0.0) / max(counted, 1.0)
        t = eye + (1 + older) * delta
        for gram in (readout.familiarity.gram, *readout.partial):
            moved = t @ gram @ t.T
            gram.copy_((moved + moved.T) / 2)
        readout.cross.copy_(readout.cross @ t.T)
        readout.solve()


def _moving(learner: "Learner") -> dict[str, tuple[nn.Module, str]]:
    """What phi depends on and learning moves: where it is."""
    found: dict[str, tuple[nn.Module, str]] = {
        name: (learner.ladder, name) for name in learner.ladder.weights()
    }
    return found | {"relevance": (learner, "relevance_weight"), "gain": (learner.own_gain, "weight")}
