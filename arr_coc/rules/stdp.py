"""Spike-timing-dependent plasticity: what fired before what, counted by reward ("pairs") or winners ("wta").

"pairs", R-STDP: a pre spike s before a post spike strengthens by nu_plus exp(-s / tau_plus), one after it
weakens by nu_minus exp(-s / tau_minus); that is eligible as exp(-s / tau_eligibility) until M = r - q of the
best valued (or the chosen) answer comes, or M = 1. Bounds are soft. A climb has no time, its spikes are drawn
independently: a weak learner. Use it on trains with a time of their own (`pair_stdp`). Needs one scalar.
"wta": in a time step one neuron of a rung spikes, drawn from softmax(a_l / temperature), and inhibits others.
The next rung hears these spikes, the first ON and OFF trains of z_0. At a spike of i, Delta W_i = e - W_i, e
the trace of what was before it, at unit length: online EM. Biases are thresholds that keep all in play:
Delta b_i = 1 / width - share of i. Use it for features without labels. Needs the rung as a whole.
Drawn spikes have probability peak (1 - exp(-max(z, 0))). The readout is supervised, by the delta rule e phi'.
Source: Song, Miller & Abbott (2000); Izhikevich (2007); Florian (2007), MSTDPET; Nessler, Pfeiffer, Buesing
& Maass (2013), online EM; Habenschuss, Bill & Nessler (2012), thresholds.
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


def winner_stdp(
    pre: Tensor,
    post: Tensor,
    w: Tensor,
    modulator: Tensor | None = None,
    *,
    tau_plus: float = 20.0,
    dt: float = 1.0,
) -> Tensor:
    """Weight change of all post spikes, summed over time and batch, (n_post, n_pre).

    At a spike of i it is M (e - W_i), where e is the trace of the spikes before it, at unit length. A post
    spike that has none before it changes nothing. Rows within unit length stay there.

    Args:
        pre: spike trains, (T, B, n_pre); -1 is a spike of an OFF train.
        post: of neurons that inhibit one another, (T, B, n_post). w: W, (n_post, n_pre).
        modulator: M, (B,), from 0: below it, decay would be growth without end. None: 1.
    """
    seen = trace(pre, tau_plus, dt)
    length = seen.norm(dim=2, keepdim=True)
    seen = seen / length.clamp_min(torch.finfo(seen.dtype).tiny)
    pull = post * (length > 0)
    if modulator is not None:
        pull = pull * modulator.to(pull).unsqueeze(1)
    pull = pull.flatten(0, 1)
    return pull.T @ seen.flatten(0, 1) - pull.sum(0).unsqueeze(1) * w


def reward_error(teaching: Teaching) -> Tensor:
    """r - q of the best valued answer among those that were told an error, (B,); 0 where none was."""
    told = teaching.values.masked_fill(teaching.error == 0, -torch.inf)
    return teaching.error.gather(1, told.argmax(1, keepdim=True)).squeeze(1)


class STDP(Rule):
    """See the module's docstring. Biases are thresholds in "wta", and stay as they are in "pairs".

    Args:
        mode: "pairs" or "wta".
        modulation: "reward", or "none": M = 1, unsupervised. None: "reward" with "pairs", "none" with "wta",
            which lets an M below 0 count as 0.
        time_steps: T of one climb, at least 2. dt: length of one, ms.
        peak: probability of a spike in a time step at most.
        nu_plus: size of strengthening (pairs). nu_minus: of weakening (pairs).
        tau_plus: ms, as are `tau_minus` and `tau_eligibility` (pairs).
        bound: of the norm of a row of W, where all its entries are at theirs, bound / sqrt(fan-in) (pairs).
        temperature: of the competition (wta); low: the winner takes all. High: all learn the same.
    """

    def __init__(
        self,
        mode: str = "pairs",
        modulation: str | None = None,
        time_steps: int = 20,
        dt: float = 1.0,
        peak: float = 0.2,
        nu_plus: float = 0.01,
        nu_minus: float = 0.005,
        tau_plus: float = 20.0,
        tau_minus: float = 20.0,
        tau_eligibility: float = 25.0,
        bound: float = 3.0,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if mode not in ("pairs", "wta"):
            raise ValueError(f"mode={mode!r}: possible are 'pairs', 'wta'")
        if modulation is None:
            modulation = "reward" if mode == "pairs" else "none"
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
        for name, value in {**times, "bound": bound, "temperature": temperature}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value!r}: possible are numbers above 0")
        self.window |= times
        self.mode, self.modulation, self.temperature = mode, modulation, temperature
        self.time_steps, self.peak, self.bound = int(time_steps), peak, bound

    @property
    def grows(self) -> bool:
        return False  # what competes, or spikes in pairs, is what comes from the rung below

    @property
    def ledger(self) -> Ledger:
        told = self.modulation == "reward"
        # who wins is a matter of all
        return Ledger(global_scalar=told, update_locking=told, layer_wide_matrix=self.mode == "wta")

    def spikes(self, z: Tensor, level: int, step: int) -> Tensor:
        """Spike trains of the layer whose states are z (B, n), as 0 and 1, (T, B, n). Level 0 is z_0."""
        chance = self.peak * -torch.expm1(-z.relu())
        drawn = torch.rand(self.time_steps, *z.shape, generator=self.draw("spikes", level, step))
        return (drawn.to(z) < chance).to(z)

    def winners(self, a: Tensor, level: int, step: int) -> Tensor:
        """Spike trains of the rung whose pre-activations are a (B, n), one spike a time step, (T, B, n)."""
        reached = (a / self.temperature).softmax(1).cumsum(1)
        drawn = torch.rand(len(a), self.time_steps, generator=self.draw("winners", level, step))
        first = torch.searchsorted(reached, drawn.to(a) * reached[:, -1:], right=True)
        first = first.clamp_max(a.shape[1] - 1).T  # where rounding reaches past the last
        return torch.nn.functional.one_hot(first, a.shape[1]).to(a)

    def bounded(self, w: Tensor, change: Tensor) -> Tensor:
        """Soft bounds: a change goes to zero where its bound is near, and turns where it was passed."""
        top = self.bound / w.shape[1] ** 0.5
        change = change.clamp(-1, 1)  # a larger one would overshoot the bound
        return change.relu() * (top - w) - (-change).relu() * (top + w)

    def pairs(self, ladder: Ladder, climb: Climb, modulator: Tensor | None, step: int) -> dict[str, Tensor]:
        """Delta W_l of all pairs of spikes, batch mean."""
        layers = [climb.below, *climb.states]
        trains = [self.spikes(z, level, step) for level, z in enumerate(layers)]
        updates = {}
        for level in range(ladder.depth):
            change = pair_stdp(trains[level], trains[level + 1], modulator, **self.window) / len(climb.below)
            updates[f"weight_{level}"] = self.bounded(ladder.weight(level), change)
        return updates

    def wta(self, ladder: Ladder, climb: Climb, modulator: Tensor | None, step: int) -> dict[str, Tensor]:
        """Delta W_l and Delta b_l of all winners, mean over time and batch."""
        if modulator is not None:
            modulator = modulator.clamp_min(0)
        window = {name: self.window[name] for name in ("tau_plus", "dt")}
        pre = self.spikes(climb.below.abs(), 0, step) * climb.below.sign()  # ON, less OFF
        updates = {}
        for level, a in enumerate(climb.pre_activations):
            post = self.winners(a, level, step)
            change = winner_stdp(pre, post, ladder.weight(level), modulator, **window)
            updates[f"weight_{level}"] = change / (self.time_steps * len(a))
            updates[f"bias_{level}"] = 1 / a.shape[1] - post.mean((0, 1))
            pre = post
        return updates

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        modulator = reward_error(teaching).to(error) if self.modulation == "reward" else None
        learn = self.pairs if self.mode == "pairs" else self.wta
        updates = {name: torch.zeros_like(t) for name, t in ladder.weights().items()}
        updates |= learn(ladder, climb, modulator, teaching.step)
        return Updates(updates, error.T @ climb.phi / len(error))
