"""Mixture: how much diversity a selection needs, learned from rewards for each kind of question.

    p_g = (1 - explore) w_g / sum w + explore / G,   log w_g += eta r / p_g * [g was used]

over a grid of G mixes: exponentiated gradient on an unbiased estimate of every mix's reward, from that of the
one that was used. A kind is the contexts that lie within a cosine of `alike` of the first one of it.

Source: Auer et al. (2002), Exp3.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

GRID = (0.0, 0.1, 0.2, 0.35, 0.5)  # beyond one half, relevance hardly counts
START = (
    0.1  # the best on scenes that no table shows: `python -m arr_coc.eval.selection --choose --images 400`
)


class Mixture(nn.Module):
    """A weight for each mix of each kind; starts at `start` for every kind.

    Args:
        width: C, of the contexts that tell kinds apart.
        start: the mix that counts as best before anything is learned; it is moved to the nearest of the grid.
        eta: step. explore: share of draws that are even. alike: least cosine within a kind.
        most: kinds that are told apart; further contexts belong to the nearest.
    """

    state_names = ("kinds", "log_weight", "used")

    def __init__(
        self,
        width: int,
        start: float = START,
        eta: float = 0.1,
        explore: float = 0.2,
        alike: float = 0.9,
        most: int = 64,
    ) -> None:
        super().__init__()
        if not 0 <= start <= 1 or not eta > 0 or not 0 < explore <= 1 or not -1 <= alike <= 1 or most < 1:
            raise ValueError(
                f"start={start!r}, eta={eta!r}, explore={explore!r}, alike={alike!r}, most={most!r}: "
                "such as 0, 0.1, 0.2, 0.9 and 64"
            )
        self.eta, self.explore, self.alike, self.most = eta, explore, alike, most
        self.start = min(range(len(GRID)), key=lambda g: abs(GRID[g] - start))
        self.kinds: Tensor  # unit contexts, (K, C)
        self.log_weight: Tensor  # (K, G)
        self.used: Tensor  # how often each was rewarded, (K, G)
        self.register_buffer("kinds", torch.zeros(0, width))
        self.register_buffer("log_weight", torch.zeros(0, len(GRID), dtype=torch.float64))
        self.register_buffer("used", torch.zeros(0, len(GRID), dtype=torch.int64))

    def kind(self, context: Tensor) -> int | None:
        """The kind of a context (C,): the nearest, if it is near enough or no further kind has room."""
        self._check(context)
        if not len(self.kinds):
            return None
        cosine = self.kinds @ normalize(context.to(self.kinds), dim=0)
        nearest = int((cosine == cosine.max()).nonzero()[0, 0])
        return nearest if float(cosine[nearest]) >= self.alike or len(self.kinds) >= self.most else None

    def probabilities(self, context: Tensor) -> Tensor:
        """p of every mix of the grid, (G,) in float64."""
        kind = self.kind(context)
        return self._probabilities(self._fresh() if kind is None else self.log_weight[kind])

    def best(self, context: Tensor) -> float:
        """The mix of the greatest weight. Changes nothing."""
        kind = self.kind(context)
        weight = self._fresh() if kind is None else self.log_weight[kind]
        return GRID[int((weight == weight.max()).nonzero()[0, 0])]

    def draw(self, context: Tensor, generator: torch.Generator | None = None) -> float:
        """A mix to try. Changes nothing but the generator."""
        chance = self.probabilities(context).cpu()
        return GRID[int(torch.multinomial(chance, 1, generator=generator))]

    def learn(self, context: Tensor, mix: float, reward: float) -> None:
        """One step: this mix of the grid was used for this context, and earned r in [0, 1].

        Raises:
            ValueError: for a mix that is none of the grid, a reward out of range, or a wrong context.
        """
        if mix not in GRID:
            raise ValueError(f"mix={mix!r}: one of {', '.join(map(str, GRID))} is needed")
        if not 0 <= reward <= 1:
            raise ValueError(f"reward={reward!r}: a number in [0, 1] is needed")
        kind = self._met(context)
        place = GRID.index(mix)
        chance = float(self._probabilities(self.log_weight[kind])[place])
        weight = self.log_weight[kind].clone()
        # a reward less one half: what is as good as a coin's throw changes nothing
        weight[place] += self.eta * (reward - 0.5) / chance
        self.log_weight[kind] = weight - weight.max()
        self.used[kind, place] += 1

    def merge(self, other: "Mixture") -> None:
        """Count in what another one has learned, as if it had come here; kinds are matched by their
        contexts."""
        for i, context in enumerate(other.kinds):
            kind = self._met(context)
            weight = self.log_weight[kind] + other.log_weight[i] - self._fresh()
            self.log_weight[kind] = weight - weight.max()
            self.used[kind] += other.used[i]

    def _met(self, context: Tensor) -> int:
        kind = self.kind(context)
        if kind is not None:
            return kind
        self.kinds = torch.cat([self.kinds, normalize(context.to(self.kinds), dim=0)[None]])
        self.log_weight = torch.cat([self.log_weight, self._fresh()[None]])
        self.used = torch.cat([self.used, self.used.new_zeros(1, len(GRID))])
        return len(self.kinds) - 1

    def _fresh(self) -> Tensor:
        weight = torch.full((len(GRID),), -1.0, dtype=torch.float64, device=self.log_weight.device)
        weight[self.start] = 0.0
        return weight

    def _probabilities(self, log_weight: Tensor) -> Tensor:
        return (1 - self.explore) * log_weight.softmax(0) + self.explore / len(GRID)

    def _check(self, context: Tensor) -> None:
        width = self.kinds.shape[1]
        if tuple(context.shape) != (width,) or not bool(torch.isfinite(context).all()):
            raise ValueError(
                f"a context of shape {tuple(context.shape)} was given; ({width},), finite, is needed"
            )
