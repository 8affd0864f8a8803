"""Drift: what was counted before labels changed their meaning is dropped, when and only when it misleads.

A forgetting factor forgets what still holds along with what does not. Here a second readout, the challenger,
counts from the sample on at which the first one came under suspicion, and takes its place if it is right more
often: paired learners (Bach & Maloof, 2008), with the change told by two cumulative sums (Page, 1954).
"""

import torch
from torch import Tensor, nn

from arr_coc.readout import PrecisionReadout

SLACK = 0.05  # by which the error rate has to rise before it counts as suspicious
TOLERANCE = 0.3  # by which the challenger has to be right more often: fewer classes are easier to tell apart
KNOWN = 10  # samples that a class needs from before the suspicion: learning a new one is no drift
PATIENCE = 100  # samples after which a challenger that is not ahead is let go


class Drift(nn.Module):
    """g <- max(0, g + e - mean e - SLACK), and while g > 0, d <- max(0, d + e - e' - TOLERANCE): d >= margin
    drops all that was counted before g was last 0.

    e is 1 where the readout's best answer, before the sample is learned, is wrong, else 0; a sample of a
    class with fewer than KNOWN from before the suspicion says nothing, so a label that takes over a meaning
    and was new itself is not noticed. For d, e and the challenger's e' are both asked among the classes that
    the challenger has met: it must not win by knowing no others.

    Args:
        readout: whose challenger it is to be.
        margin: hits by which it has to be ahead, beyond TOLERANCE.
    """

    state_names = ("errors", "suspicion", "lead", "drops")

    def __init__(self, readout: PrecisionReadout, margin: float) -> None:
        super().__init__()
        self.margin = margin
        self.challenger = PrecisionReadout(readout.width, readout.ridge, readout.forgetting)
        self.errors: Tensor  # samples since the last drop, and mean e, from one half as if two had been seen
        self.suspicion: Tensor  # g
        self.lead: Tensor  # d
        self.drops: Tensor  # how often all before was dropped
        self.register_buffer("errors", torch.tensor([2.0, 0.5], dtype=torch.float64))
        self.register_buffer("suspicion", torch.zeros((), dtype=torch.float64))
        self.register_buffer("lead", torch.zeros((), dtype=torch.float64))
        self.register_buffer("drops", torch.zeros((), dtype=torch.int64))

    def rest(self) -> None:
        """Suspect nothing, and let the challenger go."""
        self.suspicion.zero_()
        self.lead.zero_()
        self.challenger.clear()

    def observe(
        self, readout: PrecisionReadout, phi: Tensor, rows: Tensor, weight: Tensor | None = None
    ) -> None:
        """Look at samples before the readout learns them; drop what it has, if that misleads.

        Args:
            phi: (B, D). rows: of their classes, (B,). weight: what each weighs, (B,), None for 1.
        """
        self.challenger.rows(readout.classes, grow=True)
        rows = rows.to(readout.weight.device)
        values, others = readout.values(phi), self.challenger.values(phi)
        wrong = _wrong(values, rows, readout.class_count > 0)
        met = self.challenger.class_count > 0  # by the challenger
        ahead = _wrong(values, rows, met) - _wrong(others, rows, met) - TOLERANCE
        known, both = (readout.class_count - self.challenger.class_count)[rows] >= KNOWN, met[rows]
        fresh, start = not float(self.suspicion), 0
        for i, e in enumerate(wrong.tolist()):
            if not bool(known[i]):
                continue
            before, (count, mean) = float(self.suspicion), self.errors.tolist()
            self.suspicion += e - mean - SLACK
            self.errors.copy_(self.errors.new_tensor([count + 1, mean + (e - mean) / (count + 1)]))
            if float(self.suspicion) <= 0 or not before:  # nothing was suspected before this sample
                self.suspicion.clamp_(min=0)
                self.lead.zero_()
                fresh, start = True, i if float(self.suspicion) else i + 1
            elif not fresh and bool(both[i]):
                self.lead += ahead[i]
                self.lead.clamp_(min=0)
        if fresh:
            self.challenger.clear()
        if float(self.lead) >= self.margin:
            self._drop(readout)
        elif not float(self.lead) and float(self.challenger.familiarity.leverage[4]) >= PATIENCE:
            self.rest()
        if float(self.suspicion):
            some = None if weight is None else weight[start:]
            self.challenger.learn(phi[start:], rows[start:], some)

    def _drop(self, readout: PrecisionReadout) -> None:
        """Put the challenger in the readout's place; what it has not met has no statistics."""
        readout.replace(self.challenger)
        self.errors.copy_(self.errors.new_tensor([2.0, 0.5]))
        self.drops += 1
        self.rest()


def _wrong(values: Tensor, rows: Tensor, among: Tensor) -> Tensor:
    """1 where the best of these classes (C,) bool is not the right one, else 0, (B,)."""
    return (values.masked_fill(~among, -torch.inf).argmax(1) != rows).to(values)
