"""The readout: recursive least squares in float64 over sufficient statistics that add."""

import torch
from torch import Tensor, nn

from arr_coc.familiarity import Familiarity, absorb
from arr_coc.placing import placed


class PrecisionReadout(nn.Module):
    """values = R phi with R = B' (A + rho I)^-1, A = sum w phi phi', B = sum w phi y', kept up recursively.

    One step is R += (Y - Phi R') ' K' with the gain K of `familiarity`, which keeps A and P = (A + rho I)^-1.
    One-hot targets; a class that appears late has had target 0 all along, so its row starts at exactly zero
    and the result equals the joint solution in any order. A and B add across workers and take samples back;
    `solve` rebuilds P and R from them.

    With reward alone only the chosen row's outcome is known: that row then keeps a statistic of its own
    (`partial`), at the cost of another (D, D) matrix, and shares the rest.

    Under drift, old samples may weigh less: with a forgetting factor, A = sum lambda^age w phi phi' and B
    alike, age in samples that came later (labels and rewards; a batch is its samples in turn). Recursion
    alone would let the prior fade as well, and P grow without bound where nothing excites it ("wind-up");
    when half of it is gone, P and R are solved anew from A and B under the whole rho. So R is at any time the
    weighted least squares solution for a prior between rho / 2 and rho, and P is at most 2 / rho.

    Args:
        width: D, of phi.
        ridge: rho.
        forgetting: lambda in (0, 1]; 1 forgets nothing.
    """

    state_names = (
        "cross",
        "weight",
        "class_count",
        "last_met",
        "partial",
        "partial_precision",
        "partial_rows",
    )

    def __init__(self, width: int, ridge: float = 1.0, forgetting: float = 1.0) -> None:
        super().__init__()
        self.width, self.ridge, self.forgetting = width, ridge, forgetting
        self.classes: list[str] = []
        self.familiarity = Familiarity(width, ridge, fades=forgetting != 1)
        self.cross: Tensor  # B', (C, D)
        self.weight: Tensor  # R, (C, D)
        self.class_count: Tensor  # (C,)
        self.last_met: Tensor  # (C,): the number of the last label of each class, from 1
        self.partial: Tensor  # (K, D, D): what the A of rows that were rewarded on their own have more
        self.partial_precision: Tensor  # (K, D, D): the P of those rows
        self.partial_rows: Tensor  # (K,): which rows those are
        own = {"partial": (0, width, width), "partial_precision": (0, width, width)}
        wide = {"cross": (0, width), "weight": (0, width)}
        narrow = {"class_count": (0,), "last_met": (0,)}
        for name, shape in {**wide, **narrow, **own}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("partial_rows", torch.zeros(0, dtype=torch.int64))

    # -- classes ---------------------------------------------------------------------------------------------

    def rows(self, keys: list[str], *, grow: bool = False) -> Tensor:
        """Row of each class, (len(keys),); -1 where it was never met, unless `grow` makes room for it."""
        if grow:
            new = [k for k in dict.fromkeys(keys) if k not in self.classes]
            if new:
                self.classes.extend(new)
                for name in ("cross", "weight"):
                    old = getattr(self, name)
                    setattr(self, name, torch.cat([old, old.new_zeros(len(new), self.width)]))
                for name in ("class_count", "last_met"):
                    old = getattr(self, name)
                    setattr(self, name, torch.cat([old, old.new_zeros(len(new))]))
        place = {k: i for i, k in enumerate(self.classes)}
        found = [place.get(k, -1) for k in keys]
        return torch.tensor(found, dtype=torch.long, device=self.weight.device)

    def forget(self, classes: int) -> None:
        """Drop the rows of classes from this number on: they were made room for and nothing was learned."""
        self.classes = self.classes[:classes]
        for name in ("cross", "weight", "class_count", "last_met"):
            setattr(self, name, getattr(self, name)[:classes])

    def keep(self, rows: Tensor) -> None:
        """Leave only these rows, (K,) ascending; those rewarded on their own are for the caller to set."""
        self.classes = [self.classes[row] for row in rows.tolist()]
        for name in ("cross", "weight", "class_count", "last_met"):
            setattr(self, name, getattr(self, name)[rows])

    def meet(self, rows: Tensor, clock: Tensor) -> None:
        """Note when these classes were met: the numbers (B,) of their samples, from 1."""
        at = self.last_met.device
        self.last_met.scatter_reduce_(0, rows.to(at), clock.to(self.last_met), "amax")

    def met_lately(self, window: int, seen: int, batch: int) -> Tensor:
        """Which classes were met in the last `window` samples, the `batch` after the first `seen` among them,
        (C,) bool; all where the window is 0."""
        if not window:
            return torch.ones_like(self.last_met, dtype=torch.bool)
        return self.last_met > max(float(seen) + batch - max(window, batch), 0.0)

    # -- answering -------------------------------------------------------------------------------------------

    def values(self, phi: Tensor) -> Tensor:
        """R phi for every class met, (B, C) in float64."""
        return phi.to(self.weight) @ self.weight.T

    def evened(self, values: Tensor, power: float) -> Tensor:
        """v_c (n / (K n_c))^power, (B, C): values (B, C) of all classes, each as if the K that labels have
        taught had had the same number of samples n_c, n in all.

        Ridge regression on one-hot targets gives v_c = n_c phi' P m_c, m_c the mean phi of class c: what is
        rare answers too seldom. 0 leaves that as it is; with 1/2 the targets' columns are whitened, as in
        discriminant analysis by least squares (Ye, 2007; its constant is phi's). A row that was rewarded on
        its own has its own P, which its share of the samples is in already: it stays as it is.
        """
        shared = self.class_count > 0
        shared[self.partial_rows] = False
        even = torch.ones_like(self.class_count)
        even[shared] = (self.class_count[shared].mean() / self.class_count[shared]) ** power
        return values * even.to(values)

    def variance(self, phi: Tensor, rows: Tensor) -> Tensor:
        """phi' P_s phi for the rows (K,) of the readout, (B, K): how uncertain each of those values is."""
        shared = self.familiarity.variance(phi).unsqueeze(1).repeat(1, len(rows))
        place = {int(r): k for k, r in enumerate(self.partial_rows)}
        p = phi.to(self.weight)
        for column, row in enumerate(rows.tolist()):
            if row in place:
                own = self.partial_precision[place[row]]
                shared[:, column] = ((p @ own) * p).sum(1).clamp_min(0)
        return shared

    # -- learning --------------------------------------------------------------------------------------------

    def learn(self, phi: Tensor, rows: Tensor, weight: Tensor | None = None) -> None:
        """Count samples in: phi (B, D), the row of each one's class (B,), what each weighs (B,) (default
        1)."""
        p, before = phi.to(self.weight), self.familiarity.counted()
        w = torch.ones(len(p), dtype=p.dtype, device=p.device) if weight is None else weight.to(p)
        self._learn(p, rows, w * self._fade(p))
        self._repair(before)

    def _repair(self, before: float) -> None:
        """Solve anew where rounding has led the recursion astray, as huge features do."""
        if self.forgetting != 1 or not self.familiarity.due(before):  # who forgets solves now and then anyway
            return
        inside = self.familiarity
        alone = zip(self.partial_precision, self.partial, strict=True)
        if inside.drifted(inside.precision, inside.gram) or any(
            inside.drifted(precision, inside.gram + own) for precision, own in alone
        ):
            self.solve()

    def _fade(self, p: Tensor) -> Tensor:
        """Let all that was counted age by the samples (B, D) that come now; what each of those weighs when
        the last of them has come, (B,)."""
        if self.forgetting == 1:
            return p.new_ones(len(p))
        share = self.forgetting ** len(p)
        self.cross *= share
        self.partial *= share
        self.familiarity.fade(share)
        self.partial_precision /= share
        if float(self.familiarity.left) < 0.5:
            self.solve()
        return self.forgetting ** torch.arange(len(p), device=p.device).flip(0).to(p)

    def _learn(self, p: Tensor, rows: Tensor, w: Tensor) -> None:
        target = self._count(p, rows, w)
        own = {int(r): k for k, r in enumerate(self.partial_rows)}
        gain = self.familiarity.learn(p, w)
        error = target - self.values(p)
        error[:, list(own)] = 0.0
        self.weight.addmm_(error.T, gain)
        for row, place in own.items():
            self._learn_row(row, place, p, target[:, row], w)

    def count(self, phi: Tensor, rows: Tensor, weight: Tensor) -> None:
        """Count samples into the statistics alone, as `learn` does but that nothing ages; `solve` then makes
        P and R of them."""
        p, w = phi.to(self.weight), weight.to(self.weight)
        self._count(p, rows, w)
        self.familiarity.gram.addmm_((p * w.unsqueeze(1)).T, p)

    def _count(self, p: Tensor, rows: Tensor, w: Tensor) -> Tensor:
        target = torch.nn.functional.one_hot(rows, len(self.classes)).to(p)  # (B, C)
        self.cross.addmm_((target * w.unsqueeze(1)).T, p)
        self.class_count += target.sum(0)
        return target

    def learn_outcomes(self, phi: Tensor, rows: Tensor, outcomes: Tensor) -> None:
        """Count in what single answers were worth: `outcomes` (B,) for the classes `rows` (B,) at phi (B, D).

        An outcome of 1 says that all other classes were worth 0; any other says nothing about them.
        """
        p, worth, before = phi.to(self.weight), outcomes.to(self.weight), self.familiarity.counted()
        rows, w = rows.to(self.weight.device), self._fade(p)
        right = worth == 1
        if right.any():
            self._learn(p[right], rows[right], w[right])
        for row in rows[~right].unique().tolist():
            some = (rows == row) & ~right
            self._learn_alone(row, p[some], worth[some], w[some])
        self._repair(before)

    def _learn_alone(self, row: int, p: Tensor, target: Tensor, w: Tensor) -> None:
        """Count (B, D) in for one row, which has statistics of its own from now on."""
        self.familiarity.watch(p)
        place = {int(r): k for k, r in enumerate(self.partial_rows)}
        if row not in place:
            self.partial = torch.cat([self.partial, self.partial.new_zeros(1, self.width, self.width)])
            self.partial_rows = torch.cat([self.partial_rows, self.partial_rows.new_tensor([row])])
            shared = self.familiarity.precision.unsqueeze(0)
            self.partial_precision = torch.cat([self.partial_precision, shared])
            place[row] = len(place)
        self.partial[place[row]].addmm_((p * w.unsqueeze(1)).T, p)
        self.cross[row] += (target * w) @ p
        self._learn_row(row, place[row], p, target, w)

    def _learn_row(self, row: int, place: int, p: Tensor, target: Tensor, w: Tensor) -> None:
        error = target - p @ self.weight[row]
        gain = absorb(self.partial_precision[place], p, w)
        self.weight[row] += error @ gain

    # -- statistics ------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Rebuild P and R from A and B, under the whole prior: repairs whatever drift recursion has left."""
        factor = self.familiarity.solve()
        self.weight.copy_(torch.cholesky_solve(self.cross.T, factor).T)
        for k, row in enumerate(self.partial_rows.tolist()):
            gram = self.familiarity.gram + self.partial[k]
            own = torch.linalg.cholesky(gram + self.ridge * self.familiarity.eye())
            self.partial_precision[k] = torch.cholesky_inverse(own)
            self.weight[row] = torch.cholesky_solve(self.cross[row].unsqueeze(1), own).squeeze(1)

    def grow(self, place: Tensor, width: int, copied: Tensor | None = None) -> None:
        """Go on with a phi of more entries, in which entry i of the old one stands at `place[i]`: as if those
        that are new had been 0 in all samples; or, with `copied`, as if the entries there had been what the
        entries `copied[:, 1]` were at `copied[:, 0]`, (K, 2), both by their new places."""
        self.width = width
        self.familiarity.grow(place, width)
        self.cross, self.weight = (placed(t, place, width) for t in (self.cross, self.weight))
        self.partial = placed(placed(self.partial, place, width), place, width, -2)
        new = self.familiarity.prior(place)  # of the entries that are new
        self.partial_precision = placed(placed(self.partial_precision, place, width), place, width, -2) + new
        if copied is not None:
            there, source = copied.to(place.device).T
            self.cross[:, there] = self.cross[:, source]
            for gram in (self.familiarity.gram, *self.partial):
                gram[there] = gram[source]
                gram[:, there] = gram[:, source]
            self.solve()

    def clear(self) -> None:
        """Forget all samples; the classes stay."""
        self.partial, self.partial_precision = self.partial[:0], self.partial_precision[:0]
        self.partial_rows = self.partial_rows[:0]
        for kept in (self.cross, self.weight, self.class_count, self.last_met):
            kept.zero_()
        self.familiarity.clear()

    def replace(self, other: "PrecisionReadout") -> None:
        """Take another readout's samples, of the same classes and shape, for all of one's own; when classes
        were met stays."""
        for name in self.state_names:
            if name != "last_met":
                setattr(self, name, getattr(other, name).clone())
        self.familiarity.load_state_dict(other.familiarity.state_dict())

    def merge(self, other: "PrecisionReadout") -> None:
        """Add another readout's statistics to these and solve: the same as having seen both streams.

        Raises:
            ValueError: if the widths or ridges differ; if either forgets, for then it matters what came
                after what.
        """
        if (self.forgetting, other.forgetting) != (1, 1):
            raise ValueError(
                f"readouts with forgetting={self.forgetting:g} and {other.forgetting:g} cannot be merged: "
                "how old a sample is among all of them is not known; forgetting=1 is needed"
            )
        if (other.width, other.ridge) != (self.width, self.ridge):
            raise ValueError(
                f"cannot merge width {other.width}, ridge {other.ridge} "
                f"into width {self.width}, ridge {self.ridge}"
            )
        rows = self.rows(other.classes, grow=True)
        place = {int(row): k for k, row in enumerate(self.partial_rows)}
        for row, partial in zip(rows[other.partial_rows].tolist(), other.partial, strict=True):
            if row in place:
                self.partial[place[row]] += partial
            else:  # `solve` makes the P of it
                self.partial = torch.cat([self.partial, partial.unsqueeze(0)])
                self.partial_precision = torch.cat([self.partial_precision, partial.unsqueeze(0)])
                self.partial_rows = torch.cat([self.partial_rows, self.partial_rows.new_tensor([row])])
        self.cross.index_add_(0, rows, other.cross)
        self.class_count.index_add_(0, rows, other.class_count)
        self.meet(rows, other.last_met)  # both count from their own beginning
        self.familiarity.merge(other.familiarity)
        self.solve()
