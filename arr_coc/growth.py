"""Growth: when surprise stays high, the ladder's column of rungs is frozen and a new one begins beside it.

Source: Rusu et al. (2016), progressive networks; there somebody says where a task ends, here a cumulative sum
of the ladder's own surprise does (Page, 1954).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from arr_coc.config import ArrCocConfig
from arr_coc.drift import Drift
from arr_coc.ladder import Ladder
from arr_coc.readout import PrecisionReadout

if TYPE_CHECKING:
    from arr_coc.learner import Learner

# rates, a sample: of the usual surprise, and of its slope and the spread around it
LEVEL, TREND = 0.02, 0.005
SLACK, MOST = 0.25, 3.0  # of a sample's excess, in standard deviations: what is usual, and what one may count


class Growth(nn.Module):
    """g <- max(0, g + min(v / sd, MOST) - SLACK), v = F - (level + slope); a column is due at g > threshold.

    Surprise falls for as long as the error modules learn, so what is usual is a level with a slope, both
    running averages (Holt, 1957): level <- level + slope + r v, slope <- slope + r s v, var <- var + s (v^2 -
    var), at rates of at least 1/n. A level that rises and stays is usual in the end: what counts is that
    surprise was high for dozens of samples. For `patience` samples after a column began nothing counts.

    Args:
        threshold: of g. patience: samples.
    """

    state_names = ("usual", "excess", "age")

    def __init__(self, threshold: float, patience: int) -> None:
        super().__init__()
        self.threshold, self.patience = threshold, patience
        self.usual: Tensor  # level, slope, variance around them
        self.excess: Tensor  # g
        self.age: Tensor  # samples since the newest column began
        self.register_buffer("usual", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("excess", torch.zeros((), dtype=torch.float64))
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def observe(self, surprise: float) -> None:
        """Count the surprise of one sample in."""
        self.age += 1
        count, (level, slope, variance) = int(self.age), self.usual.tolist()
        over = surprise - level - slope
        if count > self.patience and variance > 0:
            self.excess += min(over / variance**0.5, MOST) - SLACK
            self.excess.clamp_(min=0)
        rate, slow = max(LEVEL, 1 / count), max(TREND, 1 / count)
        if count == 1:  # before, there was nothing to be over
            now = [surprise, 0.0, 0.0]
        else:
            now = [
                level + slope + rate * over,
                slope + rate * slow * over,
                variance + slow * (over**2 - variance),
            ]
        self.usual.copy_(self.usual.new_tensor(now))

    def follow(self, learner: "Learner", surprise: Tensor) -> None:
        """Count the surprise of samples in, (B,), and begin a column if one is due and there is room."""
        for value in surprise.double().tolist():
            self.observe(value)
        if self.due and learner.ladder.columns < learner.config.columns:
            grow(learner)

    @property
    def due(self) -> bool:
        """Whether surprise has stayed high."""
        return float(self.excess) > self.threshold

    def restart(self) -> None:
        """A column has begun."""
        self.usual.zero_()
        self.excess.zero_()
        self.age.zero_()


def untaught(
    config: ArrCocConfig, percept_shape: tuple[list[int], int, int], columns: int = 1
) -> tuple[Ladder, PrecisionReadout, Drift | None]:
    """A ladder of that many columns, and what is as wide as its phi.

    Args:
        percept_shape: widths of the sites, of the context and of the state.
    """
    shape = (*percept_shape, config.width, config.expansion, config.seed)
    ladder = Ladder(*shape, config.phi, config.activation, config.ladder_gain)
    for _ in range(columns - 1):
        ladder.grow()
    readout = PrecisionReadout(ladder.phi_width, config.ridge, config.forgetting)
    return ladder, readout, Drift(readout, config.drift_margin) if config.drift != "off" else None


def reshape(learner: "Learner", columns: int) -> None:
    """Give it an untaught ladder of that many columns, and an untaught readout, to put a state into."""
    devices = learner.ladder.weight(0).device, learner.readout.weight.device
    ladder, readout, drift = untaught(learner.config, learner.percept_shape, columns)
    learner.ladder, learner.readout = ladder.to(devices[0]), readout.to(devices[1])
    learner.drift = None if drift is None else drift.to(devices[1])


def grow(learner: "Learner") -> None:
    """Freeze the ladder's column and begin another: phi has more entries, which for all that was counted were
    0 or, of a copied column, what the frozen one's are. Actions that wait for a reward no longer move the
    rungs that they went through."""
    before, copy = learner.ladder.phi_width, learner.config.growth_start == "copy"
    place = learner.ladder.grow(copy)
    after, ladder = learner.ladder.phi_width, learner.ladder
    sent = ladder.width * (ladder.columns if ladder.depth > 1 else 1)
    readouts = [learner.readout] if learner.drift is None else [learner.readout, learner.drift.challenger]
    copied = None
    if copy and learner.config.readout == "precision":
        moved = (place != torch.arange(before, device=place.device)).nonzero().flatten()
        copied = torch.stack([moved, place[moved]], 1)  # a frozen rung has left its place to the new one
    for readout in readouts:
        readout.grow(place, after, copied)
    learner.rule.grow(place, before, after)
    learner.optimizer.grow(list(learner.ladder.weights()), place, before, after)
    if learner.growth is not None:
        learner.growth.restart()
    for groups in learner.pending.groups.values():
        for group in groups:
            group[:] = [e.grown(place, after, sent) for e in group]
