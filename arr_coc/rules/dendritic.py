"""Two-compartment neurons: the basal dendrite hears what comes from below, the apical one what is wrong.

`mode="microcircuit"`: in every rung interneurons predict the rung above, and what they send by W_PI cancels
what it sends by Y. What is left, v_A = nudge D' e + gain Y' f(u_{l+1}) + W_PI' f(u_I), is the error; it moves
the soma, u = a + kappa v_A, and Delta W_l = + ((f(u) - f(a)) / (kappa nudge)) f(u_{l-1})'. W_IP learns to
predict the rung above, W_PI to bring v_A to rest while nobody teaches. States are the equilibrium of the
leaky dynamics, by a bounded fixed-point iteration. `mode="burst"`: events e = z - f(-inf), bursts p e with
p = sigma(u f' / e), u from the bursts above; Delta W_l = + (p_taught - p) e z_{l-1}', in closed form.
D and Y are fixed random, learn by the same product as R and W (Kolen-Pollack), or are tied to them. Weak
nudge and tied: backpropagation; random: feedback alignment. Use it where the error has to travel inside the
cells; burst mode is the cheap one. Source: Sacramento et al. (2018); Payeur et al. (2021), Burstprop; Greedy
et al. (2022), for f' / e.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from arr_coc.ladder import Climb, Ladder
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates, outer, to_drives

TINY = 1e-12  # events; below it a unit is silent and its slope 0
OPTIONS = {
    "mode": ("microcircuit", "burst"),
    "feedback": ("random", "learned", "tied"),
    "start": ("self_predicting", "random"),
}


@dataclass(frozen=True)
class Equilibrium:
    """Where the potentials came to rest; lists have one (B, width) per rung.

    Args:
        basal: a_l, what the basal dendrite alone would make of the soma. soma: u_l. apical: v_A of rung l.
        guess, inter: the same of the interneurons that predict rung l + 1, one less.
        residual: the largest change of v_A in the last iteration. iterations: how many there were.
    """

    basal: list[Tensor]
    soma: list[Tensor]
    apical: list[Tensor]
    guess: list[Tensor]
    inter: list[Tensor]
    residual: float
    iterations: int


class Dendritic(Rule):
    """See the module's docstring. W is in units of the basal prediction: g_b / (g_lk + g_b + g_a) is in it.

    Args:
        mode: "microcircuit" or "burst".
        feedback: D and Y: "random" (fixed), "learned" (Kolen-Pollack) or "tied" (R and W, transported).
        feedback_start: size of the first draw of D and Y, over 1 / sqrt(fan-in). 0, with some decay, is
            better where steps are Adam's: their size does not wait until feedback fits.
        start: of W_IP and W_PI: "self_predicting" or "random".
        g_lk, g_b, g_a: leak, basal and apical conductance; kappa = g_a / (g_lk + g_b + g_a).
        g_d, g_som: dendrite of an interneuron, and its nudge by the cell above that it predicts;
            lambda = g_som / (g_lk + g_d + g_som).
        nudge: how far the output goes towards the teacher. None: g_som / (g_lk + g_b + g_som); in burst mode
            0.2, there the burst probability of the output.
        gain: of Y. None: 1 / (kappa (1 - lambda)), or 4 in burst mode, what a rung takes from an error on its
            way down; 1: as published; 0: only what the output broadcasts.
        reversal: v_A stays within +- reversal, as between reversal potentials; it cannot run away.
        lateral_scale: size of the updates of W_IP and W_PI beside the ladder's.
        recurrent: burst mode: recurrent weights, at their fixed point, keep u at 0 while nobody teaches;
            without them bursts saturate and p is remembered.
        decay: of W, Y, R and D alike where feedback is learned; above 0 their difference dies out.
        steps: at most so many iterations. tolerance: they end where no v_A changes by more.
    """

    per_class: ClassVar[tuple[str, ...]] = ("down_readout",)

    def __init__(
        self,
        mode: str = "microcircuit",
        feedback: str = "learned",
        feedback_start: float = 1.0,
        start: str = "self_predicting",
        g_lk: float = 0.1,
        g_b: float = 1.0,
        g_a: float = 0.8,
        g_d: float = 1.0,
        g_som: float = 0.8,
        nudge: float | None = None,
        gain: float | None = None,
        reversal: float = 8.0,
        lateral_scale: float = 1.0,
        recurrent: bool = True,
        decay: float = 0.0,
        steps: int = 50,
        tolerance: float = 1e-6,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        for name, given in (("mode", mode), ("feedback", feedback), ("start", start)):
            if given not in OPTIONS[name]:
                raise ValueError(f"{name}={given!r}: possible are {', '.join(map(repr, OPTIONS[name]))}")
        positive: dict[str, float] = {
            "g_b": g_b,
            "g_a": g_a,
            "g_d": g_d,
            "g_som": g_som,
            "reversal": reversal,
        }
        for name, size in (positive | ({} if nudge is None else {"nudge": nudge})).items():
            if not 0 < size < float("inf"):
                raise ValueError(f"{name}={size!r}: possible are numbers above 0")
        others: dict[str, float] = {
            "g_lk": g_lk,
            "feedback_start": feedback_start,
            "lateral_scale": lateral_scale,
            "decay": decay,
            "tolerance": tolerance,
        }
        for name, size in (others | ({} if gain is None else {"gain": gain})).items():
            if not 0 <= size < float("inf"):
                raise ValueError(f"{name}={size!r}: possible are numbers from 0")
        if steps != int(steps) or steps < 1:
            raise ValueError(f"steps={steps!r}: possible are whole numbers from 1")
        self.mode, self.feedback, self.start_at, self.recurrent = mode, feedback, start, recurrent
        self.feedback_start = feedback_start
        self.kappa, self.predicted = g_a / (g_lk + g_b + g_a), g_som / (g_lk + g_d + g_som)
        burst = mode == "burst"
        usual = 0.2 if burst else g_som / (g_lk + g_b + g_som)
        self.nudge = usual if nudge is None else nudge
        lost = 0.25 if burst else self.kappa * (1 - self.predicted)  # 1 / 4: the slope of sigma at 0
        self.gain = 1 / lost if gain is None else gain
        self.reversal, self.lateral_scale, self.decay = reversal, lateral_scale, decay
        self.steps, self.tolerance = int(steps), tolerance

    @property
    def ledger(self) -> Ledger:
        remembers = self.mode == "burst" and not self.recurrent
        circuit = self.mode == "microcircuit"
        return Ledger(
            weight_transport=self.feedback == "tied",
            two_phases=circuit or remembers,
            update_locking=True,
            iterative_settling=circuit,
            layer_wide_matrix=circuit or self.recurrent,
            stored_activations=remembers,
            signed_errors=True,
        )

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        """By the rung above, l = 1..: Y as "down_l", W_IP as "inter_l" with "inter_bias_l", W_PI as
        "lateral_l", the shape of W_l each. D as "down_readout", that of R, (C, D)."""
        w, above = ladder.width, range(1, ladder.depth)
        kept: dict[str, tuple[int, ...]] = {}
        if self.feedback != "tied":
            kept |= {f"down_{k}": (w, w) for k in above} | {"down_readout": (classes, ladder.phi_width)}
        if self.mode == "microcircuit":
            for k in above:
                kept |= {f"inter_{k}": (w, w), f"inter_bias_{k}": (w,), f"lateral_{k}": (w, w)}
        return kept

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        if name.startswith("inter_bias"):
            return torch.zeros(shape)
        size = self.feedback_start if name.startswith("down") else 1.0
        return torch.randn(shape, generator=draw) * (size / shape[-1] ** 0.5)

    def prepare(self, ladder: Ladder, classes: int) -> None:
        """And, the first time, put the interneurons where they predict and cancel what is above."""
        fresh = "inter_1" not in self.state
        super().prepare(ladder, classes)
        self.rest = float(ladder.activation.f(torch.tensor(-torch.inf)))
        if fresh and self.mode == "microcircuit" and self.start_at == "self_predicting":
            for k in range(1, ladder.depth):
                self.state[f"inter_{k}"] = ladder.weight(k).clone()
                self.state[f"inter_bias_{k}"] = ladder.get_buffer(f"bias_{k}").clone()
                self.state[f"lateral_{k}"] = -self.down(ladder, k)

    def down(self, ladder: Ladder, level: int) -> Tensor:
        """Y, what rung `level` sends down by, the shape of W_l."""
        like = ladder.weight(level)
        return like if self.feedback == "tied" else self.state[f"down_{level}"].to(like)

    def broadcast(self, ladder: Ladder, teaching: Teaching, sent: Tensor) -> Tensor:
        """What the output (B, C) sends where phi lives, (B, D)."""
        own = teaching.readout if self.feedback == "tied" else self.state["down_readout"]
        return sent @ own.to(sent)

    def settle(self, ladder: Ladder, climb: Climb, teaching: Teaching, nudge: float) -> Equilibrium:
        """The equilibrium at this nudge of the output, 0 for none, by iteration from the climb."""
        f, like, above = ladder.activation.f, climb.phi, range(1, ladder.depth)
        seen = ladder.split(teaching.readout.to(like))[1]
        down = [self.down(ladder, k) for k in above]
        inter, bias, lateral = (
            [self.state[f"{name}_{k}"].to(like) for k in above] for name in ("inter", "inter_bias", "lateral")
        )
        at_z = [torch.zeros_like(a) for a in climb.pre_activations]
        apical, share, last = list(at_z), 1.0, float("inf")
        for iterations in range(1, self.steps + 1):  # noqa: B007
            # upwards: every dendrite hears the rung below, and the soma its apical dendrite as it was
            rates, basal, soma, moved = [climb.below], [], [], torch.zeros_like(seen[0][:, 0])
            for k in range(ladder.depth):
                basal.append(rates[k] @ ladder.weight(k).T + climb.drives[k] + ladder.get_buffer(f"bias_{k}"))
                soma.append(basal[k] + self.kappa * apical[k])
                rates.append(f(soma[k]))
                moved = moved + (rates[-1] - climb.states[k]) @ seen[k].T
            guess = [rates[k] @ inter[k - 1].T + climb.drives[k] + bias[k - 1] for k in above]
            told = list(guess)
            if nudge:
                error = teaching.error_at(teaching.values + moved.to(teaching.values)).to(like)
                at_z = ladder.split(self.broadcast(ladder, teaching, nudge * error))[1]
            # downwards: what the interneurons do not cancel reaches the next rung within the same iteration
            changes = []
            for k in reversed(range(ladder.depth)):
                v = at_z[k]
                if k + 1 < ladder.depth:
                    # as a difference, for a right guess is then cancelled to the last bit
                    told[k] = guess[k] + self.predicted * (soma[k + 1] - guess[k])
                    v = v + self.gain * (f(soma[k + 1]) @ down[k] + f(told[k]) @ lateral[k])
                changes.append(v.clamp(-self.reversal, self.reversal) - apical[k])
                apical[k] = apical[k] + share * changes[-1]
                soma[k] = basal[k] + self.kappa * apical[k]
            residual = float(torch.stack(changes).abs().max())
            if residual <= self.tolerance:
                break
            share, last = share / 2 if residual > last else share, residual
        return Equilibrium(basal, soma, apical, guess, told, residual, iterations)

    def circuit(
        self, ladder: Ladder, climb: Climb, teaching: Teaching
    ) -> tuple[list[Tensor], list[Tensor], dict[str, float]]:
        """Of the microcircuit: post and pre of each rung, notes."""
        f = ladder.activation.f
        taught = self.settle(ladder, climb, teaching, self.nudge)
        rates = [f(u) for u in taught.soma]
        unit = self.kappa * self.nudge
        post = [(r - f(a)) / unit for r, a in zip(rates, taught.basal, strict=True)]
        notes = {"residual": taught.residual, "iterations": float(taught.iterations)}
        return post, [climb.below, *rates[:-1]], notes

    def interneurons(
        self, ladder: Ladder, climb: Climb, teaching: Teaching, moves: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Updates of W_IP and W_PI, given those of W and Y, and notes.

        They keep pace with W and Y by the same products, for a lag would look like an error. What is still
        wrong is unlearned while nobody teaches, for W_PI would learn to cancel the teacher:
        Delta W_IP = (f(u_I) - f(guess)) f(u)' / lambda, Delta W_PI = - v_A f(u_I)' / gain, each over
        1 + the mean square norm of what enters, so that a wide rung does not overshoot.
        """
        f, own = ladder.activation.f, {}
        free = self.settle(ladder, climb, teaching, 0.0)
        for k in range(1, ladder.depth):
            wrong = (f(free.inter[k - 1]) - f(free.guess[k - 1])) / self.predicted
            rate, cancel = f(free.soma[k - 1]), f(free.inter[k - 1])
            size, size_back = (
                self.lateral_scale / (1 + r.square().sum(1).mean()) / len(r) for r in (rate, cancel)
            )
            own[f"inter_{k}"] = moves[f"weight_{k}"] + size * wrong.T @ rate
            own[f"inter_bias_{k}"] = moves[f"bias_{k}"] + size * wrong.sum(0)
            unlearned = -size_back / (self.gain or 1.0) * cancel.T @ free.apical[k - 1]
            follows = {"random": None, "learned": f"down_{k}", "tied": f"weight_{k}"}[self.feedback]
            own[f"lateral_{k}"] = unlearned if follows is None else unlearned - moves[follows]
        apical = float(torch.stack(free.apical).abs().mean())
        return own, {"free_residual": free.residual, "free_apical": apical}

    def bursts(
        self, ladder: Ladder, climb: Climb, teaching: Teaching, output: Tensor, quiet: float
    ) -> list[Tensor]:
        """b_l = p_l e_l for bursts of the output (B, C); `quiet`: the share of events that recurrent weights
        expect to be bursts, and cancel."""
        at_z = ladder.split(self.broadcast(ladder, teaching, self.nudge * output))[1]
        found: list[Tensor] = []
        from_above: Tensor | float = 0.0
        for k in reversed(range(ladder.depth)):
            events = climb.states[k] - self.rest
            slope = ladder.activation.slope(climb.pre_activations[k])
            u = at_z[k] + from_above
            found.insert(0, torch.sigmoid(u * slope / events.clamp_min(TINY)) * events)
            if k:
                from_above = self.gain * (found[0] - quiet * events) @ self.down(ladder, k)
        return found

    def burst(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> list[Tensor]:
        """Of burstprop: post of each rung, 4 / nudge times what the teacher adds to its bursts."""
        error, values = teaching.error.to(climb.phi), teaching.values.to(climb.phi)
        if self.recurrent:
            taught = self.bursts(ladder, climb, teaching, error, 0.5)
            before = [(z - self.rest) / 2 for z in climb.states]
        else:
            taught = self.bursts(ladder, climb, teaching, values + error, 0.0)
            before = self.bursts(ladder, climb, teaching, values, 0.0)
        return [4 / self.nudge * (b - was) for b, was in zip(taught, before, strict=True)]

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        error = teaching.error.to(climb.phi)
        own: dict[str, Tensor] = {}
        notes: dict[str, float] = {}
        if self.mode == "burst":
            post, below = self.burst(ladder, climb, teaching), [climb.below, *climb.states[:-1]]
        else:
            post, below, notes = self.circuit(ladder, climb, teaching)
        updates, readout = outer(ladder, post, below, climb.lateral), error.T @ climb.phi / len(error)
        if self.feedback == "learned":
            for k in range(1, ladder.depth):
                both = updates[f"weight_{k}"]
                updates[f"weight_{k}"] = both - self.decay * ladder.weight(k)
                own[f"down_{k}"] = both - self.decay * self.down(ladder, k)
            own["down_readout"] = readout - self.decay * self.state["down_readout"].to(readout)
            readout = readout - self.decay * teaching.readout.to(readout)
        if self.mode == "microcircuit" and ladder.depth > 1:
            lateral, more = self.interneurons(ladder, climb, teaching, updates | own)
            own, notes = own | lateral, notes | more
        drives = to_drives(ladder, climb, self.broadcast(ladder, teaching, error), post)
        return Updates(updates, readout, drives, own=own, notes=notes)
