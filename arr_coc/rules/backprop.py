"""Backpropagation inside the ladder: the baseline that every local rule is measured against.

The gradient of -1/2 |t - v|^2 (or of the log-likelihood of softmax(s v), `loss="cross_entropy"`) with respect
to W, b, U and R by automatic differentiation, through settling and clamping too. It never reaches the
backbone, whose activations are constants here. Needs everything: transported weights, stored activations,
signed error vectors, a locked backward phase. Use it as a control. Source: Rumelhart, Hinton & Williams
(1986).
"""

import torch

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates


class Backprop(Rule):
    """See the module's docstring. `scale` is s, the inverse temperature under cross-entropy."""

    def __init__(self, loss: str = "squared", scale: float = 1.0, seed: int = 0) -> None:
        super().__init__(seed)
        if loss not in ("squared", "cross_entropy"):
            raise ValueError(f"loss={loss!r}: possible are 'squared', 'cross_entropy'")
        self.loss, self.scale = loss, scale

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            weight_transport=True,
            two_phases=True,
            error_vector_broadcast=True,
            update_locking=True,
            stored_activations=True,
            signed_errors=True,
        )

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        if teaching.forward is None:
            raise ValueError(
                "backprop needs the ladder as a differentiable function; with reward alone there is none"
            )
        names = {**ladder.weights(), "relevance": teaching.relevance, "readout": teaching.readout}
        kind = ladder.weight(0).dtype
        with torch.inference_mode(False), torch.enable_grad():
            copies = {n: t.detach().clone().to(kind).requires_grad_() for n, t in names.items()}
            values = teaching.forward(copies)
            target = teaching.target.to(values).clone()
            if teaching.rivals is not None:
                values, target = values[:, teaching.rivals], target[:, teaching.rivals]
            if self.loss == "squared":
                objective = -0.5 * (target - values).square().sum(1).mean()
            else:
                objective = (target * (self.scale * values).log_softmax(1)).sum(1).mean()
            gradients = torch.autograd.grad(objective, list(copies.values()), allow_unused=True)
        found = {
            n: torch.zeros_like(copies[n]) if g is None else g for n, g in zip(copies, gradients, strict=True)
        }
        readout, relevance = found.pop("readout"), found.pop("relevance")
        return Updates(found, readout, relevance=relevance)
