"""A small head on frozen features, trained by SGD in one pass: what most would put on cached features."""

import torch
from torch import Tensor, nn

from arr_coc.eval.methods_features import Answered, Features
from arr_coc.eval.percepts import Batch
from arr_coc.eval.trained import Seen, Strategy, Trained

Shown = tuple[Tensor, int]  # features (D,) and the row of the label


class Head(Trained):
    """scores = W2 relu(W1 x + b1) + b2 over all classes of the stream, cross-entropy, plain SGD.

    The softmax runs over all classes from the start; what was never met is not said.

    Args:
        features: x.
        width: D, of x.
        names: the stream's classes.
        rate: of SGD.
        strategy: None for naive fine-tuning.
        hidden: units between; 0 for a linear head.
        seed: of the start.
    """

    def __init__(
        self,
        features: Features,
        width: int,
        names: list[str],
        rate: float = 0.1,
        strategy: Strategy | None = None,
        hidden: int = 256,
        seed: int = 0,
    ) -> None:
        self.features, self.names = features, names
        self._place = {name: i for i, name in enumerate(names)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [nn.Linear(width, hidden), nn.ReLU()] if hidden else []
            self.net = nn.Sequential(*layers, nn.Linear(hidden or width, len(names)))
        self.met = torch.zeros(len(names), dtype=torch.bool)
        super().__init__(list(self.net.parameters()), torch.optim.SGD(self.net.parameters(), rate), strategy)

    def examples(self, batch: Batch) -> list[Shown]:
        rows = [self._place[x] for x in batch.labels]
        self.met[rows] = True
        return [(x.clone(), row) for x, row in zip(self.features(batch), rows, strict=True)]

    def look(self, examples: list[Shown]) -> Seen:
        x = torch.stack([x for x, _ in examples])
        targets = torch.tensor([row for _, row in examples])
        return Seen(self.net(x), targets, torch.arange(len(examples)))

    def example_bytes(self, example: Shown) -> int:
        return example[0].numel() * example[0].element_size() + 8

    def answer(self, batch: Batch, texts: list[str]) -> Answered:
        with torch.no_grad():
            values = self.net(self.features(batch)).masked_fill(~self.met, -torch.inf)
        scores = values.new_full((len(values), len(texts)), -torch.inf)
        known = [(i, self._place[t]) for i, t in enumerate(texts) if t in self._place]
        if known:
            columns, rows = (torch.tensor(x) for x in zip(*known, strict=True))
            scores[:, columns] = values[:, rows]
        return Answered(scores)
