"""Published learners on frozen features that need no gradient: streaming LDA, RAIL, F-OAL."""

import torch
from torch import Tensor

from arr_coc.eval.methods_features import (
    Answered,
    Classes,
    Features,
    Method,
    Ridge,
    random_projection,
    with_context,
)
from arr_coc.eval.percepts import Batch, Store


class StreamingLDA(Method):
    """score_k = mu_k' L x - 1/2 mu_k' L mu_k with L = [(1 - eps) Sigma + eps I]^-1.

    A class's mean starts at zero. With d = x - mu_y before x is counted and t samples seen before it,
    Sigma <- (t Sigma + t d d' / (t + 1)) / (t + 1), then mu_y <- mu_y + d / n_y; one sample after another,
    whatever the batch: S = t Sigma grows by t d d' / (t + 1). What it ends with depends on the order a
    little, since d is taken from a mean that is still moving.

    Args:
        features: x.
        shrinkage: eps, published as 1e-4.

    Source: Hayes and Kanan (2020), Deep SLDA, without their initialisation on half of the classes.
    """

    def __init__(self, features: Features, shrinkage: float = 1e-4) -> None:
        self.features, self.shrinkage, self.classes = features, shrinkage, Classes()
        self.scatter: Tensor | None = None  # S, (D, D)
        self.mean = torch.zeros(0, 0, dtype=torch.float64)  # (C, D)
        self.count: list[int] = []
        self.seen = 0
        self._solved: Tensor | None = None  # L mu, (D, C)

    def observe(self, batch: Batch) -> None:
        x, rows = self.features(batch).double(), self.classes.rows(batch.labels)
        new = len(self.classes.names) - len(self.count)
        if self.scatter is None:
            self.scatter, self.mean = x.new_zeros(x.shape[1], x.shape[1]), x.new_zeros(0, x.shape[1])
        self.mean = torch.cat([self.mean, x.new_zeros(new, x.shape[1])])
        self.count += [0] * new
        away, weight = torch.empty_like(x), x.new_empty(len(x))
        for i, row in enumerate(rows.tolist()):
            away[i], weight[i] = x[i] - self.mean[row], self.seen / (self.seen + 1)
            self.count[row] += 1
            self.mean[row] += away[i] / self.count[row]
            self.seen += 1
        self.scatter.addmm_(away.T, weight.unsqueeze(1) * away)
        self._solved = None

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        if self.scatter is None:
            return Answered(torch.full((len(batch.labels), len(texts)), -torch.inf))
        if self._solved is None:
            shrunk = (1 - self.shrinkage) * self.scatter / self.seen
            shrunk.diagonal().add_(self.shrinkage)
            self._solved = torch.cholesky_solve(self.mean.T, torch.linalg.cholesky(shrunk))
        offset = 0.5 * (self.mean.T * self._solved).sum(0)
        values = self.features(batch).double() @ self._solved - offset
        return Answered(self.classes.spread(values, texts))

    def state_bytes(self) -> int:
        return 0 if self.scatter is None else 8 * (self.scatter.numel() + self.mean.numel() + len(self.count))


class Rail(Ridge):
    """(1 - beta) p + beta v where the frozen model's own best text is one that was learned, p elsewhere.

    p = softmax of the model's own scores over all candidates; v, the recursive ridge's values, is 0 for what
    was not learned. So what lies out of the learned domain is answered by the frozen model alone.

    Args:
        features: of the ridge; published as 15,000 random ReLU features of the image embedding.
        penalty: of the ridge, published as 0.1.
        fusion: beta; 0.8 in the paper, 0.9 in its code.

    Source: Xu et al. (2024), RAIL-Fusion in its primal form.
    """

    def __init__(self, features: Features, penalty: float = 0.1, fusion: float = 0.8) -> None:
        super().__init__(features, (penalty,), bias=False)
        self.fusion = fusion

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        own = batch.own_logits(texts).double().softmax(1)
        if not self.classes.names or not texts:
            return Answered(own)
        learned = super().answer(batch, texts).scores
        within = torch.isfinite(learned).gather(1, own.argmax(1, keepdim=True))
        values = learned.masked_fill(learned == -torch.inf, 0.0)
        return Answered(torch.where(within, (1 - self.fusion) * own + self.fusion * values, own))


def fused_blocks(batch: Batch) -> Tensor:
    """The mean over the sites of each site's mean token, layer-normalised, (B, d).

    F-OAL takes the mean of every block's class token; these are the blocks that arr-coc reads.

    Raises:
        ValueError: for sites of different widths, whose mean there is not.
    """
    widths = {t.shape[-1] for t in batch.percept.tokens}
    if len(widths) > 1:
        raise ValueError(
            f"sites of widths {sorted(widths)} cannot be averaged: F-OAL needs blocks of one width"
        )
    mean = torch.stack([t.float().mean(1) for t in batch.percept.tokens]).mean(0)
    return torch.nn.functional.layer_norm(mean, mean.shape[-1:])


def f_oal(store: Store, penalty: float = 1.0, seed: int = 0, width: int = 1000) -> Ridge:
    """W = (A + gamma I)^-1 B on sigmoid(x M), x the fused blocks with the context, M random normal.

    The published recursion, R <- R - R X' (I + X R X')^-1 X R and W <- W + R X' (Y - X W) from R = I / gamma,
    solves exactly this at every step, in any batch size.

    Args:
        penalty: gamma, published as 1.
        seed: of M.
        width: of the projection, published as 1,000.

    Source: Zhuang et al. (2024), F-OAL.
    """
    seen = with_context(fused_blocks, store)
    return Ridge(random_projection(seen, width, seed, torch.sigmoid), (penalty,), bias=False)
