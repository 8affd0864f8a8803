"""Predictive coding: states move towards what they would have to be, and weights learn from what is left.

F = sum_l Pi_l/2 |eps_l|^2 + Pi_out loss(v), eps_l = z_l - f(a_l). z starts at the climb and descends F,
z_l += eta [-Pi_l eps_l + W_{l+1}' (Pi_{l+1} eps_{l+1} * f'(a_{l+1})) + Pi_out R_l' e]; then Delta W_l =
(Pi_l eps_l * f'(a_l)) z_{l-1}' / Pi_out, the descent of F in units of the loss. `mode`: "strict", as above;
"fixed", with f(a), f' and e held at the climb; "zil", where rung l learns once, when the error arrives;
"ipc", where W moves with every step of the states. "fixed" and "zil" at eta = 1 are backpropagation, "strict"
as Pi_out goes to 0. The error comes down one rung in a step of the states: take `steps` >= depth. Use it
where units know only their neighbours. Needs W and R for the way down, or weights of its own
(`learned_feedback`), and time to settle. Source: Rao & Ballard (1999); Whittington & Bogacz (2017); Millidge
et al. (2022), fixed; Song et al. (2020), zil; Salvatori et al. (2024), ipc.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, outer, to_drives

MODES = ("strict", "fixed", "zil", "ipc")
PRECISIONS = (None, "unit", "rung")
BOUND = math.log(100)  # of |log Pi|: as eps goes to 0 nothing else holds it


@dataclass(frozen=True)
class Settled:
    """Where the states are when the weights learn.

    Args:
        states: z_l, (L, B, width).
        errors: eps_l, (L, B, width).
        post: Pi_l eps_l * f'(a_l), (L, B, width).
        error: of the answer, (B, C).
        phi: (B, D).
        iterations: steps that the states took.
        residual: the largest move of a state in the last one.
        updates: "ipc": the means over all steps, by the names of `Ladder.weights()` and "readout".
    """

    states: Tensor
    errors: Tensor
    post: Tensor
    error: Tensor
    phi: Tensor
    iterations: int
    residual: float
    updates: dict[str, Tensor]


class PredictiveCoding(Rule):
    """See the module's docstring.

    Args:
        mode: "strict", "fixed", "zil" or "ipc".
        steps: T, of the states; "zil" takes one for each rung.
        eta: step of the states. Above 2 / lambda_max of F's Hessian they diverge. None: 1 for "fixed" and
            "zil"; for the others 0.1, and for a sample whose last step overshot 1 over the curvature that it
            met, |change of the descent| / |step| (the secant of Barzilai & Borwein, 1988).
        precision: Pi_out; it cancels in "zil".
        tolerance: settling ends where no state moves by more; 0: after `steps`.
        learned_precision: "unit" or "rung" for Pi_l of its own in each, from 1 on, by Delta log Pi =
            1/2 (1 - Pi eps^2), a mean over the rung's units in "rung"; None: 1. Not in "zil".
        learned_feedback: B_l and Q stand in for W_l and R on the way down, and learn by the same product.
        weight_rate: "ipc": the copy of W moves by weight_rate / T times the update of each step, and the mean
            of these is given back: under SGD at this rate the ladder ends where its copy did. R stays.
    """

    mirrored = True

    def __init__(
        self,
        mode: str = "strict",
        steps: int = 8,
        eta: float | None = None,
        precision: float = 1.0,
        tolerance: float = 0.0,
        learned_precision: str | None = None,
        learned_feedback: bool = False,
        weight_rate: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if mode not in MODES:
            raise ValueError(f"mode={mode!r}: possible are {', '.join(map(repr, MODES))}")
        if steps != int(steps) or steps < 1:
            raise ValueError(f"steps={steps!r}: possible are whole numbers from 1")
        for name, number in (("eta", eta), ("precision", precision)):
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name}={number!r}: possible are numbers above 0")
        for name, number in (("tolerance", tolerance), ("weight_rate", weight_rate)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}={number!r}: possible are numbers from 0")
        possible = PRECISIONS if mode != "zil" else (None,)
        if learned_precision not in possible:
            shown = ", ".join(map(repr, possible))
            raise ValueError(f"learned_precision={learned_precision!r}, mode={mode!r}: possible are {shown}")
        self.mode, self.steps, self.precision, self.tolerance = mode, int(steps), precision, tolerance
        self.careful = eta is None and mode in ("strict", "ipc")
        self.eta = eta if eta is not None else (1.0 if mode in ("fixed", "zil") else 0.1)
        self.learned_precision, self.learned_feedback = learned_precision, learned_feedback
        self.weight_rate = weight_rate
        self.per_class = ("feedback_readout",) if learned_feedback else ()  # type: ignore[misc]

    @property
    def ledger(self) -> Ledger:
        # eps is 0 in the climb, so that "strict" and "ipc" may learn then too; Pi would learn from it
        told_apart = self.mode in ("fixed", "zil") or self.learned_precision is not None
        return Ledger(
            weight_transport=not self.learned_feedback,
            two_phases=told_apart,
            update_locking=True,
            iterative_settling=True,
            stored_activations=self.mode == "fixed",
            signed_errors=True,
        )

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        """B_l, (width, width), none into z_0; Q, (C, D); log Pi_l, (width,) or (1,)."""
        width, kept = ladder.width, dict[str, tuple[int, ...]]()
        if self.learned_feedback:
            kept |= {f"feedback_{level}": (width, width) for level in range(1, ladder.depth)}
            kept["feedback_readout"] = (classes, ladder.phi_width)
        if self.learned_precision is not None:
            units = width if self.learned_precision == "unit" else 1
            kept |= {f"log_precision_{level}": (units,) for level in range(ladder.depth)}
        return kept

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        if name.startswith("log_precision"):
            return torch.zeros(shape)
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        settled = (self._sweep if self.mode == "zil" else self.settle)(ladder, climb, teaching)
        post = list(settled.post / self.precision)
        # what is held at the climb, or has not moved when the rung above it learns, enters as it was there
        states = climb.states if self.mode in ("fixed", "zil") else list(settled.states)
        weights = dict(settled.updates) or outer(ladder, post, [climb.below, *states[:-1]], climb.lateral)
        readout = weights.pop("readout", None)
        if readout is None:
            readout = settled.error.T @ settled.phi / len(settled.phi)
        own: dict[str, Tensor] = {}
        if self.learned_feedback:
            own = {f"feedback_{level}": weights[f"weight_{level}"] for level in range(1, ladder.depth)}
            own["feedback_readout"] = readout
        if self.learned_precision is not None:
            own |= self._learn_precision(settled.errors)
        at_phi = settled.error @ self._readout_down(climb, teaching)
        notes = {"iterations": float(settled.iterations), "residual": settled.residual}
        return Updates(weights, readout, to_drives(ladder, climb, at_phi, post), own=own, notes=notes)

    def settle(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Settled:
        """Descend F from the climb on, all rungs at once; in "ipc" copies of the weights move along."""
        moving, frozen = self.mode == "ipc", self.mode == "fixed"
        f, slope, like, values = ladder.activation.f, ladder.activation.slope, climb.phi, teaching.values
        levels, tiny = range(ladder.depth), torch.finfo(like.dtype).tiny
        z = torch.stack(climb.states)
        first, up = ladder.weight(0), _upward(ladder)
        down = self._down(ladder, up)
        inputs = torch.stack([x + ladder.get_buffer(f"bias_{k}") for k, x in enumerate(climb.drives)])
        read = slice(ladder.read.start, ladder.depth)
        r_up = torch.stack(ladder.split(teaching.readout.to(like))[1])[read]  # R_l, (rungs read, C, width)
        r_down = torch.stack(ladder.split(self._readout_down(climb, teaching))[1])[read] * self.precision
        pi, rate = self._precisions(z)
        mu, bent = z.clone(), slope(torch.stack(climb.pre_activations))  # f(a_l) and f'(a_l)
        eps = weighted = post = torch.zeros_like(z)
        error = teaching.error.to(like)
        unmoved = values.to(like) - (z[read] @ r_up.mT).sum(0)  # what v has from elsewhere than the rungs
        most = 2 * error.norm(dim=1, keepdim=True)
        before, slower = torch.zeros_like(z), z.new_ones(1, z.shape[1], 1)
        asked: dict[str, Tensor] = {}
        total: dict[str, Tensor] = {}
        for count in range(1, self.steps + 1):  # noqa: B007
            move = -weighted
            move[:-1] += post[1:] @ down
            move[read] += error @ r_down
            move *= rate
            if self.careful:
                slower = _slower(move, before, slower)
                before = move
                move = slower * move
            if asked:  # with the states, not before them: what moves them has seen the same weights
                share = self.weight_rate / self.steps
                first = first + share * asked["weight_0"]
                inputs = inputs + share * torch.stack([asked[f"bias_{k}"] for k in levels])[:, None]
                for k, beside in enumerate(climb.lateral[1:], 1):
                    inputs[k] += share * beside @ asked[f"lateral_{k}"].T
                steps = share * _stack([asked[f"weight_{k}"] for k in levels[1:]], up)
                up, down = up + steps, down + steps
                mu[0] = f(a := climb.below @ first.T + inputs[0])
                bent[0] = slope(a)
            z += move
            if not frozen:
                a = z[:-1] @ up.mT
                a += inputs[1:]
                mu[1:], bent[1:] = f(a), slope(a)
                error = teaching.error_at((unmoved + (z[read] @ r_up.mT).sum(0)).to(values)).to(like)
                # |e| cannot double while F falls; where eta is too large for R it would grow without end
                error = error * (most / error.norm(dim=1, keepdim=True).clamp_min(tiny)).clamp_max(1)
            eps = z - mu
            weighted = eps if pi is None else pi * eps
            post = weighted * bent
            if moving:
                asked = outer(ladder, list(post / self.precision), [climb.below, *z[:-1]], climb.lateral)
                asked["readout"] = error.T @ ladder.with_rungs(climb.phi, z) / len(like)
                total = {name: total.get(name, 0) + asked[name] for name in asked}
            if self.tolerance and float(move.abs().max()) <= self.tolerance:
                break
        phi = climb.phi if frozen else ladder.with_rungs(climb.phi, z)
        means = {name: t / count for name, t in total.items()}
        return Settled(z, eps, post, error, phi, count, float(move.abs().max()), means)

    def _sweep(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Settled:
        """In "zil" rung l learns at step L - l + 1 of the states, when it has moved and z_{l-1} has not.

        What the states do after they have taught reaches no weight and is left out. Where the answer reads a
        rung directly, its error passes a relay for each rung above, so that both ways are equally long.
        """
        error = teaching.error.to(climb.phi)
        _, at_z, _ = ladder.split(self.precision * error @ self._readout_down(climb, teaching))
        down = self._down(ladder, _upward(ladder))
        eps, post = torch.zeros_like(z := torch.stack(climb.states)), torch.zeros_like(z)
        for level in reversed(range(ladder.depth)):
            eps[level] = self.eta ** (ladder.depth - level) * at_z[level]  # each relay moves by eta too
            if level + 1 < ladder.depth:
                eps[level] += self.eta * post[level + 1] @ down[level]
            post[level] = eps[level] * ladder.activation.slope(climb.pre_activations[level])
        return Settled(z + eps, eps, post, error, climb.phi, ladder.depth, float(eps[0].abs().max()), {})

    def _down(self, ladder: Ladder, up: Tensor) -> Tensor:
        """What feedback comes down by, W_l or B_l, l > 1, (L - 1, width, width)."""
        if not self.learned_feedback:
            return up
        return _stack([self.state[f"feedback_{level}"] for level in range(1, ladder.depth)], up).to(up)

    def _readout_down(self, climb: Climb, teaching: Teaching) -> Tensor:
        """What the answer's error comes down by, R or Q, (C, D)."""
        return (self.state["feedback_readout"] if self.learned_feedback else teaching.readout).to(climb.phi)

    def _precisions(self, z: Tensor) -> tuple[Tensor | None, Tensor | float]:
        """Pi_l, (L, 1, width) or (L, 1, 1), None for 1, and the step of each rung's states.

        A rung steps by eta over the largest precision of its own and of the rung above, if that is over 1:
        this bounds the curvature of F in its steps by what it is where all Pi_l are 1.
        """
        if self.learned_precision is None:
            return None, self.eta
        logs = [self.state[f"log_precision_{level}"] for level in range(len(z))]
        pi = torch.stack(logs).to(z).clamp(-BOUND, BOUND).exp()[:, None]
        own = pi.amax((1, 2), keepdim=True)
        above = torch.cat([own[1:], torch.ones_like(own[:1])])
        return pi, self.eta / torch.maximum(own, above).clamp_min(1)

    def _learn_precision(self, errors: Tensor) -> dict[str, Tensor]:
        """Delta log Pi_l = 1/2 (1 - Pi_l eps_l^2), a batch mean; 0 where it would leave its bounds."""
        pi, _ = self._precisions(errors)
        assert pi is not None
        own = {}
        for level, (p, eps) in enumerate(zip(pi, errors, strict=True)):
            name = f"log_precision_{level}"
            direction = 0.5 * (1 - p * eps.square()).mean(0)
            if self.learned_precision == "rung":
                direction = direction.mean(0, keepdim=True)
            log = self.state[name].to(direction)
            own[name] = direction * ~((log.abs() >= BOUND) & (log * direction > 0))
        return own


def _slower(move: Tensor, before: Tensor, slower: Tensor) -> Tensor:
    """What the steps of each sample are multiplied with, (1, B, 1).

    A step of slower x `before` changed the descent to `move`: at a curvature c, in units of the step, it is
    (1 - slower c) of what it was along the steepest direction. From slower c = 2 on that grows for ever.

    Args:
        move, before: eta times the descent of F, (L, B, width), now and one step ago. slower: until now.
    """
    length = before.norm(dim=(0, 2), keepdim=True)
    relative = (move - before).norm(dim=(0, 2), keepdim=True) / length  # slower c; nan or inf from standing
    return torch.where((length > 0) & (relative > 1.5), slower / relative, slower)


def _upward(ladder: Ladder) -> Tensor:
    """W_l, l > 1, (L - 1, width, width)."""
    return _stack([ladder.weight(level) for level in range(1, ladder.depth)], ladder.get_buffer("bias_0"))


def _stack(matrices: list[Tensor], like: Tensor) -> Tensor:
    """(number, width, width), also of none."""
    width = like.shape[-1]
    return torch.stack(matrices) if matrices else like.new_zeros(0, width, width)
