"""What is done with an ascent direction; one for every rule, so that rules are compared under the same."""

import torch
from torch import Tensor

from arr_coc.consolidation import Consolidation
from arr_coc.placing import placed


class Optimizer:
    """SGD or Adam (Kingma & Ba, 2015) over named tensors; "direction" is SGD for all that has no direction
    rule.

    Args:
        consolidation: what holds a tensor back after a step; None: nothing.
    """

    def __init__(
        self,
        kind: str,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        consolidation: Consolidation | None = None,
    ) -> None:
        self.kind, self.betas, self.epsilon = kind, betas, epsilon
        self.consolidation = Consolidation() if consolidation is None else consolidation
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps: dict[str, int] = {}

    def step(self, name: str, direction: Tensor, eta: float) -> Tensor:
        """What to add to the tensor of that name."""
        if self.kind != "adam":
            return eta * direction
        first, second = self.moments.get(name, (torch.zeros_like(direction), torch.zeros_like(direction)))
        if first.shape != direction.shape:  # a class appeared: its row starts without momentum
            grown = direction.shape[0] - first.shape[0]
            pad = direction.new_zeros(grown, *direction.shape[1:])
            first, second = torch.cat([first, pad]), torch.cat([second, pad])
        first = self.betas[0] * first + (1 - self.betas[0]) * direction
        second = self.betas[1] * second + (1 - self.betas[1]) * direction.square()
        count = self.steps.get(name, 0) + 1
        self.moments[name], self.steps[name] = (first, second), count
        scale = (1 - self.betas[1] ** count) ** 0.5 / (1 - self.betas[0] ** count)
        return eta * scale * first / (second.sqrt() + self.epsilon)

    def move(self, name: str, tensor: Tensor, direction: Tensor, eta: float) -> None:
        """Add it to the tensor, in place, and hold what is important."""
        before = self.consolidation.before(tensor)
        if self.kind == "adam":
            tensor += self.step(name, direction, eta).to(tensor)
        else:
            tensor.add_(direction.to(tensor), alpha=eta)
        self.consolidation.settle(name, tensor, before, direction, eta)

    def keep(self, names: list[str], rows: Tensor) -> None:
        """Leave only these rows, (K,) ascending, of what is kept of the tensors of these names."""
        for name in names:
            if name in self.moments:
                first, second = self.moments[name]
                some = rows[rows < len(first)].to(first.device)
                self.moments[name] = (first[some], second[some])
            for part, tensor in self.consolidation.kept.get(name, {}).items():
                if part != "count":
                    some = rows[rows < len(tensor)].to(tensor.device)
                    self.consolidation.kept[name][part] = tensor[some]

    def grow(self, column: list[str], place: Tensor, before: int, after: int) -> None:
        """Forget what is kept of a column's tensors, of these names, and of a rule's that go with it; what
        lives where phi does, (..., before), goes on with an entry now at `place`."""
        for name in list(self.moments):
            first, second = self.moments[name]
            if name in column or (name.startswith("rule.") and first.shape[-1] != before):
                del self.moments[name], self.steps[name]
            elif name != "relevance" and first.shape[-1] == before:
                self.moments[name] = (placed(first, place, after), placed(second, place, after))
        kept = self.consolidation.kept
        for name in list(kept):
            wide = kept[name]["anchor"].shape[-1] == before
            if name in column or (name.startswith("rule.") and not wide):
                del kept[name]
            elif wide and name != "relevance":
                parts = kept[name].items()
                kept[name] = {p: t if p == "count" else placed(t, place, after) for p, t in parts}

    def state_tensors(self) -> dict[str, Tensor]:
        """Both moments by name."""
        named = {f"{name}.first": m[0] for name, m in self.moments.items()}
        return named | {f"{name}.second": m[1] for name, m in self.moments.items()}

    def load_state(self, tensors: dict[str, Tensor], steps: dict[str, int]) -> None:
        """The inverse: moments by name and how often each was stepped."""
        self.steps = dict(steps)
        self.moments = {name: (tensors[f"{name}.first"], tensors[f"{name}.second"]) for name in steps}
