"""The audit finds every kind of lie in a ledger, and believes what is true."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arr_coc.eval.rules_audit import ENTRIES, audit
from arr_coc.eval.rules_one_way import OneWay
from arr_coc.ladder import Climb, Ladder
from arr_coc.rules import RULES, Ledger, Rule, Teaching, Updates, make_rule
from arr_coc.rules.protocol import outer, to_drives


class Honest(Rule):
    """Feedback comes down rung by rung through fixed random weights of its own."""

    per_class = ("out",)
    says = Ledger(update_locking=True, signed_errors=True)

    @property
    def ledger(self) -> Ledger:
        return self.says

    def shapes(self, ladder: Ladder, classes: int) -> dict[str, tuple[int, ...]]:
        w = ladder.width
        return {"out": (classes, w)} | {f"down_{k}": (w, w) for k in range(1, ladder.depth)}

    def start(self, name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw) / shape[-1] ** 0.5

    def post(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> list[Tensor]:
        g = (teaching.error @ self.state["out"]) * ladder.activation.slope(climb.pre_activations[-1])
        found = [g]
        for level in reversed(range(1, ladder.depth)):
            g = (g @ self.state[f"down_{level}"]) * ladder.activation.slope(climb.pre_activations[level - 1])
            found.insert(0, g)
        return found

    def step(self, ladder: Ladder, climb: Climb, teaching: Teaching) -> Updates:
        post = self.post(ladder, climb, teaching)
        error, blank = teaching.error, torch.zeros_like(climb.phi)
        return Updates(
            outer(ladder, post, [climb.below, *climb.states[:-1]]),
            error.T @ climb.phi / len(error),
            to_drives(ladder, climb, blank, post),
        )


class Transports(Honest):
    def post(self, ladder, climb, teaching):
        found = super().post(ladder, climb, teaching)
        found[0] = found[0] + found[1] @ ladder.weight(1)
        return found


class CopiesSigns(Honest):
    def post(self, ladder, climb, teaching):
        found = super().post(ladder, climb, teaching)
        found[0] = found[0] + found[1] @ ladder.weight(1).sign()
        return found


class TakesASecondLook(Honest):
    def post(self, ladder, climb, teaching):
        again = ladder.activation.f(climb.pre_activations[0] + 0.1)
        found = super().post(ladder, climb, teaching)
        found[0] = found[0] * again
        return found


class Settles(Honest):
    says = replace(Honest.says, two_phases=True)

    def post(self, ladder, climb, teaching):
        z = climb.pre_activations[0]
        for _ in range(50):
            z = ladder.activation.f(z)
        found = super().post(ladder, climb, teaching)
        found[0] = found[0] * z
        return found


class HearsAScalar(Honest):
    def post(self, ladder, climb, teaching):
        loud = teaching.error.abs().sum(1, keepdim=True)
        return [g * loud for g in super().post(ladder, climb, teaching)]


class HearsTheVector(Honest):
    def post(self, ladder, climb, teaching):
        found = super().post(ladder, climb, teaching)
        found[0] = found[0] + teaching.error @ self.state["out"]
        return found


class DoesNotWait(Honest):
    says = Ledger(signed_errors=True)


class Unsigned(Honest):
    says = Ledger(update_locking=True)


class KnowsItsNeighbours(Honest):
    def post(self, ladder, climb, teaching):
        found = super().post(ladder, climb, teaching)
        found[-1] = found[-1] - climb.states[-1].mean(1, keepdim=True)
        return found


class Remembers(Honest):
    last = 1.0

    def post(self, ladder, climb, teaching):
        found = [g * self.last for g in super().post(ladder, climb, teaching)]
        self.last = climb.states[0].abs().mean()
        return found


LIARS = {
    Transports: "weight_transport",
    CopiesSigns: "weight_transport",
    TakesASecondLook: "two_phases",
    Settles: "iterative_settling",
    HearsAScalar: "global_scalar",
    HearsTheVector: "error_vector_broadcast",
    DoesNotWait: "update_locking",
    Unsigned: "signed_errors",
    KnowsItsNeighbours: "layer_wide_matrix",
    Remembers: "stored_activations",
}


def test_a_planted_liar_for_every_entry() -> None:
    assert set(LIARS.values()) == set(ENTRIES)


@pytest.mark.parametrize("liar", LIARS, ids=lambda c: c.__name__)
def test_a_lie_is_found(liar: type[Rule]) -> None:
    found = {f.entry: f for f in audit(liar)}
    assert found[LIARS[liar]].lie, found[LIARS[liar]]
    assert found[LIARS[liar]].proof


def test_the_truth_is_believed() -> None:
    found = {f.entry: f.verdict for f in audit(Honest)}
    assert [e for e, v in found.items() if v == "used"] == ["update_locking", "signed_errors"]
    assert "lie" not in found.values()


@pytest.mark.parametrize("name", RULES)
def test_no_rule_lies(name: str) -> None:
    assert [f for f in audit(lambda: make_rule(name, {})) if f.lie] == []


def test_a_one_way_weight_is_itself_upward_and_another_downward() -> None:
    w, other = torch.randn(3, 4), torch.randn(3, 4)
    one = OneWay.of(w, other)
    below, above = torch.randn(2, 4), torch.randn(2, 3)
    assert torch.equal(below @ one.T, below @ w.T)
    assert torch.equal(torch.nn.functional.linear(below, one), torch.nn.functional.linear(below, w))
    assert torch.equal(above @ one, above @ other)
    assert torch.equal(torch.nn.functional.linear(above, one.T), above @ other)
    assert torch.equal(above @ (2 * one.sign()), above @ (2 * other.sign()))
    assert torch.equal(torch.addmm(torch.zeros(2, 3), below, one.t()), below @ w.T)
    assert one.shape == (3, 4)


def test_more_trials_of_mezo_are_no_settling() -> None:
    assert [f for f in audit(lambda: make_rule("mezo", {"samples": 5})) if f.lie] == []
