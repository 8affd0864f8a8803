"""Closed forms on frozen features: nearest class mean and ridge, kept up from statistics that add.

Features are functions of a `Batch`; heads are what is learned on top of them. Nothing here stores a sample,
so each of these equals its joint solution in any order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arr_coc.eval.percepts import Batch, Store, TextBook
from arr_coc.rules.protocol import Ledger

Features = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Answered:
    """Scores of the texts that were asked for, (B, K), -inf for what a method cannot say; relevance (B, N) or
    None; probabilities (B, K), None from a method that claims none."""

    scores: Tensor
    relevance: Tensor | None = None
    probabilities: Tensor | None = None


class Method:
    """observe / predict, the online contract. `answer` is what a subclass writes: scores and relevance in one
    go.

    `final_only` methods see all data at once and are examined at the end alone; `needs_images` methods get
    `Batch.images`; `told_boundaries` says that it goes by `experience_over`, which most never hear of.
    `stored_samples` is how many samples it keeps to learn from again; `asked_again` methods say one text
    instead of scoring all, and are asked anew where the texts are fewer. `ledger` is what its learning rule
    needs to know, None where it has none of `arr_coc.rules`.
    """

    final_only = False
    needs_images = False
    told_boundaries = False
    stored_samples = 0
    asked_again = False
    ledger: Ledger | None = None

    def observe(self, batch: Batch) -> None:
        raise NotImplementedError

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        raise NotImplementedError

    def experience_over(self) -> None:
        """An experience is over: the boundary that a task-free learner does without."""

    def finish(self) -> None:
        """All samples have been observed (for the methods that solve everything at once)."""

    def state_bytes(self) -> int:
        """Bytes of everything that learning changes or keeps."""
        raise NotImplementedError

    def predict(self, batch: Batch, texts: list[str]) -> list[str]:
        """The best-scored text of each sample."""
        return [texts[i] for i in self.answer(batch, texts).scores.argmax(1).tolist()]

    def relevance(self, batch: Batch, texts: list[str]) -> Tensor | None:
        return self.answer(batch, texts).relevance


# -- features ------------------------------------------------------------------------------------------------


def site_features(batch: Batch) -> Tensor:
    """f of all sites side by side, layer-normalised without affine, (B, N, F): the learner's own."""
    return torch.cat(
        [torch.nn.functional.layer_norm(t.float(), t.shape[-1:]) for t in batch.percept.tokens], -1
    )


def mean_pooled(batch: Batch) -> Tensor:
    """x with an even relevance, (B, F)."""
    return site_features(batch).mean(1)


def state(batch: Batch) -> Tensor:
    """A generative model's final hidden state at the answer's position, layer-normalised, (E, S)."""
    found = batch.percept.state
    assert found is not None
    return torch.nn.functional.layer_norm(found.float(), found.shape[-1:])


def tower_output(batch: Batch) -> Tensor:
    """The pooled output and the mean last token, (B, 2H)."""
    return batch.pooled.float()


def unit_context(batch: Batch) -> Tensor:
    return torch.nn.functional.normalize(batch.percept.context.float(), dim=1)


def with_context(inner: Features, store: Store) -> Features:
    """[x / |x|, c / |c|], (B, F + C); x / |x| alone on a stream without contexts."""

    def joined(batch: Batch) -> Tensor:
        x = torch.nn.functional.normalize(inner(batch), dim=1)
        return torch.cat([x, unit_context(batch)], 1) if store.contexts else x

    return joined


def context_basis(store: Store) -> Tensor:
    """An orthonormal basis of the span of the stream's contexts, (k, C)."""
    matrix = store.context_matrix()
    if len(matrix) == 0:
        return matrix
    _, size, rows = torch.linalg.svd(matrix.double(), full_matrices=False)
    return rows[size > 1e-6 * size[0]].float()


def context_product(inner: Features, basis: Tensor) -> Features:
    """[x, c, x (x) c], with c in coordinates of `basis`: (B, F + k + F k).

    Ridge does not mind a rotation and gives what is never excited the weight 0, so this is the solution with
    the whole product, (B, F C), at k / C of its width.
    """

    def product(batch: Batch) -> Tensor:
        x = inner(batch)
        if not len(basis):
            return x
        c = unit_context(batch) @ basis.T
        return torch.cat([x, c, (x.unsqueeze(2) * c.unsqueeze(1)).flatten(1)], 1)

    return product


def per_cell(grid: int) -> Features:
    """The tokens of the last site averaged per cell of a grid x grid scene, side by side, (B, grid^2 d)."""

    def cells(batch: Batch) -> Tensor:
        t = batch.percept.tokens[-1]
        f = torch.nn.functional.layer_norm(t.float(), t.shape[-1:])
        wide = int(f.shape[1] ** 0.5) // grid
        return f.reshape(len(f), grid, wide, grid, wide, -1).mean((2, 4)).flatten(1)

    return cells


def raw_pixels(batch: Batch) -> Tensor:
    """Pixels around zero, at about unit length, (B, 1728)."""
    return (batch.pixels - 0.5) * (4 / batch.pixels.shape[1] ** 0.5)


def random_projection(
    inner: Features, width: int, seed: int, activation: Callable[[Tensor], Tensor]
) -> Features:
    """f(x M), M drawn once from the normal distribution: (B, width)."""
    drawn: list[Tensor] = []

    def lifted(batch: Batch) -> Tensor:
        x = inner(batch)
        if not drawn:
            draw = torch.Generator().manual_seed(seed)
            drawn.append(torch.randn(x.shape[1], width, generator=draw))
        return activation(x @ drawn[0])

    return lifted


def random_relu(inner: Features, width: int = 2000, seed: int = 0) -> Features:
    """relu(x M), (B, width) (RanPAC, McDonnell et al. 2023)."""
    return random_projection(inner, width, seed, torch.relu)


# -- heads ---------------------------------------------------------------------------------------------------


class Classes:
    """Rows for class texts, in the order in which they are met."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def rows(self, labels: list[str]) -> Tensor:
        self.names.extend(x for x in dict.fromkeys(labels) if x not in self.names)
        return torch.tensor([self.names.index(x) for x in labels])

    def spread(self, values: Tensor, texts: list[str]) -> Tensor:
        """Values of the classes met (B, C) as scores of the texts asked for, (B, len(texts))."""
        scores = values.new_full((len(values), len(texts)), -torch.inf)
        for column, text in enumerate(texts):
            if text in self.names:
                scores[:, column] = values[:, self.names.index(text)]
        return scores


class NearestMean(Method):
    """score_k = -|x - mu_k|^2, mu_k the mean of the class's features so far."""

    def __init__(self, features: Features) -> None:
        self.features, self.classes = features, Classes()
        self.total: Tensor | None = None  # (C, D)
        self.count = torch.zeros(0, dtype=torch.float64)

    def observe(self, batch: Batch) -> None:
        x, rows = self.features(batch).double(), self.classes.rows(batch.labels)
        new = len(self.classes.names) - len(self.count)
        if self.total is None:
            self.total = x.new_zeros(0, x.shape[1])
        self.total = torch.cat([self.total, x.new_zeros(new, x.shape[1])])
        self.count = torch.cat([self.count, self.count.new_zeros(new)])
        self.total.index_add_(0, rows, x)
        self.count.index_add_(0, rows, torch.ones(len(x), dtype=torch.float64))

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        if self.total is None:
            return Answered(torch.full((len(batch.labels), len(texts)), -torch.inf))
        means = self.total / self.count.unsqueeze(1)
        return Answered(self.classes.spread(-(torch.cdist(self.features(batch).double(), means) ** 2), texts))

    def state_bytes(self) -> int:
        return 0 if self.total is None else 8 * (self.total.numel() + self.count.numel())


PENALTIES = tuple(10.0**p for p in range(-4, 5))


def _descend(grid: tuple[float, ...], start: float, error: Callable[[float], float]) -> float:
    """The nearest local minimum of the error on a grid: three solutions, not all, where little moved."""
    found: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in found:
            found[place] = error(grid[place])
        return found[place]

    here = grid.index(start)
    while True:
        near = [p for p in (here - 1, here, here + 1) if 0 <= p < len(grid)]
        best = min(near, key=at)
        if best == here:
            return grid[here]
        here = best


class Ridge(Method):
    """W = (A + rho I)^-1 B from A = sum phi phi', B = sum phi y', phi = [x, 1], y one-hot.

    With several penalties, every fifth sample's statistics are kept apart, and rho is the one whose solution
    on the rest has the least squared error there, tr W'A_v W - 2 tr W'B_v, sought downhill from the last one.
    No sample is stored and no probe is looked at; the final W is solved from all of A and B.

    Args:
        features: x.
        penalties: candidates for rho; one of them is simply used.
        relevance: what is reported as relevance, if anything, (B, N).
        chunk: samples whose statistics are added at once.
        bias: whether phi ends with the 1.
    """

    def __init__(
        self,
        features: Features,
        penalties: tuple[float, ...] = PENALTIES,
        relevance: Features | None = None,
        chunk: int = 256,
        bias: bool = True,
    ) -> None:
        self.features, self.penalties, self.chunk, self.bias = features, penalties, chunk, bias
        self.shown = relevance
        self.classes = Classes()
        self.gram: Tensor | None = None  # (2, D, D): learned from, held back
        self.cross = torch.zeros(0)  # (2, D, C)
        self.weight: Tensor | None = None
        self.penalty = penalties[len(penalties) // 2]
        self.seen = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def _phi(self, batch: Batch) -> Tensor:
        x = self.features(batch).double()
        return torch.cat([x, torch.ones_like(x[:, :1])], 1) if self.bias else x

    def observe(self, batch: Batch) -> None:
        self._waiting.append((self._phi(batch), self.classes.rows(batch.labels)))
        self.weight = None
        # sums over samples commute: adding them in chunks is the same statistics, and one matrix product
        if sum(len(rows) for _, rows in self._waiting) >= self.chunk:
            self._add()

    def _add(self) -> None:
        if not self._waiting:
            return
        phi = torch.cat([p for p, _ in self._waiting])
        rows = torch.cat([r for _, r in self._waiting])
        self._waiting = []
        count = len(self.classes.names)
        if self.gram is None:
            self.gram = phi.new_zeros(2, phi.shape[1], phi.shape[1])
            self.cross = phi.new_zeros(2, phi.shape[1], 0)
        self.cross = torch.nn.functional.pad(self.cross, (0, count - self.cross.shape[2]))
        target = torch.nn.functional.one_hot(rows, count).double()
        back = (torch.arange(self.seen, self.seen + len(phi)) % 5 == 4) & (len(self.penalties) > 1)
        for part, chosen in enumerate((~back, back)):
            if chosen.any():
                self.gram[part].addmm_(phi[chosen].T, phi[chosen])
                self.cross[part].addmm_(phi[chosen].T, target[chosen])
        self.seen += len(phi)

    @staticmethod
    def _solve(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
        shifted = gram.clone()
        shifted.diagonal().add_(penalty)
        return torch.cholesky_solve(cross, torch.linalg.cholesky(shifted))

    def solve(self) -> Tensor:
        """W of everything observed so far, (D, C)."""
        self._add()
        assert self.gram is not None
        if len(self.penalties) > 1 and self.seen >= 10:

            def error(penalty: float) -> float:
                assert self.gram is not None
                w = self._solve(self.gram[0], self.cross[0], penalty)
                return float((w * (self.gram[1] @ w - 2 * self.cross[1])).sum())

            self.penalty = _descend(self.penalties, self.penalty, error)
        return self._solve(self.gram.sum(0), self.cross.sum(0), self.penalty)

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        shown = None if self.shown is None else self.shown(batch)
        if not self.classes.names:
            return Answered(torch.full((len(batch.labels), len(texts)), -torch.inf), shown)
        if self.weight is None:
            self.weight = self.solve()
        return Answered(self.classes.spread(self._phi(batch) @ self.weight, texts), shown)

    def state_bytes(self) -> int:
        self._add()
        return 0 if self.gram is None else 8 * (self.gram.numel() + self.cross.numel())


class ZeroShot(Method):
    """The frozen model's own scores. `joined` puts the context into the text: "a photo of a red sandal"."""

    def __init__(self, joined: bool = False) -> None:
        self.joined = joined

    def observe(self, batch: Batch) -> None:
        """Learns nothing."""

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        if not self.joined:
            scores = batch.own_logits(texts)
        else:
            scores = joined_logits(batch.texts, batch.contexts, batch.image, texts)
        return Answered(scores, probabilities=scores.double().softmax(1))

    def state_bytes(self) -> int:
        return 0


def join(context: str | None, text: str) -> str:
    """The context before the last word group of a prompt: ("red", "a photo of a bag") -> "a photo of a red
    bag"."""
    if context is None:
        return text
    head, mark, tail = text.partition(" of a ")
    return f"{head}{mark}{context} {tail}" if mark else f"{context} {text}"


def joined_logits(book: TextBook, contexts: Sequence[str | None], image: Tensor, texts: list[str]) -> Tensor:
    """s image . text(join(context, text)), (B, len(texts)), for images (B, P) and their contexts."""
    if not texts:
        return image.new_zeros(len(image), 0)
    scores = image.new_zeros(len(image), len(texts))
    for context in dict.fromkeys(contexts):
        rows = torch.tensor([c == context for c in contexts])
        scores[rows] = book.scale * image[rows] @ book([join(context, t) for t in texts]).T
    return scores
