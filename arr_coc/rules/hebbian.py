"""Hebbian learning: rungs learn what their inputs are like, unsupervised; only the readout hears of errors.

"softhebb": neurons of a rung compete, p = softmax(a_l / temperature), the winner is Hebbian, y = +p, and
losers are anti-Hebbian, y = -p; Delta W_i = mean y_i (z_{l-1} - u_i W_i) with u = W_l z_{l-1}, divided by the
rung's largest entry and times | |W_i| - 1 |^anneal: a row rests when its norm is 1. The competition sees all
of a_l = u + x_l + b_l, so drives decide who wins; the decay sees u alone, or norms would follow the drives.
"oja": Delta W = mean a_l (z_{l-1} - W' u)', whose rows come to span the first principal components.
The rungs are unsupervised, or weighted by one scalar for each sample (`modulation="reward"`); the readout is
supervised, by the delta rule e phi'. Use it for features without labels; start W with row norms other than 1
(SoftHebb). Needs to know the rung as a whole; Oja also W on the way back. Source: Oja (1982, 1989); Moraitis
et al. (2022) and Journé et al. (2023), SoftHebb.
"""

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates


class Hebbian(Rule):
    """See the module's docstring. Biases stay as they are.

    Args:
        mode: "softhebb" or "oja".
        temperature: of the competition; low: the winner takes all. High: losers, taken together, move more
            than winners do, and fall silent.
        anneal: exponent of | |W_i| - 1 |, the rate of a row (softhebb); 0: the same rate for all.
        modulation: "none", or "reward": each sample counts by 1 - q_t in [0, 1], by how much its right answer
            was better than expected (0 where another answer was chosen and only that one was rewarded).
    """

    def __init__(
        self,
        mode: str = "softhebb",
        temperature: float = 0.1,
        anneal: float = 0.5,
        modulation: str = "none",
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if mode not in ("softhebb", "oja"):
            raise ValueError(f"mode={mode!r}: possible are 'softhebb', 'oja'")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature!r}: possible are numbers above 0")
        if not 0 <= anneal < float("inf"):
            raise ValueError(f"anneal={anneal!r}: possible are numbers from 0")
        if modulation not in ("none", "reward"):
            raise ValueError(f"modulation={modulation!r}: possible are 'none', 'reward'")
        self.mode, self.temperature, self.anneal, self.modulation = mode, temperature, anneal, modulation

    @property
    def grows(self) -> bool:
        return False  # what competes, or spikes in pairs, is what comes from the rung below

    @property
    def ledger(self) -> Ledger:
        told = self.modulation == "reward"
        return Ledger(
            weight_transport=self.mode == "oja",  # W' u, the input as the rung has it
            global_scalar=told,
            update_locking=told,
            layer_wide_matrix=True,  # all compete with all; W' u is of all
        )

    def compete(self, a: Tensor) -> Tensor:
        """y: +p for the winner and -p for the losers, (B, width)."""
        p = (a / self.temperature).softmax(1)
        winner = torch.nn.functional.one_hot(a.argmax(1), a.shape[1])
        return p * (2 * winner - 1)

    def soft(self, w: Tensor, z: Tensor, a: Tensor, gate: Tensor) -> Tensor:
        """Delta W of SoftHebb, (width, n), for inputs z (B, n), pre-activations a and gates (B, 1)."""
        y = gate * self.compete(a)
        moved = (y.T @ z - (y * (z @ w.T)).sum(0).unsqueeze(1) * w) / len(z)
        largest = moved.abs().max().clamp_min(torch.finfo(moved.dtype).tiny)
        rate = (w.norm(dim=1, keepdim=True) - 1).abs() ** self.anneal
        # the largest entry takes the size of the gates away: put it back
        return moved / largest * gate.abs().mean() * rate

    def oja(self, w: Tensor, z: Tensor, a: Tensor, gate: Tensor) -> Tensor:
        """Delta W of Oja's subspace rule, (width, n), as above."""
        moved = (gate * a).T @ (z - (z @ w.T) @ w) / len(z)
        return moved / moved.abs().max().clamp_min(1)  # cubic in W: where W is large it would overshoot

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        gate = torch.ones_like(error[:, :1])
        if self.modulation == "reward":
            # below 0 the decay would be growth without end
            gate = (error * teaching.target.to(error)).sum(1, keepdim=True).clamp(0, 1)
        learn = self.soft if self.mode == "softhebb" else self.oja
        updates = {name: torch.zeros_like(t) for name, t in ladder.weights().items()}
        below = [climb.below, *climb.states[:-1]]
        for level, (z, a) in enumerate(zip(below, climb.pre_activations, strict=True)):
            updates[f"weight_{level}"] = learn(ladder.weight(level), z, a, gate)
        return Updates(updates, error.T @ climb.phi / len(error))
