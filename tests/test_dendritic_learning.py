"""The dendritic rules over time: feedback that learns, angles that fall, what a rung need not know."""

import inspect
from dataclasses import replace

import ladders
import pytest
import torch
from pyramids import MODES, angle, angles, learn, loss, prepared, step, task
from torch import Tensor

from arr_coc.rules import dendritic
from arr_coc.rules.dendritic import Dendritic
from arr_coc.rules.protocol import Ledger


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("mode", MODES)
def test_feedback_that_learns_by_the_same_product_turns_towards_the_forward_weights(
    mode: str, decay: float
) -> None:
    """Y - W stays what it was, or dies out with the decay; either way the growing part is the same."""
    net = task()
    rule = prepared(net, mode=mode, nudge=0.1, decay=decay, tolerance=1e-3)
    pairs = [(f"down_{k}", net.ladder.weight(k)) for k in (1, 2)]
    apart = [rule.state[name] - w for name, w in pairs]
    start = [ladders.cosine(rule.state[name], w) for name, w in pairs]
    steps = 300 if decay else 150
    for _ in range(steps):
        learn(rule, net, step(rule, net), 0.1)
    for before, (name, w) in zip(apart, pairs, strict=True):
        left = (1 - 0.1 * decay) ** steps * before
        torch.testing.assert_close(rule.state[name] - w, left, rtol=1e-9, atol=1e-12)
    end = [ladders.cosine(rule.state[name], w) for name, w in pairs]
    assert ladders.cosine(rule.state["down_readout"], net.readout) > 0.6
    assert max(start) < 0.1
    assert all(e > (0.95 if decay else s + 0.08) for s, e in zip(start, end, strict=False))
    if decay:
        expected, _, _ = ladders.gradients(net)
        assert angle(step(rule, net).ladder["weight_0"], expected["weight_0"]) < 20


def course(rule: Dendritic, net: ladders.Net, redraw: bool = False) -> Tensor:
    """Angles to backpropagation over training, the mean of each quarter, (4, rungs)."""
    found = []
    for k in range(240):
        if redraw:
            draw = torch.Generator().manual_seed(k)
            for name in rule.shapes(net.ladder, 3):
                rule.state[name] = rule.start(name, tuple(rule.state[name].shape), draw).double()
        updates = step(rule, net)
        if k % 10 == 0:
            found.append(angles(updates, net))
        learn(rule, net, updates, 0.1)
    return torch.tensor(found).view(4, 6, -1).mean(1)


@pytest.mark.parametrize("feedback", ["random", "learned"])
@pytest.mark.parametrize("mode", MODES)
def test_the_angle_to_backpropagation_falls_while_it_learns(mode: str, feedback: str) -> None:
    net = task()
    found = course(prepared(net, mode=mode, feedback=feedback, nudge=0.1, tolerance=1e-3), net)
    assert float(found[1:].max()) < 90
    assert (found[-1] < found[0] - 5).all()
    assert loss(net) < 0.07


def test_feedback_that_is_drawn_anew_stays_at_90_degrees_and_teaches_the_rungs_nothing() -> None:
    net = task()
    found = course(prepared(net, mode="burst", feedback="random", nudge=0.1), net, redraw=True)
    assert float(found.min()) > 80
    assert loss(net) > 0.14


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("mode", MODES)
def test_with_the_defaults_the_rungs_learn_what_a_readout_of_random_rungs_does_not(
    mode: str, activation: str
) -> None:
    net, fixed = task(activation), task(activation)
    rule = Dendritic(mode)
    rule.prepare(net.ladder, 3)
    for _ in range(60):
        learn(rule, net, step(rule, net), 0.15)
        error = fixed.target - fixed.values
        fixed.readout = fixed.readout + 0.15 * error.T @ fixed.climb.phi / len(error)
    assert loss(net) < 0.8 * loss(fixed)


@pytest.mark.parametrize("feedback", ["random", "learned"])
@pytest.mark.parametrize("mode", MODES)
def test_the_readout_is_not_needed_on_the_way_down_unless_tied(mode: str, feedback: str) -> None:
    net = ladders.make(reads="all")
    fixed = {
        "error": net.target - net.values,
        "error_of": None,
    }  # R is used upwards for the moved values only
    for kind in (feedback, "tied"):
        rule = prepared(net, mode=mode, feedback=kind)
        one = step(rule, net, **fixed)
        other = step(rule, net, **fixed, readout=torch.randn_like(net.readout))
        same = [torch.equal(one.ladder[n], other.ladder[n]) for n in one.ladder]
        assert all(same) if kind == feedback else not any(same)


@pytest.mark.parametrize("feedback", ["random", "learned", "tied"])
def test_bursts_need_no_forward_weight_on_the_way_down_unless_tied(feedback: str) -> None:
    net = ladders.make()
    rule, climb, teaching = prepared(net, mode="burst", feedback=feedback), net.climb, net.teaching()
    one = rule.step(net.ladder, climb, teaching)
    net.ladder.weight(1).normal_(), net.ladder.weight(2).normal_()
    other = rule.step(net.ladder, climb, teaching)
    assert torch.equal(one.ladder["weight_2"], other.ladder["weight_2"])
    assert torch.equal(one.ladder["weight_0"], other.ladder["weight_0"]) == (feedback != "tied")


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"mode": "burst"}], ids=str)
def test_one_sample_six_rungs_from_zero_weights_and_classes_that_appear(
    options: dict, activation: str, reads: str, kind: torch.dtype
) -> None:
    net = ladders.make(depth=6, batch=1, reads=reads, activation=activation, gain=0.0)
    net.ladder.to(kind)
    net.drive, net.below = net.drive.to(kind), net.below.to(kind)
    net.readout, net.target = net.readout.to(kind), net.target.to(kind)
    rule, whole = Dendritic(**options), Dendritic(**options)
    whole.prepare(net.ladder, 4)
    for classes in (2, 4):
        rule.prepare(net.ladder, classes)
        cut = replace(net, readout=net.readout[:classes], target=net.target[:, :classes])
        updates = step(rule, cut)
        for direction in [*updates.ladder.values(), *updates.own.values(), updates.drive_feedback]:
            assert direction.dtype == kind
            assert torch.isfinite(direction).all()
    assert set(updates.own) <= set(rule.state)
    for name, tensor in whole.state.items():
        assert torch.equal(rule.state[name], tensor), name


def test_potentials_cannot_run_away() -> None:
    net = ladders.make(activation="relu", gain=4.0)
    rule = prepared(net, start="random", gain=20.0, reversal=2.0)
    rest = rule.settle(net.ladder, net.climb, net.teaching(), rule.nudge)
    assert rest.iterations == 50
    assert max(float(v.abs().max()) for v in rest.apical) <= 2.0


def test_the_ledger_says_what_the_options_need() -> None:
    always = {"update_locking": True, "signed_errors": True}
    circuit = Ledger(two_phases=True, iterative_settling=True, layer_wide_matrix=True, **always)
    assert Dendritic().ledger == Dendritic(feedback="random", start="random").ledger == circuit
    assert Dendritic(feedback="tied").ledger == replace(circuit, weight_transport=True)
    assert Dendritic("burst").ledger == Ledger(layer_wide_matrix=True, **always)
    remembers = Ledger(two_phases=True, stored_activations=True, **always)
    assert Dendritic("burst", recurrent=False).ledger == remembers
    assert Dendritic("burst", "tied").ledger.weight_transport


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"mode": "spiking"}, "'microcircuit', 'burst'"),
        ({"feedback": "fixed"}, "'random', 'learned', 'tied'"),
        ({"start": "zero"}, "'self_predicting', 'random'"),
        ({"g_som": 0.0}, "above 0"),
        ({"nudge": -1.0}, "above 0"),
        ({"gain": -1.0}, "from 0"),
        ({"decay": float("nan")}, "from 0"),
        ({"steps": 0}, "from 1"),
    ],
    ids=str,
)
def test_an_impossible_option_is_named_with_what_is_possible(options: dict, possible: str) -> None:
    (name, given) = next(iter(options.items()))
    with pytest.raises(ValueError, match=possible) as said:
        Dendritic(**options)
    assert f"{name}={given!r}" in str(said.value)


def test_the_explanation_fits_a_screen() -> None:
    assert 6 <= len(inspect.getdoc(dendritic).splitlines()) <= 16
