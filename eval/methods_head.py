"""A small head on frozen features, trained by SGD in one pass: what most would put on cached features."""

import torch
from torch import Tensor, nn

from arr_coc.eval.methods_features import Answered, Features
from arr_coc.eval.percepts import Batch
from arr_coc.eval.trained import Seen, Strategy, Trained, size_of

Shown = tuple[Tensor, int]  # features (D,) and the row of the label


class Moments:
    """Mean and variance of everything seen so far, each number on its own (Welford 1962, by batches)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, dtype=torch.float64)  # sum of (x - mean)^2

    def add(self, x: Tensor) -> None:
        """x (B, D)."""
        new, count = x.double(), len(x)
        away = new.mean(0) - self.mean
        self.squares += ((new - new.mean(0)) ** 2).sum(0) + away**2 * self.count * count / (
            self.count + count
        )
        self.count += count
        self.mean = self.mean + away * count / self.count

    def standardised(self, x: Tensor) -> Tensor:
        """(x - mean) / sd, held within 5, for a sd of at least a tenth of the usual one."""
        variance = self.squares / max(self.count, 1)
        sd = (variance + 0.01 * variance.mean() + 1e-12).sqrt()
        return ((x.double() - self.mean) / sd).clamp(-5, 5).float()


class Head(Trained):
    """scores = W2 relu(W1 s + b1) + b2 over all classes of the stream, cross-entropy, plain SGD.

    s is x standardised by its running moments: features of a frozen model lie close together, and SGD on
    them as they are learns little in one pass. The softmax runs over all classes from the start; what was
    never met is not said. On a generative model the classes are its tokens, and an example is one taught
    token: so many are stored where a strategy stores samples.

    Args:
        features: x.
        width: D, of x.
        names: the stream's classes.
        rate: of SGD.
        strategy: None for naive fine-tuning.
        hidden: units between; 0 for a linear head, W2 s + b2.
        seed: of the start.
    """

    def __init__(
        self,
        features: Features,
        width: int,
        names: list[str],
        rate: float = 0.1,
        strategy: Strategy | None = None,
        hidden: int = 0,
        seed: int = 0,
    ) -> None:
        self.features, self.names, self.moments = features, names, Moments(width)
        self._place = {name: i for i, name in enumerate(names)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
            self.net = nn.Sequential(*layers, nn.Linear(hidden or width, len(names)))
        self.met = torch.zeros(len(names), dtype=torch.bool)
        super().__init__(list(self.net.parameters()), torch.optim.SGD(self.net.parameters(), rate), strategy)

    def examples(self, batch: Batch) -> list[Shown]:
        rows = [self._place[x] for x in batch.labels]
        return [(x.clone(), row) for x, row in zip(self.features(batch), rows, strict=True)]

    def observe(self, batch: Batch) -> None:
        self.met[[self._place[x] for x in batch.labels]] = True
        self.moments.add(self.features(batch))
        super().observe(batch)

    def look(self, examples: list[Shown]) -> Seen:
        x = self.moments.standardised(torch.stack([x for x, _ in examples]))
        targets = torch.tensor([row for _, row in examples])
        return Seen(self.net(x), targets, torch.arange(len(examples)))

    def example_bytes(self, example: Shown) -> int:
        return example[0].numel() * example[0].element_size() + 8

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        with torch.no_grad():
            x = self.moments.standardised(self.features(batch))
            values = self.net(x).masked_fill(~self.met, -torch.inf)
        scores = values.new_full((len(values), len(texts)), -torch.inf)
        known = [(i, self._place[t]) for i, t in enumerate(texts) if t in self._place]
        if known:
            columns, rows = (torch.tensor(x) for x in zip(*known, strict=True))
            scores[:, columns] = values[:, rows]
        said = bool((scores > -torch.inf).any())  # else nobody knows how sure it is
        return Answered(scores, probabilities=scores.double().softmax(1) if said else None)

    def state_bytes(self) -> int:
        return super().state_bytes() + size_of([self.moments.mean, self.moments.squares])
