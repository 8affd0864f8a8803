"""Equilibrium propagation: let the ladder settle, nudge it towards the target, learn from how it moved.

z(beta) is the equilibrium of E(z) + beta C(v), with C the loss of the values v = R phi(z), and
Delta W_l = -mean_k (dE/dW_l at beta_k - dE/dW_l at 0) / beta_k, which goes to -dC/dW_l as beta goes to 0.
`energy="prediction"`: E = sum_l 1/2 |z_l - f(a_l)|^2, whose free equilibrium is the plain climb; "hopfield":
E = sum_l (integral of f^-1) - Phi, Phi = sum_l z_l . (W_l z_{l-1} + x_l + b_l), answered from after settling.
`nudge`: "one_sided" (beta, error of order beta), "symmetric" (+-beta, order beta^2), "random_sign" (either),
"holomorphic" (`points` on a complex circle, order beta^points; tanh only). Needs W both ways and one settling
per nudge, no stored graph. Use it where units have to learn from their own activity in two phases.
Source: Scellier & Bengio (2017); Ernoult et al. (2019); Laborieux et al. (2021); Laborieux & Zenke (2022).
"""

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arr_coc.activation import ACTIVATIONS
from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, outer, to_drives

Pull = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Equilibrium:
    """Where the states came to rest.

    Args:
        states: z_l, (B, width) each.
        post: the factor of -dE/dW_l = post_l' z_{l-1}, (B, width) each.
        residual: the largest change that was still asked for at the last iteration.
        iterations: how many there were.
    """

    states: list[Tensor]
    post: list[Tensor]
    residual: float
    iterations: int


class EquilibriumPropagation(Rule):
    """See the module's docstring.

    Args:
        energy: "prediction" or "hopfield".
        nudge: "one_sided", "symmetric", "random_sign" or "holomorphic".
        beta: strength of the nudge, > 0.
        points: N of the holomorphic nudge, at least 2.
        free_steps: at most so many iterations without a nudge (hopfield). nudged_steps: with one.
        tolerance: iterations end where nothing changes by more.
        eta: share of the way to its new value that a state goes in one iteration, in (0, 1]; None: 1 for
            prediction, 0.5 for hopfield, where all rungs move at once and would overshoot.
        ceiling: of a hopfield relu's state. Without one the energy has no minimum where W is large.
    """

    def __init__(
        self,
        energy: str = "prediction",
        nudge: str = "symmetric",
        beta: float = 0.05,
        points: int = 4,
        free_steps: int = 200,
        nudged_steps: int = 30,
        tolerance: float = 1e-6,
        eta: float | None = None,
        ceiling: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if energy not in ("prediction", "hopfield"):
            raise ValueError(f"energy={energy!r}: possible are 'prediction', 'hopfield'")
        if nudge not in ("one_sided", "symmetric", "random_sign", "holomorphic"):
            possible = "'one_sided', 'symmetric', 'random_sign', 'holomorphic'"
            raise ValueError(f"nudge={nudge!r}: possible are {possible}")
        if not 0 < beta < math.inf:
            raise ValueError(f"beta={beta!r}: possible are numbers above 0")
        counts = (("points", points, 2), ("free_steps", free_steps, 1), ("nudged_steps", nudged_steps, 1))
        for name, count, least in counts:
            if count < least:
                raise ValueError(f"{name}={count!r}: possible are integers from {least}")
        if not tolerance >= 0:
            raise ValueError(f"tolerance={tolerance!r}: possible are numbers from 0")
        if eta is not None and not 0 < eta <= 1:
            raise ValueError(f"eta={eta!r}: possible are None and numbers above 0 and up to 1")
        if not ceiling > 0:
            raise ValueError(f"ceiling={ceiling!r}: possible are numbers above 0")
        self.energy, self.nudge, self.beta, self.points = energy, nudge, beta, points
        self.free_steps, self.nudged_steps, self.tolerance = free_steps, nudged_steps, tolerance
        self.eta = eta if eta is not None else (1.0 if energy == "prediction" else 0.5)
        self.ceiling = ceiling

    @property
    def ledger(self) -> Ledger:
        return Ledger(
            weight_transport=True,
            two_phases=True,
            global_scalar=self.nudge in ("random_sign", "holomorphic"),  # 1 / beta_k, that changes
            update_locking=True,
            iterative_settling=True,
            stored_activations=True,
            signed_errors=True,
        )

    @property
    def grows(self) -> bool:
        return self.energy == "prediction"  # a frozen column is a plain pass and would not rest where it did

    def infer(self, ladder: Ladder, climb: Climb) -> Climb:
        """The free equilibrium; a_l is then all that enters a rung, dPhi/dz_l."""
        if self.energy == "prediction":
            return climb
        states = self._settle_states(ladder, climb, _nothing, self.free_steps).states
        entering = self._entering(ladder, climb, states)
        phi = ladder.with_rungs(climb.phi, states)
        return replace(climb, pre_activations=entering, states=states, phi=phi)

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        if self.nudge == "holomorphic" and ladder.activation is not ACTIVATIONS["tanh"]:
            raise ValueError("nudge='holomorphic': possible with activation='tanh' alone, which is analytic")
        free = climb.states if self.energy == "hopfield" else [torch.zeros_like(z) for z in climb.states]
        weights = {name: torch.zeros_like(w) for name, w in ladder.weights().items()}
        post = [torch.zeros_like(z) for z in climb.states]
        residual, iterations = 0.0, 0
        points = self._points(climb, teaching)
        for beta in points:
            rest, share = self.nudged(ladder, climb, teaching, beta), len(points) * beta
            below = [climb.below, *climb.states[:-1]]
            kind = rest.post[0].dtype
            before = outer(ladder, [f / share for f in free], [z.to(kind) for z in below], climb.lateral)
            moved = [climb.below.to(kind), *rest.states[:-1]]
            after = outer(ladder, [p / share for p in rest.post], moved, climb.lateral)
            weights = {name: w + (after[name] - before[name]).real for name, w in weights.items()}
            post = [p + ((m - f) / share).real for p, m, f in zip(post, rest.post, free, strict=True)]
            residual, iterations = max(residual, rest.residual), iterations + rest.iterations
        error = teaching.error.to(climb.phi)
        drives = to_drives(ladder, climb, error @ teaching.readout.to(error), post)
        notes = {"iterations": float(iterations), "residual": residual}
        if self.energy == "hopfield":
            asked = [self._state(ladder, a) for a in self._entering(ladder, climb, climb.states)]
            notes["free_residual"] = _largest(asked, climb.states)
        return Updates(weights, error.T @ climb.phi / len(error), drive_feedback=drives, notes=notes)

    def nudged(self, ladder: Ladder, climb: Climb, teaching: Teaching, beta: Tensor) -> Equilibrium:
        """The equilibrium of E + beta C, settled to from the free one. For a complex beta C is linear in v,
        with the slope that it has at the answer: analytic whatever the loss is, with the same limit.

        Args:
            beta: one, (), or one per sample, (B, 1).
        """
        error = teaching.error.to(climb.phi)
        _, readout, _ = ladder.split(teaching.readout.to(error))  # R_l, (C, width) each
        most, tiny = 2 * error.norm(dim=1, keepdim=True), torch.finfo(error.dtype).tiny

        def pull(states: list[Tensor]) -> list[Tensor]:
            """-beta dC/dz_l."""
            e = error
            if not beta.is_complex():
                moved = torch.zeros_like(error)
                for z, z_free, r in zip(states, climb.states, readout, strict=True):
                    moved = moved + (z - z_free) @ r.T
                e = teaching.error_at(teaching.values + moved.to(teaching.values)).to(error)
                # with -beta a squared error drives itself up without end where beta |dv/dz|^2 > 1
                e = e * (most / e.norm(dim=1, keepdim=True).clamp_min(tiny)).clamp_max(1)
            return [beta * (e @ r) for r in readout]

        if beta.is_complex():
            climb = replace(
                climb,
                below=climb.below.to(beta.dtype),
                pre_activations=[a.to(beta.dtype) for a in climb.pre_activations],
                states=[z.to(beta.dtype) for z in climb.states],
            )
        settle = self._settle_errors if self.energy == "prediction" else self._settle_states
        return settle(ladder, climb, pull, self.nudged_steps)

    def _points(self, climb: Climb, teaching: Teaching) -> list[Tensor]:
        """beta_k."""
        like = climb.phi
        if self.nudge == "holomorphic":
            circle = [self.beta * cmath.exp(2j * cmath.pi * k / self.points) for k in range(self.points)]
            return [torch.tensor(b, dtype=like.dtype.to_complex(), device=like.device) for b in circle]
        if self.nudge == "random_sign":
            heads = torch.randint(2, (len(like), 1), generator=self.draw("sign", teaching.step))
            return [self.beta * (2 * heads - 1).to(like)]
        signs = (1, -1) if self.nudge == "symmetric" else (1,)
        return [like.new_tensor(self.beta * sign) for sign in signs]

    def _settle_errors(self, ladder: Ladder, climb: Climb, pull: Pull, steps: int) -> Equilibrium:
        """e_l <- e_l + eta (-beta dC/dz_l + W_{l+1}' (f'(a_{l+1}) e_{l+1}) - e_l) from the top down, then
        z_l = f(a_l) + e_l from below. Descent over z comes to rest at the same place, in about as many
        steps as the condition number of E."""
        f, slope = ladder.activation.f, ladder.activation.slope
        states, entering = climb.states, climb.pre_activations
        errors = [torch.zeros_like(z) for z in states]
        weights = [ladder.weight(level).to(states[0].dtype) for level in range(ladder.depth)]
        residual, n = 0.0, 0
        for _ in range(steps):
            n += 1
            asked = pull(states)
            for level in reversed(range(1, ladder.depth)):
                asked[level - 1] = asked[level - 1] + (slope(entering[level]) * asked[level]) @ weights[level]
            residual = _largest(asked, errors)
            errors = [e + self.eta * (new - e) for e, new in zip(errors, asked, strict=True)]
            z, states, entering = climb.below, [], []
            for level, x in enumerate(climb.drives):
                entering.append(z @ weights[level].T + x + ladder.get_buffer(f"bias_{level}"))
                z = f(entering[level]) + errors[level]
                states.append(z)
            if residual <= self.tolerance:
                break
        post = [slope(a) * e for a, e in zip(entering, errors, strict=True)]
        return Equilibrium(states, post, residual, n)

    def _settle_states(self, ladder: Ladder, climb: Climb, pull: Pull, steps: int) -> Equilibrium:
        """z_l <- z_l + eta (f(dPhi/dz_l - beta dC/dz_l) - z_l), all rungs at once."""
        states, residual, n = climb.states, 0.0, 0
        for _ in range(steps):
            n += 1
            entering = self._entering(ladder, climb, states)
            asked = [self._state(ladder, a + p) for a, p in zip(entering, pull(states), strict=True)]
            residual = _largest(asked, states)
            states = [z + self.eta * (new - z) for z, new in zip(states, asked, strict=True)]
            if residual <= self.tolerance:
                break
        return Equilibrium(states, states, residual, n)

    def _entering(self, ladder: Ladder, climb: Climb, states: list[Tensor]) -> list[Tensor]:
        """dPhi/dz_l = W_l z_{l-1} + x_l + b_l + W_{l+1}' z_{l+1}."""
        weights = [ladder.weight(level).to(states[0].dtype) for level in range(ladder.depth)]
        entering, below = [], [climb.below, *states[:-1]]
        for level, x in enumerate(climb.drives):
            a = below[level] @ weights[level].T + x + ladder.get_buffer(f"bias_{level}")
            entering.append(a if level + 1 == ladder.depth else a + states[level + 1] @ weights[level + 1])
        return entering

    def _state(self, ladder: Ladder, a: Tensor) -> Tensor:
        z = ladder.activation.f(a)
        return z if ladder.activation is ACTIVATIONS["tanh"] else z.clamp_max(self.ceiling)


def _nothing(states: list[Tensor]) -> list[Tensor]:
    """The pull of the free phase."""
    return [torch.zeros_like(z) for z in states]


def _largest(new: list[Tensor], old: list[Tensor]) -> float:
    """The largest change of any state of any sample."""
    return float(torch.stack([(n - o).abs().amax() for n, o in zip(new, old, strict=True)]).amax())
