"""Predict: where relevance goes next, from where it was and how it moved; and how surprising what came is.

    r^(m) = (1 - u) sum_e b^(m, e) + u / N,   b^(n + e, e) = sum_d T(e | d) b(n, d)

b(n, d) is the belief that relevance is at token n and came there by the displacement d on the grid, T which
displacement follows which (over those that stay among the tokens that exist), u how often relevance turns up
anywhere. When the frame has come, its relevance r is shared out among the displacements that explain it,

    b(m, e) = r(m) softmax_e(log b^(m, e) + l(m, e))
    l(m, e) = mean over k around m, each weighing r(k), of k_r log s(k - e) + k_f cos(f_k, g_{k - e})

with s and g the relevance and the features of the frame before: how well both look moved by e.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

_BY_RELEVANCE = 4.0  # k_r, nats for a nat: displacements come out the same from 2 to 10
_BY_FEATURES = 20.0  # k_f, nats for a cosine of 1: the same from 10 to 60
_AROUND = 2  # tokens: what moves is an item, and no token by itself
_FLOOR = 0.1  # of s, over N: a token of no relevance forbids no displacement


@dataclass(frozen=True)
class Moment:
    """What is left of a frame.

    Args:
        belief: b, (N, D) in float64; sums to 1.
        features: f, (N, F), each less the frame's mean and of unit length; 0 where no token is.
        grid: rows and columns of the tokens, or None.
    """

    belief: Tensor
    features: Tensor
    grid: tuple[int, int] | None


class RelevancePredictor(nn.Module):
    """Learned from the precision-weighted error of every token, epsilon_m = r_m - r^_m with Pi_m = 1 / r^_m:

        Delta count(d, e) = w sum_n b(n, d) T(e | d) (1 + Pi_m epsilon_m) at m = n + e

    (less what l says of e there), and T and u are counts over their sums. That is online expectation
    maximisation of sum_m r_m log r^_m, by what is there at each synapse: where relevance was, where it went,
    and the error there. The surprise is KL(r || r^), to second order half of sum_m Pi_m epsilon_m^2, in the
    form of the error modules with a log-precision of its own:

        F = Pi KL - 1/2 log Pi,   Delta log Pi = eta / 2 (1 - 2 Pi KL)

    Counts add, are float64, and start from a prior. For given counts a forecast depends on the belief before
    by a contraction, 1 - u in total variation, and u > 0.

    What is learned from, and what surprises, is what the frame itself says (`evidence`), not the relevance
    that a forecast has had a part in: else forecasts would come to believe themselves. It weighs w, how
    concentrated it is: an even spread says nothing.

    Source: Baum et al. (1970); Rao & Ballard (1999).

    Args:
        radius: of the displacements, in tokens along both sides.
        prior: counts that each row of T, and each part of u, start with.
        eta: step of the log-precision.
    """

    state_names = ("transitions", "jumps", "log_precision", "belief", "features", "grid")
    _BOUND = 12.0  # |log Pi| stays under this

    def __init__(self, feature_width: int, radius: int = 2, prior: float = 0.3, eta: float = 0.01) -> None:
        super().__init__()
        self.radius, self.eta = radius, eta
        count = (2 * radius + 1) ** 2
        self.transitions: Tensor  # how often e followed d, (D, D)
        self.jumps: Tensor  # how much went as T says, and how much anywhere, (2,)
        self.log_precision: Tensor
        self.belief: Tensor  # of the last frame; no rows: there was none
        self.features: Tensor
        self.grid: Tensor  # (2,), 0 for none
        self.register_buffer("transitions", torch.full((count, count), prior / count, dtype=torch.float64))
        self.register_buffer("jumps", torch.full((2,), prior, dtype=torch.float64))
        self.register_buffer("log_precision", torch.zeros((), dtype=torch.float64))
        self.register_buffer("belief", torch.zeros(0, count, dtype=torch.float64))
        self.register_buffer("features", torch.zeros(0, feature_width))
        self.register_buffer("grid", torch.zeros(2, dtype=torch.int64))

    # -- the last frame --------------------------------------------------------------------------------------

    @property
    def moment(self) -> Moment | None:
        """What is left of the last frame; None before the first."""
        if not len(self.belief):
            return None
        rows, columns = self.grid.tolist()
        return Moment(self.belief, self.features, (rows, columns) if rows else None)

    def remember(self, moment: Moment | None) -> None:
        """Make this the last frame; None: forget it, but nothing that was learned."""
        if moment is None:
            self.belief, self.features = self.belief[:0], self.features[:0]
            return
        self.belief, self.features = moment.belief, moment.features
        self.grid.copy_(torch.tensor(moment.grid or (0, 0)))

    # -- one step --------------------------------------------------------------------------------------------

    def forecast(
        self, moment: Moment | None, grid: tuple[int, int] | None, count: int, mask: Tensor | None = None
    ) -> Tensor:
        """r^ of the next frame, (N,) in float64: sums to 1 over the tokens that exist, even where the frame
        before is none or had other tokens.

        Args:
            grid, count: of the next frame's tokens. mask: which of them exist, (N,) bool.
        """
        alive = self._alive(count, mask)
        if not _continues(moment, grid, count):
            return alive / alive.sum()
        assert moment is not None
        return self._arrive(moment, *self._steps(grid, alive), alive)[2].sum(1)

    def advance(
        self,
        moment: Moment | None,
        relevance: Tensor,
        features: Tensor,
        grid: tuple[int, int] | None,
        mask: Tensor | None = None,
        evidence: Tensor | None = None,
    ) -> Moment:
        """What is left of a frame that has come; with its evidence T, u and Pi are learned from it.

        Args:
            moment: the frame before.
            relevance: r, (N,), as it was settled on.
            features: f, (N, F).
            evidence: r as it would have been without a forecast, (N,).
        """
        alive = self._alive(len(relevance), mask)
        now, seen = relevance.to(self.transitions), centred(features, mask)
        if not _continues(moment, grid, len(now)):
            width = len(self.transitions)
            return Moment((now / width).unsqueeze(1).repeat(1, width), seen, grid)
        assert moment is not None
        index, there = self._steps(grid, alive)
        leaving, follows, arrived, kept = self._arrive(moment, index, there, alive)
        explained = (arrived.log() + self._moved(moment, now, seen, index, there, grid)).softmax(1)
        explained = torch.where(arrived.sum(1, keepdim=True) > 0, explained, 0.0)
        if evidence is not None:
            said = evidence.to(now)
            forecast = arrived.sum(1)
            weight = concentrated(said, alive)
            ratio = said.unsqueeze(1) * explained / arrived.clamp_min(torch.finfo(arrived.dtype).tiny)
            went = (leaving.T @ (there * ratio.gather(0, index))) * follows * kept  # (D, D)
            self.transitions += weight * went
            self.jumps += weight * torch.stack([went.sum(), 1 - went.sum()])
            step = 0.5 * (1 - 2 * self.log_precision.exp() * divergence(said, forecast)).clamp_min(-4.0)
            self.log_precision.add_(self.eta * weight * step).clamp_(-self._BOUND, self._BOUND)
        return Moment(now.unsqueeze(1) * explained, seen, grid)

    def surprise(self, evidence: Tensor, forecast: Tensor) -> Tensor:
        """F of a frame, in nats."""
        return self.log_precision.exp() * divergence(evidence.to(forecast), forecast) - self.log_precision / 2

    # -- parts of a step -------------------------------------------------------------------------------------

    def _alive(self, count: int, mask: Tensor | None) -> Tensor:
        """1 for tokens that exist, (N,) in float64."""
        return self.jumps.new_ones(count) if mask is None else mask.to(self.jumps)

    def _steps(self, grid: tuple[int, int] | None, alive: Tensor) -> tuple[Tensor, Tensor]:
        """n + e as a token, and 1 where that token exists, (N, D) each; without a grid one can only stay."""
        index, there = displaced(grid, len(alive), self.radius, alive.device)
        return index, there.to(alive) * alive[index]

    def _arrive(
        self, moment: Moment, index: Tensor, there: Tensor, alive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b(n, d) over the T that is possible from n, (N, D); T, (D, D); b^ with what goes anywhere, (N, D);
        and 1 - u."""
        follows = self.transitions / self.transitions.sum(1, keepdim=True)
        possible = there @ follows.T  # (N, D): how much of T(. | d) is possible from n
        leaving = torch.where(possible > 0, moment.belief / possible, 0.0)
        flow = (leaving @ follows) * there
        arrived = torch.zeros_like(flow).scatter_add_(0, index, flow)
        kept = self.jumps[0] / self.jumps.sum()
        # what has no token left to go to turns up anywhere, too
        anywhere = (1 - kept * flow.sum()) * alive / alive.sum() / arrived.shape[1]
        return leaving, follows, arrived * kept + anywhere.unsqueeze(1), kept

    def _moved(
        self,
        moment: Moment,
        relevance: Tensor,
        features: Tensor,
        index: Tensor,
        there: Tensor,
        grid: tuple[int, int] | None,
    ) -> Tensor:
        """l, (N, D)."""
        back = index.flip(1)  # k - e: offsets are symmetric about their middle
        inside = displaced(grid, len(relevance), self.radius, index.device)[1].flip(1).to(relevance)
        before = moment.belief.sum(1)
        left = before[back] * inside * (1 - _FLOOR) + _FLOOR / len(before)
        alike = (features @ moment.features.T).to(relevance).gather(1, back) * inside
        each = relevance.unsqueeze(1) * (_BY_RELEVANCE * left.log() + _BY_FEATURES * alike)
        around = _box(torch.cat([each, relevance.unsqueeze(1)], 1), grid)
        return around[:, :-1] / around[:, -1:].clamp_min(torch.finfo(around.dtype).tiny)


def displaced(
    grid: tuple[int, int] | None, count: int, radius: int, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """n + e as a token, and whether it is on the grid, (N, D) each; D = (2 radius + 1)^2, row by row."""
    side = torch.arange(-radius, radius + 1, device=device)
    if grid is None:
        index = torch.arange(count, device=device).unsqueeze(1).expand(count, len(side) ** 2)
        return index, (torch.arange(len(side) ** 2, device=device) == len(side) ** 2 // 2).expand_as(index)
    rows, columns = grid
    token = torch.arange(count, device=device)
    down, across = torch.meshgrid(side, side, indexing="ij")
    row = token.unsqueeze(1) // columns + down.flatten()
    column = token.unsqueeze(1) % columns + across.flatten()
    there = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    return row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1), there


def centred(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Features less their mean over the tokens, of unit length, (N, F); 0 where no token is."""
    if mask is None:
        return normalize(features - features.mean(0), dim=1)
    there = mask.unsqueeze(1).to(features)
    return normalize((features - (features * there).sum(0) / there.sum()) * there, dim=1)


def divergence(truth: Tensor, forecast: Tensor) -> Tensor:
    """KL(r || r^), nats: 0 for the forecast of what came."""
    return (torch.special.xlogy(truth, truth) - torch.special.xlogy(truth, forecast)).sum()


def concentrated(relevance: Tensor, alive: Tensor) -> Tensor:
    """1 - H(r) / log N over the N tokens that exist, in [0, 1]; 1 where there is but one."""
    if alive.sum() < 2:
        return torch.ones_like(alive.sum())
    entropy = -torch.special.xlogy(relevance, relevance).sum()
    return (1 - entropy / alive.sum().log()).clamp(0.0, 1.0)


def _continues(moment: Moment | None, grid: tuple[int, int] | None, count: int) -> bool:
    return moment is not None and moment.grid == grid and len(moment.belief) == count


def _box(values: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """Sum over the tokens around each, (N, K)."""
    if grid is None:
        return values
    image = values.T.reshape(1, -1, *grid)
    return avg_pool2d(image, 2 * _AROUND + 1, 1, _AROUND, divisor_override=1).reshape(values.T.shape).T
