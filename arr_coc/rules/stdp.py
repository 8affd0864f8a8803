"""Spike-timing-dependent plasticity with reward (R-STDP): what fired before what, kept until the answer.

A pre spike that comes before a post spike by s strengthens the synapse by nu_plus exp(-s / tau_plus), one
that comes after weakens it by nu_minus exp(-s / tau_minus). These changes enter an eligibility that decays as
exp(-s / tau_eligibility); dW = sum over time of M x eligibility, with M = r - q of the best valued answer (or
of the one chosen, where only that one was rewarded), or M = 1. A climb has no time: spikes are drawn in
`time_steps` steps with probability peak (1 - exp(-max(z, 0))), independently, so that on average a change is
proportional to (nu_plus tau_plus - nu_minus tau_minus) times both rates; timing itself counts where trains
come from outside: `pair_stdp`. Soft bounds keep |W_ij| under bound / sqrt(fan-in). The readout is supervised,
by the delta rule e phi'. Needs one scalar. Use it for spike trains with a time of their own; with drawn ones
it is a weak learner. Source: Song, Miller & Abbott (2000); Izhikevich (2007); Florian (2007), MSTDPET.
"""

import math

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates


def trace(spikes: Tensor, tau: float, dt: float = 1.0) -> Tensor:
    """What earlier spikes left: the sum over t' < t of spikes_t' exp(-(t - t') dt / tau), (T, ...)."""
    decay = math.exp(-dt / tau)
    left, found = torch.zeros_like(spikes[0]), []
    for now in spikes:
        found.append(left)
        left = (left + now) * decay
    return torch.stack(found)


def pair_stdp(
    pre: Tensor,
    post: Tensor,
    modulator: Tensor | None = None,
    *,
    nu_plus: float = 0.01,
    nu_minus: float = 0.005,
    tau_plus: float = 20.0,
    tau_minus: float = 20.0,
    tau_eligibility: float | None = 25.0,
    dt: float = 1.0,
) -> Tensor:
    """Weight change of all pairs of spikes, summed over time and batch, (n_post, n_pre).

    Spikes in the same time step make no pair. The change of a pair is eligible from the step that completes
    it on, so that sum_t M_t e_t = sum_t stdp_t x (sum over t' >= t of M_t' exp(-(t' - t) dt /
    tau_eligibility)), and no tensor has time and synapses both.

    Args:
        pre: spike trains from anywhere, (T, B, n_pre). post: (T, B, n_post).
        modulator: M, (B,) or, where it has a time of its own, (T, B); None: 1.
        tau_eligibility: None: a change counts only in its own time step.
        dt: length of a time step, in the unit of the taus (ms).
    """
    m = pre.new_ones(pre.shape[:2]) if modulator is None else modulator.to(pre).expand(pre.shape[:2])
    if tau_eligibility is not None:
        m = m + trace(m.flip(0), tau_eligibility, dt).flip(0)
    m = m.unsqueeze(2)
    stronger = (m * post).flatten(0, 1).T @ trace(pre, tau_plus, dt).flatten(0, 1)
    weaker = (m * trace(post, tau_minus, dt)).flatten(0, 1).T @ pre.flatten(0, 1)
    return nu_plus * stronger - nu_minus * weaker


def reward_error(teaching: Teaching) -> Tensor:
    """r - q of the best valued answer among those that were told an error, (B,); 0 where none was."""
    told = teaching.values.masked_fill(teaching.error == 0, -torch.inf)
    return teaching.error.gather(1, told.argmax(1, keepdim=True)).squeeze(1)


class STDP(Rule):
    """See the module's docstring. Biases stay as they are.

    Args:
        modulation: "reward", or "none": M = 1, unsupervised.
        time_steps: T of one climb, at least 2. dt: length of one, ms.
        peak: probability of a spike in a time step at most.
        nu_plus: size of strengthening. nu_minus: of weakening.
        tau_plus: ms, as are `tau_minus` and `tau_eligibility`.
        bound: of the norm of a row of W, where all its entries are at their own.
    """

    def __init__(
        self,
        modulation: str = "reward",
        time_steps: int = 20,
        dt: float = 1.0,
        peak: float = 0.2,
        nu_plus: float = 0.01,
        nu_minus: float = 0.005,
        tau_plus: float = 20.0,
        tau_minus: float = 20.0,
        tau_eligibility: float = 25.0,
        bound: float = 3.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if modulation not in ("reward", "none"):
            raise ValueError(f"modulation={modulation!r}: possible are 'reward', 'none'")
        if time_steps != int(time_steps) or time_steps < 2:
            raise ValueError(f"time_steps={time_steps!r}: possible are whole numbers from 2")
        if not 0 < peak <= 1:
            raise ValueError(f"peak={peak!r}: possible are numbers above 0 and up to 1")
        self.window = {"nu_plus": nu_plus, "nu_minus": nu_minus}
        for name, value in self.window.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: possible are numbers from 0")
        times = {"tau_plus": tau_plus, "tau_minus": tau_minus, "tau_eligibility": tau_eligibility, "dt": dt}
        for name, value in {**times, "bound": bound}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: possible are numbers above 0")
        self.window |= times
        self.modulation, self.time_steps, self.peak, self.bound = modulation, int(time_steps), peak, bound

    @property
    def ledger(self) -> Ledger:
        told = self.modulation == "reward"
        return Ledger(global_scalar=told, update_locking=told)

    def spikes(self, z: Tensor, level: int, step: int) -> Tensor:
        """Spike trains of the layer whose states are z (B, n), as 0 and 1, (T, B, n). Level 0 is z_0."""
        chance = self.peak * -torch.expm1(-z.relu())
        drawn = torch.rand(self.time_steps, *z.shape, generator=self.draw("spikes", level, step))
        return (drawn.to(z) < chance).to(z)

    def bounded(self, w: Tensor, change: Tensor) -> Tensor:
        """Soft bounds: a change goes to zero where its bound is near, and turns where it was passed."""
        top = self.bound / w.shape[1] ** 0.5
        change = change.clamp(-1, 1)  # a larger one would overshoot the bound
        return change.relu() * (top - w) - (-change).relu() * (top + w)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        modulator = reward_error(teaching).to(error) if self.modulation == "reward" else None
        layers = [climb.below, *climb.states]
        trains = [self.spikes(z, level, teaching.step) for level, z in enumerate(layers)]
        updates = {name: torch.zeros_like(t) for name, t in ladder.weights().items()}
        for level in range(ladder.depth):
            change = pair_stdp(trains[level], trains[level + 1], modulator, **self.window) / len(error)
            updates[f"weight_{level}"] = self.bounded(ladder.weight(level), change)
        return Updates(updates, error.T @ climb.phi / len(error))
