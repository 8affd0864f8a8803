"""Which inputs were learned from: their second moment and its inverse, and how unusual a new input is under
it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arr_coc.placing import placed

if TYPE_CHECKING:
    from arr_coc.percept import Percept

CHECKED = 512  # a sample counts twice: watched, and learned
# of P, above which it is solved anew: rounding in A itself, which recursion does not have, is less than that,
# and the recursion the better of the two, unless features are so large that it loses a small eigenvalue
DRIFT = 1e-2


class Familiarity(nn.Module):
    """A = sum w x x', P = (A + rho I)^-1, and the log predictive variance that samples had before they were
    learned.

    One step is gain K = P X' (W^-1 + X P X')^-1, P -= K X P (Woodbury). `solve` rebuilds P from A.

    What is forgotten (`fade`) takes the prior with it, share by share: P = (A + left rho I)^-1. Only `solve`
    puts it back.

    Args:
        width: D, of x.
        ridge: rho.
        fades: whether anything is ever forgotten; then the share of the prior that is left is kept too.
    """

    state_names: tuple[str, ...] = ("precision", "gram", "leverage")

    def __init__(self, width: int, ridge: float = 1.0, fades: bool = False) -> None:
        super().__init__()
        self.width, self.ridge = width, ridge
        self.left: Tensor
        self.register_buffer("left", torch.ones((), dtype=torch.float64))
        if fades:
            self.state_names = (*self.state_names, "left")
        self.precision: Tensor  # P, (D, D)
        self.gram: Tensor  # A, (D, D)
        # of log variance over usual: count, mean, variance; then total weight and number of samples learned
        self.leverage: Tensor
        self.register_buffer("precision", torch.eye(width, dtype=torch.float64) / ridge)
        self.register_buffer("gram", torch.zeros(width, width, dtype=torch.float64))
        self.register_buffer("leverage", torch.zeros(5, dtype=torch.float64))

    def variance(self, x: Tensor) -> Tensor:
        """x' P x, (B,): the predictive variance in units of the noise."""
        p = x.to(self.precision)
        return quadratic(p, self.precision).clamp_min(torch.finfo(torch.float64).tiny)

    def usual_variance(self) -> Tensor:
        """What a sample like those learned has, in closed form: h / (1 - w h) with h the mean leverage.

        sum_i w_i x_i' P x_i = tr(P A) = D - rho tr P, so the mean leverage needs the trace alone;
        dividing by 1 - w h takes a sample's own share out again (leave one out).
        """
        *_, total, count = self.leverage.tolist()
        prior = self.ridge * float(self.left)
        used = self.width - prior * self.precision.diagonal().sum()  # effective parameters, below count
        if total <= 0:
            return self.precision.new_tensor(1.0)
        share = (used / count).clamp(max=1 - 1e-6)
        return (used / total / (1 - share)).clamp_min(torch.finfo(torch.float64).tiny)

    def novelty(self, x: Tensor) -> Tensor:
        """z, (B,): the log predictive variance over the usual one, standardised by what samples had before.

        Infinite while there is nothing to compare with.
        """
        count, mean, square, *_ = self.leverage.tolist()
        if count < 2:
            return torch.full((len(x),), torch.inf, dtype=torch.float64, device=self.precision.device)
        spread = max(square**0.5, 0.1)  # never less than a tenth of a nat
        return (self.variance(x).log() - self.usual_variance().log() - mean) / spread

    def learn(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Count samples (B, D) in, each with its weight (B,) (default 1); returns the gain K', (B, D)."""
        p = x.to(self.precision)
        w = torch.ones(len(p), dtype=p.dtype, device=p.device) if weight is None else weight.to(p)
        self.watch(p, float(w.sum()), len(p))
        self.gram.addmm_((p * w.unsqueeze(1)).T, p)
        return absorb(self.precision, p, w)

    def watch(self, x: Tensor, weight: float = 0.0, samples: int = 0) -> None:
        """Note how unusual samples are before they are learned, and what is learned next.

        Mean and variance are over the whole life, not a recent window: what was usual in an earlier part of
        the stream stays so. The i-th sample weighs i^2: of a young learner, to whom all is unusual, 1/n^3 is
        left.
        """
        watched, mean, square, total, count = self.leverage.tolist()
        seen = self.variance(x).log() - self.usual_variance().log()
        for value in seen.tolist() if total > 0 else ():
            watched += 1
            part, step = watched**2 / squares(watched), value - mean
            mean += part * step
            square = (1 - part) * (square + part * step * step)
        now = [watched, mean, square, total + weight, count + samples]
        self.leverage.copy_(self.leverage.new_tensor(now))

    def fade(self, share: float) -> None:
        """All that was learned weighs this share of what it did, and so does the prior."""
        self.gram *= share
        self.precision /= share
        self.left *= share
        self.leverage[3:] *= share

    def solve(self) -> Tensor:
        """Rebuild P from A, under the whole prior; returns the Cholesky factor of A + rho I."""
        self.left.fill_(1.0)
        factor = torch.linalg.cholesky(self.gram + self.ridge * self.eye())
        self.precision.copy_(torch.cholesky_inverse(factor))
        return factor

    def grow(self, place: Tensor, width: int) -> None:
        """Go on with an x of more entries, in which entry i of the old one stands at `place[i]`: as if those
        that are new had been 0 in all samples."""
        self.width = width
        self.gram = placed(placed(self.gram, place, width), place, width, -2)
        self.precision = placed(placed(self.precision, place, width), place, width, -2) + self.prior(place)

    def prior(self, place: Tensor) -> Tensor:
        """P where nothing but the prior is, (D, D): the diagonal 1 / (left rho) beside these entries."""
        alone = torch.full((self.width,), 1 / (self.ridge * float(self.left)), dtype=torch.float64)
        alone[place.cpu()] = 0.0
        return torch.diag(alone).to(self.gram)

    def clear(self) -> None:
        """Forget all samples."""
        self.precision.copy_(self.eye() / self.ridge)
        self.gram.zero_()
        self.leverage.zero_()
        self.left.fill_(1.0)

    def counted(self) -> float:
        """Samples watched, and samples learned."""
        return float(self.leverage[0] + self.leverage[4])

    def due(self, before: float) -> bool:
        """Whether it is time to look for drift: every `CHECKED`-th of those that are `counted`."""
        return before // CHECKED < self.counted() // CHECKED

    def drifted(self, precision: Tensor, gram: Tensor) -> bool:
        """Whether rounding in the recursion has taken P away from (A + rho I)^-1.

        For P = Q + E, Q the inverse, P - P (A + rho I) P = -E - E (A + rho I) E: to first order in E its
        product with a v of random signs is -E v, which takes three products with a vector and no inverse.
        """
        draw = torch.Generator().manual_seed(self.width)
        signs = torch.randint(2, (self.width,), generator=draw).to(precision) * 2 - 1
        now = precision @ signs
        error = now - precision @ (gram @ now + self.ridge * now)
        if bool(error.abs().max() <= DRIFT * now.abs().max()):
            return False
        return int(torch.linalg.cholesky_ex(gram + self.ridge * self.eye()).info) == 0  # A has to be better

    def repair(self, before: float) -> None:
        """Solve anew if that is due and P has drifted."""
        if self.due(before) and self.drifted(self.precision, self.gram):
            self.solve()

    def eye(self) -> Tensor:
        return torch.eye(self.width, dtype=torch.float64, device=self.gram.device)

    def merge(self, other: "Familiarity") -> None:
        """Add another one's statistics; P is only right again after `solve`."""
        self.gram += other.gram
        watched = torch.stack([self.leverage, other.leverage])
        count, mean, square, total, samples = watched.T
        shares = squares(count)
        share = shares / shares.sum().clamp_min(1)
        both = share @ mean
        pooled = share @ (square + (mean - both) ** 2)
        self.leverage.copy_(torch.stack([count.sum(), both, pooled, total.sum(), samples.sum()]))


def moments(leverage: Tensor) -> Tensor:
    """What adds up of `Familiarity.leverage`: count, sum i^2 and its first two moments, weight, samples,
    (6,)."""
    count, mean, square, total, samples = leverage.tolist()
    w = squares(count)
    return leverage.new_tensor([count, w, w * mean, w * (square + mean * mean), total, samples])


def leverage_of(moments: Tensor) -> Tensor:
    """The inverse, of sums of moments, (5,)."""
    count, w, first, second, total, samples = moments.tolist()
    mean = first / max(w, 1)
    square = max(second / max(w, 1) - mean * mean, 0.0)
    return moments.new_tensor([count, mean, square, total, samples])


def squares(n: Any) -> Any:
    """1 + 4 + ... + n^2, for a number or a tensor."""
    return n * (n + 1) * (2 * n + 1) / 6


_BLOCKS, _WIDE, _SEVERAL = 4, 768, 4  # below these widths and rows one product is faster


def quadratic(x: Tensor, matrix: Tensor) -> Tensor:
    """x' M x for rows x (B, D) and a symmetric M (D, D), (B,); of a wide M the blocks below the diagonal are
    not read: what stands above counts twice."""
    width = x.shape[1]
    if width < _WIDE or len(x) < _SEVERAL:
        return ((x @ matrix) * x).sum(1)
    total = x.new_zeros(len(x))
    for i in range(_BLOCKS):
        start, end = width * i // _BLOCKS, width * (i + 1) // _BLOCKS
        part = x[:, start:end] @ matrix[start:end, start:]
        part[:, end - start :] *= 2
        total += (part * x[:, start:]).sum(1)
    return total


def absorb(precision: Tensor, p: Tensor, w: Tensor) -> Tensor:
    """P <- P - P X' (W^-1 + X P X')^-1 X P in place, for X (B, D), W (B,); returns the gain, (B, D)."""
    p_x = p @ precision  # (B, D)
    heavy = w > 0
    if not heavy.all():
        p, p_x, w = p[heavy], p_x[heavy], w[heavy]
    inner = p_x @ p.T + torch.diag(1 / w)
    gain = torch.zeros(len(heavy), p.shape[1], dtype=p.dtype, device=p.device)
    if len(p):
        gain[heavy] = torch.linalg.solve((inner + inner.T) / 2, p_x)
        precision.addmm_(p_x.T, gain[heavy], alpha=-1.0)
    return gain


def trust(novelty: Tensor, sharpness: float = 1.0) -> Tensor:
    """exp(-sharpness/2 max(0, z - 2)^2), (B,) in [0, 1].

    An input like those learned has trust 1; one unlike anything learned has a trust that underflows to
    exactly 0.
    """
    return torch.exp(-0.5 * sharpness * (novelty - 2).clamp_min(0) ** 2)


def scene_statistics(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a whole scene looks like: mean and standard deviation of its features (B, N, d) over the tokens
    that exist (B, N), and 1; (B, 2 d + 1)."""
    if mask is None:
        mean, square = features.mean(1), (features * features).mean(1)
    else:
        share = mask.unsqueeze(1).to(features)
        share = share / share.sum(2, keepdim=True).clamp_min(1)
        mean, square = (share @ features).squeeze(1), (share @ (features * features)).squeeze(1)
    spread = (square - mean * mean).clamp_min(0).sqrt()
    return torch.cat([mean, spread, torch.ones_like(mean[:, :1])], 1)


def unusual(scenes: Familiarity, percept: "Percept", scene: Tensor, step: int) -> Tensor:
    """How novel each entry's scene is, (B,); where entries share tokens, each picture's once.

    Args:
        scenes: of those learned from. scene: `scene_statistics`, (B, W).
        step: of the learner; what is learned meanwhile makes it another novelty.
    """
    sample = percept.sample
    if sample is None or percept.mask is not None:
        return scenes.novelty(scene)
    made = {} if percept.made is None else percept.made
    key = (scenes, "novelty", step)
    if key not in made:
        entry = torch.arange(len(sample), device=sample.device)
        first = sample.new_zeros(len(percept.tokens[0])).scatter_(0, sample, entry)  # any of a picture's
        made[key] = scenes.novelty(scene[first])
    return made[key][sample]
