"""The readout: recursive least squares in float64 over sufficient statistics that add."""

import torch
from torch import Tensor, nn


class PrecisionReadout(nn.Module):
    """values = R phi with R = B' (A + rho I)^-1, A = sum w phi phi', B = sum w phi y', kept up recursively.

    One step is gain K = P Phi' (W^-1 + Phi P Phi')^-1, R += (Y - Phi R') ' K', P -= K Phi P. One-hot targets;
    a class that appears late has had target 0 all along, so its row starts at exactly zero and the result
    equals the joint solution in any order. A and B add across workers and take samples back; `solve` rebuilds
    P and R from them.

    With reward alone only the chosen row's outcome is known: that row then keeps a statistic of its own
    (`partial`), at the cost of another (D, D) matrix, and shares the rest.

    Args:
        width: D, of phi.
        ridge: rho.
    """

    state_names = (
        "precision",
        "gram",
        "cross",
        "weight",
        "class_count",
        "last_met",
        "leverage",
        "partial",
        "partial_precision",
        "partial_rows",
    )

    def __init__(self, width: int, ridge: float = 1.0) -> None:
        super().__init__()
        self.width, self.ridge = width, ridge
        self.classes: list[str] = []
        self.precision: Tensor  # P, (D, D)
        self.gram: Tensor  # A, (D, D)
        self.cross: Tensor  # B', (C, D)
        self.weight: Tensor  # R, (C, D)
        self.class_count: Tensor  # (C,)
        self.last_met: Tensor  # (C,): the number of the last label of each class, from 1
        # of log variance over usual: count, mean, variance; and the total weight learned
        self.leverage: Tensor
        self.partial: Tensor  # (K, D, D): what the A of rows that were rewarded on their own have more
        self.partial_precision: Tensor  # (K, D, D): the P of those rows
        self.partial_rows: Tensor  # (K,): which rows those are
        own = {"partial": (0, width, width), "partial_precision": (0, width, width)}
        wide = {"gram": (width, width), "cross": (0, width), "weight": (0, width)}
        narrow = {"class_count": (0,), "last_met": (0,), "leverage": (4,)}
        for name, shape in {**wide, **narrow, **own}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("precision", torch.eye(width, dtype=torch.float64) / ridge)
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
        return torch.tensor([place.get(k, -1) for k in keys], device=self.weight.device)

    def meet(self, rows: Tensor, clock: Tensor) -> None:
        """Note when these classes were met: the numbers (B,) of their samples, from 1."""
        at = self.last_met.device
        self.last_met.scatter_reduce_(0, rows.to(at), clock.to(self.last_met), "amax")

    # -- answering -------------------------------------------------------------------------------------------

    def values(self, phi: Tensor) -> Tensor:
        """R phi for every class met, (B, C) in float64."""
        return phi.to(self.weight) @ self.weight.T

    def variance(self, phi: Tensor) -> Tensor:
        """phi' P phi, (B,): the predictive variance in units of the noise."""
        p = phi.to(self.precision)
        return ((p @ self.precision) * p).sum(1).clamp_min(torch.finfo(torch.float64).tiny)

    def trust(self, phi: Tensor, sharpness: float = 1.0) -> Tensor:
        """How far the learned values are trusted: exp(-sharpness/2 max(0, z - 2)^2), (B,) in [0, 1].

        z is the log predictive variance over `usual_variance`, standardised by what samples had before they
        were learned. An input like those has trust 1; one unlike anything learned has a trust that underflows
        to exactly 0.
        """
        count, mean, square, _ = self.leverage.tolist()
        if count < 2:
            return torch.zeros(len(phi), dtype=torch.float64, device=self.weight.device)
        spread = max(square**0.5, 0.1)  # never less than a tenth of a nat
        z = (self.variance(phi).log() - self.usual_variance().log() - mean) / spread
        return torch.exp(-0.5 * sharpness * (z - 2).clamp_min(0) ** 2)

    def usual_variance(self) -> Tensor:
        """What a sample like those learned has, in closed form: h / (1 - w h) with h the mean leverage.

        sum_i w_i phi_i' P phi_i = tr(P A) = D - rho tr P, so the mean leverage needs the trace alone;
        dividing by 1 - w h takes a sample's own share out again (leave one out).
        """
        count, total = float(self.class_count.sum()), float(self.leverage[3])
        used = self.width - self.ridge * self.precision.diagonal().sum()  # effective parameters, below count
        if total <= 0:
            return self.precision.new_tensor(1.0)
        share = (used / count).clamp(max=1 - 1e-6)
        return (used / total / (1 - share)).clamp_min(torch.finfo(torch.float64).tiny)

    # -- learning --------------------------------------------------------------------------------------------

    def learn(self, phi: Tensor, rows: Tensor, weight: Tensor | None = None) -> None:
        """Count samples in: phi (B, D), the row of each one's class (B,), what each weighs (B,) (default
        1)."""
        p = phi.to(self.precision)
        target = torch.nn.functional.one_hot(rows, len(self.classes)).to(p)  # (B, C)
        w = torch.ones(len(p), dtype=p.dtype, device=p.device) if weight is None else weight.to(p)
        self._watch(self.variance(p), w)
        weighted = p * w.unsqueeze(1)
        self.gram.addmm_(weighted.T, p)
        self.cross.addmm_((target * w.unsqueeze(1)).T, p)
        self.class_count += target.sum(0)
        own = {int(r): k for k, r in enumerate(self.partial_rows)}
        gain = self._absorb(self.precision, p, w)
        error = target - self.values(p)
        error[:, list(own)] = 0.0
        self.weight.addmm_(error.T, gain)
        for row, place in own.items():
            self._learn_row(row, place, p, target[:, row], w)

    def learn_outcome(self, phi: Tensor, row: int, outcome: float) -> None:
        """Count in that class `row` was worth `outcome` for phi (D,), and nothing about the others."""
        p = phi.to(self.precision).unsqueeze(0)
        self._watch(self.variance(p), p.new_zeros(1))
        place = {int(r): k for k, r in enumerate(self.partial_rows)}
        if row not in place:
            self.partial = torch.cat([self.partial, self.partial.new_zeros(1, self.width, self.width)])
            self.partial_rows = torch.cat([self.partial_rows, self.partial_rows.new_tensor([row])])
            self.partial_precision = torch.cat([self.partial_precision, self.precision.unsqueeze(0)])
            place[row] = len(place)
        self.partial[place[row]].addmm_(p.T, p)
        self.cross[row] += outcome * p[0]
        self._learn_row(row, place[row], p, p.new_tensor([outcome]), p.new_ones(1))

    def _learn_row(self, row: int, place: int, p: Tensor, target: Tensor, w: Tensor) -> None:
        error = target - p @ self.weight[row]
        gain = self._absorb(self.partial_precision[place], p, w)
        self.weight[row] += error @ gain

    @staticmethod
    def _absorb(precision: Tensor, p: Tensor, w: Tensor) -> Tensor:
        """P <- P - P Phi' (W^-1 + Phi P Phi')^-1 Phi P in place; returns the gain, (B, D)."""
        p_phi = p @ precision  # (B, D)
        heavy = w > 0
        if not heavy.all():
            p, p_phi, w = p[heavy], p_phi[heavy], w[heavy]
        inner = p_phi @ p.T + torch.diag(1 / w)
        gain = torch.zeros(len(heavy), p.shape[1], dtype=p.dtype, device=p.device)
        if len(p):
            gain[heavy] = torch.linalg.solve((inner + inner.T) / 2, p_phi)
            precision.addmm_(p_phi.T, gain[heavy], alpha=-1.0)
        return gain

    def _watch(self, variance: Tensor, weight: Tensor) -> None:
        """Mean and variance of log variance over usual, of all samples before they were learned.

        Over the whole life, not a recent window: what was usual in an earlier part of the stream stays so.
        """
        count, mean, square, total = self.leverage.tolist()
        usual = self.usual_variance().log()
        for value in (variance.log() - usual).tolist() if total > 0 else ():
            count += 1
            step = value - mean
            mean += step / count
            square += (step * (value - mean) - square) / count
        self.leverage.copy_(self.leverage.new_tensor([count, mean, square, total + float(weight.sum())]))

    # -- statistics ------------------------------------------------------------------------------------------

    def solve(self) -> None:
        """Rebuild P and R from A and B: repairs whatever drift recursion has left."""
        eye = torch.eye(self.width, dtype=torch.float64, device=self.gram.device)
        factor = torch.linalg.cholesky(self.gram + self.ridge * eye)
        self.precision.copy_(torch.cholesky_inverse(factor))
        self.weight.copy_(torch.cholesky_solve(self.cross.T, factor).T)
        for k, row in enumerate(self.partial_rows.tolist()):
            own = torch.linalg.cholesky(self.gram + self.partial[k] + self.ridge * eye)
            self.partial_precision[k] = torch.cholesky_inverse(own)
            self.weight[row] = torch.cholesky_solve(self.cross[row].unsqueeze(1), own).squeeze(1)

    def merge(self, other: "PrecisionReadout") -> None:
        """Add another readout's statistics to these and solve: the same as having seen both streams.

        Raises:
            ValueError: if the widths or ridges differ, or `other` has rows that were rewarded on their own.
        """
        if (other.width, other.ridge) != (self.width, self.ridge):
            raise ValueError(
                f"cannot merge width {other.width}, ridge {other.ridge} "
                f"into width {self.width}, ridge {self.ridge}"
            )
        if len(other.partial_rows):
            raise ValueError("statistics of single rewarded rows cannot be merged")
        rows = self.rows(other.classes, grow=True)
        self.gram += other.gram
        self.cross.index_add_(0, rows, other.cross)
        self.class_count.index_add_(0, rows, other.class_count)
        self.meet(rows, other.last_met)  # both count from their own beginning
        watched = torch.stack([self.leverage, other.leverage])
        count, mean, square, total = watched.T
        share = count / count.sum().clamp_min(1)
        both = share @ mean
        pooled = share @ (square + (mean - both) ** 2)
        self.leverage.copy_(torch.stack([count.sum(), both, pooled, total.sum()]))
        self.solve()
