"""Whether the answer is one that was ever learned, where candidates are asked for that never were.

    q = 1 / (1 + exp(e)),
    e = (m_1 - m_0) / s^2 (max_c v_c - (m_1 + m_0) / 2) - (2 z - 2) - log(pi / (1 - pi))

q is the probability that it is one that was not. m_1 and d_1 are mean and deviation of the value of the right
class before a sample is learned from, m_0 and d_0 those of the highest among all others, which are of what
cannot be the answer; s^2 = (d_1^2 + d_0^2) / 2. z is how unusual the input is, 0 +- 1 for what was learned;
for what was not, 2 +- 1 is assumed: what lies beyond 2 is not trusted anyhow (`familiarity.trust`). pi is
the prior of q. Two signs of one variance each and taken as independent: linear discriminant analysis, naive.

Novelty alone decides where m_1 is not above m_0, and q is 0 until there are enough samples of both, or where
only rewards have taught: they say nothing of what else would have been right. The best value is any learned
class's, a candidate or not. A class that could be chosen in an action counts as learned from then on.
Of a whole vocabulary nobody has said that any word of it may be the answer, and a model has scores for all:
there q is 0 (on questions about scenes q as above lost 2 points of what was learned, and 3 % of the rest).
The model's own scores have no say in q: of what it was attached for it may know nothing, and be sure of it.
"""

import math

import torch
from torch import Tensor, nn

LEAST = 0.1  # deviation: of values that are always the same nothing can be told apart any better
FEW = 30  # samples of each kind, below which nothing is told: a mean is known to a fifth of a deviation


class Unlearned(nn.Module):
    """Sums over samples of the right value and of the highest other: how many, and of w, w v and w v^2.

    The i-th weighs w = i^2, as in `Familiarity.watch`: of a young learner's values little is left.

    Args:
        prior: pi, in [0, 1); 0: never.
    """

    state_names = ("moments",)

    def __init__(self, prior: float) -> None:
        super().__init__()
        self.prior = prior
        self.moments: Tensor  # (2, 4), float64
        self.register_buffer("moments", torch.zeros(2, 4, dtype=torch.float64))

    def check(self, moments: Tensor) -> None:
        """Raises:
        ValueError: for moments that no values have."""
        count, weight, first, second = moments.double().cpu().unbind(1)
        possible = (count >= 0) & (weight >= count * (1 - 1e-9))
        possible &= weight * second >= first * first * (1 - 1e-9)
        if not bool(moments.isfinite().all() and possible.all()):
            raise ValueError(
                f"the saved unlearned.moments are {moments.tolist()}; counts from 0 up, weights that are "
                "no less, and no square of a mean above the mean of squares, are needed"
            )

    def learn(self, values: Tensor, rows: Tensor, known: int) -> None:
        """Note the values (B, K) that samples had before they were learned, and the rows of their labels,
        (B,); the first `known` classes had been met before."""
        v = values[:, :known].to(self.moments)
        rows = rows.to(v.device)
        met = rows < known
        right = torch.zeros_like(v, dtype=torch.bool)
        right[met, rows[met]] = True
        self._add(0, v[right])
        if known:
            self._add(1, v.masked_fill(right, -torch.inf).amax(1))

    def _add(self, kind: int, value: Tensor) -> None:
        value = value[value.isfinite()]  # with one class only there is no other
        w = (self.moments[kind, 0] + torch.arange(1, len(value) + 1).to(value)) ** 2
        added = [value.new_tensor(float(len(value))), w.sum(), (w * value).sum(), (w * value * value).sum()]
        self.moments[kind] += torch.stack(added)

    def log_odds(self, values: Tensor, novelty: Tensor, named: bool = True) -> Tensor:
        """e, (B,) in float64, of values (B, K) and z (B,); infinite where nothing speaks for q.

        Args:
            named: whether somebody has said what the candidates are.
        """
        count, weight, first, second = self.moments.unbind(1)
        if not named or self.prior == 0 or not values.shape[1] or bool((count < FEW).any()):
            return torch.full_like(novelty, torch.inf)
        mean = first / weight
        spread = (second / weight - mean * mean).mean().clamp_min(LEAST**2)
        apart = (mean[0] - mean[1]).clamp_min(0)
        best = apart / spread * (values.to(mean).amax(1) - mean.mean())
        return best - (2 * novelty - 2) - math.log(self.prior / (1 - self.prior))
