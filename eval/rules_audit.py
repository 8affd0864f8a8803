"""The audit of a rule's ledger: what it says that it does not need is changed, and its updates must not move.

Every check holds what the rule does declare fixed and perturbs one quantity. The updates of W and b, of the
readout and of the rule's own weights must come out bit for bit the same.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from arr_coc.activation import Activation
from arr_coc.eval.rules_one_way import OneWay, plain
from arr_coc.ladder import Climb, Ladder
from arr_coc.rules import Ledger, Rule, Teaching, Updates

DEPTH, WIDTH, BELOW, CLASSES, BATCH = 3, 6, 5, 4, 7
ENTRIES = tuple(f.name for f in fields(Ledger))


@dataclass(frozen=True)
class Finding:
    """About one entry: "used" (declared), "not needed" (proved), or "lie" and its proof."""

    entry: str
    verdict: str
    proof: str = ""

    @property
    def lie(self) -> bool:
        return self.verdict == "lie"


@dataclass(frozen=True)
class Case:
    """A ladder, what came up it, and a teaching signal; the readout sees the top rung alone.

    The last class is mute: it has no weights, and what is said to it reaches no rung by the way down.
    """

    ladder: Ladder
    drive: Tensor
    below: Tensor
    readout: Tensor
    target: Tensor

    @staticmethod
    def random(seed: int = 0) -> "Case":
        draw = torch.Generator().manual_seed(seed)
        double = {"generator": draw, "dtype": torch.float64}
        ladder = Ladder([WIDTH] * DEPTH, BELOW, 0, WIDTH, 0, seed, "top", "tanh", 1.0).double()
        readout = torch.randn(CLASSES, WIDTH + 1, **double) / WIDTH**0.5  # type: ignore[call-overload]
        readout[-1] = 0.0
        drive = 0.5 * torch.randn(BATCH, DEPTH * WIDTH, **double)  # type: ignore[call-overload]
        below = torch.randn(BATCH, BELOW, **double)  # type: ignore[call-overload]
        label = torch.randint(CLASSES, (BATCH,), generator=draw)
        return Case(ladder, drive, below, readout, torch.eye(CLASSES, dtype=torch.float64)[label])

    def climb(self) -> Climb:
        return self.ladder.climb(self.drive, self.below, None)

    def teaching(self, climb: Climb) -> Teaching:
        values = climb.phi @ self.readout.T

        def forward(copies: dict[str, Tensor]) -> Tensor:
            return self.ladder.climb(self.drive, self.below, None, copies).phi @ copies["readout"].T

        return Teaching(
            self.target - values,
            self.target,
            self.readout,
            values,
            torch.zeros(1, 1, dtype=torch.float64),
            forward,
            error_of=lambda v: self.target - v,
        )


class Audit:
    """The checks, for one rule as it is configured.

    Args:
        make: a fresh rule with its options.
    """

    def __init__(self, make: Callable[[], Rule]) -> None:
        self.make = make
        self.case = Case.random()

    def rule(self) -> Rule:
        """A fresh one, prepared, with nothing coming down from the mute class."""
        rule = self.make()
        rule.prepare(self.case.ladder, CLASSES)
        for name in rule.state.keys() & set(rule.per_class):
            rule.state[name][-1] = 0.0
        return rule

    def step(self, change: Callable[[Climb, Teaching], tuple[Climb, Teaching]] | None = None) -> Updates:
        """The updates of the case, or of what `change` makes of it."""
        with torch.no_grad():
            rule = self.rule()
            climb = rule.infer(self.case.ladder, self.case.climb())
            teaching = self.case.teaching(climb)
            if change is not None:
                climb, teaching = change(climb, teaching)
            return rule.step(self.case.ladder, climb, teaching)

    def run(self) -> list[Finding]:
        """One finding per entry of the ledger, and one for the graph if there is any."""
        ledger = self.make().ledger
        found = []
        for entry in ENTRIES:
            if getattr(ledger, entry):
                found.append(Finding(entry, "used"))
                continue
            proof = getattr(self, entry)(ledger)
            found.append(Finding(entry, "lie" if proof else "not needed", proof))
        return found

    # -- one check per entry; "" where the rule told the truth -----------------------------------------------

    def weight_transport(self, ledger: Ledger) -> str:
        """Weights are others on the way down than on the way up."""
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            rule, case = self.rule(), self.case
            ladder = copy.deepcopy(case.ladder)
            climb = rule.infer(case.ladder, case.climb())
            teaching = case.teaching(climb)
            plain = rule.step(case.ladder, climb, teaching)
            for name in [n for n in ladder.weights() if n.startswith("weight")]:
                w = ladder.get_buffer(name)
                other = torch.randn(w.shape, generator=draw, dtype=w.dtype)
                ladder._buffers[name] = OneWay.of(w, other)
            other = torch.randn(case.readout.shape, generator=draw, dtype=torch.float64)
            readout = OneWay.of(case.readout, other)

            def forward(copies: dict[str, Tensor]) -> Tensor:
                return ladder.climb(case.drive, case.below, None, copies).phi @ copies["readout"].T

            changed = rule.step(ladder, climb, replace(teaching, readout=readout, forward=forward))
        return _differs(plain, changed, "with other weights on the way down")

    def two_phases(self, ledger: Ledger) -> str:
        """No activity is computed anew within a step."""
        if ledger.iterative_settling:
            return ""  # settling under the teaching signal is one phase; the count below is its own
        passes = self._evaluations()
        return f"{passes} rungs were computed again in the step" if passes else ""

    def iterative_settling(self, ledger: Ledger) -> str:
        """No rung is computed more than four times in a step: a pass, a second one, and the way down."""
        passes = self._evaluations()
        return f"{passes} evaluations of {DEPTH} rungs in one step" if passes > 4 * DEPTH else ""

    def _evaluations(self) -> int:
        count = [0]

        def counted(a: Tensor) -> Tensor:
            count[0] += 1
            return true.f(a)

        with torch.no_grad():
            rule, case = self.rule(), self.case
            ladder = copy.deepcopy(case.ladder)
            climb = rule.infer(case.ladder, case.climb())
            true = ladder.activation
            ladder.activation = Activation(counted, true.slope, true.slope_at)

            def forward(copies: dict[str, Tensor]) -> Tensor:
                before = count[0]
                values = ladder.climb(case.drive, case.below, None, copies).phi @ copies["readout"].T
                count[0] = before  # a pass with other weights is a trial: no state relaxes in it
                return values

            rule.step(ladder, climb, replace(case.teaching(climb), forward=forward))
        return count[0]

    def global_scalar(self, ledger: Ledger) -> str:
        """What is said to the mute class reaches no rung."""
        if ledger.error_vector_broadcast:
            return ""  # the vector is there, and any scalar of it
        told = self.step(self._muttered)
        return _differs(self.step(), told, "with an error that has no way down", True)

    def _muttered(self, climb: Climb, teaching: Teaching) -> tuple[Climb, Teaching]:
        said = torch.zeros(CLASSES, dtype=torch.float64)
        said[-1] = 0.5
        told = teaching.error_of
        assert told is not None
        changed = replace(
            teaching,
            error=teaching.error + said,
            target=teaching.target + said,
            error_of=lambda v: told(v) + said,
        )
        return climb, changed

    def error_vector_broadcast(self, ledger: Ledger) -> str:
        """With nothing coming down from the top rung, the rungs below it hear nothing of the error.

        The way down is cut in the forward weights and in whatever the rule keeps for the top rung. Where
        weights move while states settle (iPC) a trace of it grows again: 1e-5 is let pass there.
        """
        if ledger.global_scalar:
            return (
                ""  # the scalar comes by a way of its own, and is all that may: `global_scalar` is declared
            )
        updates = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                rule, case = self.rule(), self.case
                climb = rule.infer(case.ladder, case.climb())
                teaching = case.teaching(climb)
                ladder = copy.deepcopy(case.ladder)
                top = ladder.weight(DEPTH - 1)
                ladder._buffers[f"weight_{DEPTH - 1}"] = OneWay.of(top, torch.zeros_like(top))
                for name, kept in rule.state.items():
                    if name.endswith(f"_{DEPTH - 1}") and kept.dim() == 2:
                        rule.state[name] = torch.zeros_like(kept)
                told = replace(
                    teaching,
                    error=sign * teaching.error,
                    target=teaching.values + sign * teaching.error,
                    error_of=lambda v, s=sign, t=teaching: s * (t.target - v),  # type: ignore[misc]
                )
                updates.append(rule.step(ladder, climb, told))
        low = [f"{kind}_{level}" for level in range(DEPTH - 1) for kind in ("weight", "bias")]
        grown = 1e-5 if ledger.iterative_settling else 0.0
        silent = "of a lower rung, with the top rung silent"
        return _differs(updates[0], updates[1], silent, True, grown, low)

    def update_locking(self, ledger: Ledger) -> str:
        """A rung's update is the same whatever happens above it, and whatever the answer was."""
        plain = self.step()
        draw = torch.Generator().manual_seed(2)

        def noise(t: Tensor) -> Tensor:
            return torch.randn(t.shape, generator=draw, dtype=t.dtype)

        for level in range(DEPTH - 1):

            def above(climb: Climb, teaching: Teaching, level: int = level) -> tuple[Climb, Teaching]:
                pre = [a if k <= level else noise(a) for k, a in enumerate(climb.pre_activations)]
                states = [z if k <= level else noise(z) for k, z in enumerate(climb.states)]
                other = teaching.error + noise(teaching.error)
                changed = replace(
                    teaching,
                    error=other,
                    values=teaching.target - other,
                    error_of=lambda v: other,
                    forward=None,
                )
                return replace(climb, pre_activations=pre, states=states, phi=noise(climb.phi)), changed

            names = [f"{kind}_{level}" for kind in ("weight", "bias")]
            try:
                changed = self.step(above)
            except ValueError:
                return "it cannot learn without a pass through the whole ladder"
            proof = _differs(plain, changed, "with other activity above", True, 0.0, names)
            if proof:
                return proof
        return ""

    def layer_wide_matrix(self, ledger: Ledger) -> str:
        """A unit's update is the same whatever its neighbours in the rung do."""
        if ledger.iterative_settling or ledger.two_phases:
            square = [n for n, s in self.rule().shapes(self.case.ladder, CLASSES).items() if _lateral(n, s)]
            return f"it keeps {', '.join(square)}" if square else ""
        plain, level = self.step(), DEPTH - 1

        def neighbours(climb: Climb, teaching: Teaching) -> tuple[Climb, Teaching]:
            pre, states = list(climb.pre_activations), list(climb.states)
            pre[level], states[level] = pre[level].clone(), states[level].clone()
            pre[level][:, 1:] += 0.25
            states[level][:, 1:] += 0.25
            return replace(climb, pre_activations=pre, states=states), teaching

        changed = self.step(neighbours)
        same = torch.equal(plain.ladder[f"weight_{level}"][0], changed.ladder[f"weight_{level}"][0])
        return "" if same else f"Delta W_{level} of unit 0 moved with its neighbours' activity"

    def stored_activations(self, ledger: Ledger) -> str:
        """A step is the same whatever was seen in the step before."""
        with torch.no_grad():
            fresh, used = self.rule(), self.rule()
            other = Case.random(3)
            climb = used.infer(other.ladder, other.climb())
            used.step(other.ladder, climb, other.teaching(climb))
            updates = []
            for rule in (fresh, used):
                climb = rule.infer(self.case.ladder, self.case.climb())
                updates.append(rule.step(self.case.ladder, climb, self.case.teaching(climb)))
        return _differs(updates[0], updates[1], "after another sample was seen")

    def signed_errors(self, ledger: Ledger) -> str:
        """Too much and too little teach the rungs the same."""
        if ledger.global_scalar:
            return ""  # the sign is in the scalar, which is declared

        def turned(climb: Climb, teaching: Teaching) -> tuple[Climb, Teaching]:
            told = teaching.error_of
            assert told is not None
            changed = replace(
                teaching,
                error=-teaching.error,
                target=teaching.values - teaching.error,
                error_of=lambda v: -told(v),
            )
            return climb, changed

        return _differs(self.step(), self.step(turned), "with the sign of the error turned", True)


def _lateral(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[0] == shape[1] and name.startswith(("lateral", "within"))


def _differs(
    one: Updates,
    other: Updates,
    when: str,
    rungs_only: bool = False,
    tolerance: float = 0.0,
    names: Sequence[str] | None = None,
) -> str:
    """Which update moved, in words; "" if none did."""
    pairs = {n: (one.ladder[n], other.ladder[n]) for n in (names or one.ladder)}
    if not rungs_only:
        pairs["readout"] = (one.readout, other.readout)
        pairs |= {f"own {n}": (t, other.own[n]) for n, t in one.own.items()}
        if one.drive_feedback is not None and other.drive_feedback is not None:
            pairs["drive feedback"] = (one.drive_feedback, other.drive_feedback)
    for name, (a, b) in pairs.items():
        gap = float((plain(a) - plain(b)).abs().max())
        if not gap <= tolerance:
            return f"the update of {name} moved by {gap:.2g} {when}"
    return ""


def audit(make: Callable[[], Rule]) -> list[Finding]:
    """All findings about a rule, in the order of the ledger; a graph in its updates is one more.

    Args:
        make: a fresh rule with its options.
    """
    return Audit(make).run()
