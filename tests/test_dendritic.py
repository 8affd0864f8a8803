"""RULES.md T14 and T12: the dendritic microcircuit, burstprop, and what they tend to."""

import math

import ladders
import pytest
import torch
from pyramids import EXACT, MODES, aligned, angle, angles, learn, prepared, relax, step, task, untaught


@pytest.mark.parametrize("feedback", ["random", "learned", "tied"])
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_in_the_self_predicting_state_nothing_moves_while_nobody_teaches(
    activation: str, reads: str, feedback: str
) -> None:
    net = ladders.make(depth=4, reads=reads, activation=activation)
    rule = prepared(net, feedback=feedback)
    updates = untaught(rule, net)
    assert updates.notes["free_apical"] == 0.0
    for name, direction in {**updates.ladder, **updates.own}.items():
        assert torch.equal(direction, torch.zeros_like(direction)), name
    assert not updates.readout.any()
    rule.state["lateral_2"] *= 0.9  # the control: what is not cancelled is an error to the rungs
    spoilt = untaught(rule, net)
    assert spoilt.notes["free_apical"] > 1e-3
    assert float(spoilt.ladder["weight_1"].norm()) > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_from_a_random_start_the_apical_potential_falls_towards_rest_by_lateral_plasticity(
    activation: str,
) -> None:
    net = ladders.make(activation=activation, batch=8)
    rule = prepared(net, start="random", feedback="random", gain=1.0, tolerance=1e-4)
    down = {n: t.clone() for n, t in rule.state.items() if n.startswith("down")}
    course = []
    for _ in range(80):
        updates = untaught(rule, net)
        course.append(updates.notes["free_apical"])
        for name, direction in updates.own.items():
            # the rungs are held, so the part of W_IP that keeps pace with them is left out
            rung = name.replace("inter_bias", "bias").replace("inter", "weight")
            rule.state[name] += 0.8 * (direction - updates.ladder.get(rung, 0.0))
    assert course[0] > 0.3
    assert course[-1] < 0.2 * course[0]
    assert all(torch.equal(rule.state[n], t) for n, t in down.items())


@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_update_is_that_of_the_leaky_dynamics_come_to_rest(reads: str) -> None:
    """Weights of the circuit at random, constants as published: nothing cancels, every term counts."""
    net = ladders.make(reads=reads)
    rule = prepared(net, start="random", feedback="random", gain=1.0, steps=500, tolerance=1e-10)
    assert rule.nudge == pytest.approx(0.8 / 1.9)
    updates = step(rule, net)
    assert updates.notes["residual"] < 1e-9
    for name, expected in relax(net, rule).items():
        torch.testing.assert_close(updates.ladder[name], expected, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("mode", MODES)
def test_with_tied_feedback_a_weak_nudge_gives_backpropagation(
    mode: str, depth: int, activation: str, reads: str
) -> None:
    """The error is of the order of the nudge, in burst mode (sigma is odd about 0) of its square."""
    net = ladders.make(depth=depth, reads=reads, activation=activation)
    weights, readout, drives = ladders.gradients(net)
    errors = []
    for nudge in (1e-4, 1e-5):
        updates = step(prepared(net, mode=mode, feedback="tied", nudge=nudge), net)
        off = [(updates.ladder[n] - w).norm() for n, w in weights.items()]
        errors.append(float(torch.stack([*off, (updates.drive_feedback - drives).norm()]).norm()))
        torch.testing.assert_close(updates.readout, readout, **EXACT)
    assert errors[0] < 1e-2
    if mode == "microcircuit":
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    else:
        assert errors[0] < 1e-4
        assert errors[1] < 0.011 * errors[0] + 1e-9


@pytest.mark.parametrize("reads", ["top", "all"])
def test_one_iteration_carries_a_weak_error_through_all_rungs(reads: str) -> None:
    net = ladders.make(depth=6, reads=reads)
    updates = step(prepared(net, feedback="tied", nudge=1e-6, steps=1), net)
    for name, expected in ladders.gradients(net)[0].items():
        torch.testing.assert_close(updates.ladder[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("mode", MODES)
def test_at_the_published_constants_the_angle_to_backpropagation_is_small_in_every_rung(
    mode: str, activation: str, reads: str
) -> None:
    net = ladders.make(depth=4, reads=reads, activation=activation)
    assert max(angles(step(prepared(net, mode=mode, feedback="tied"), net), net)) < 45
    if mode == "microcircuit":  # the control: the same circuit where W_PI does not cancel what is above
        assert max(angles(step(prepared(net, start="random", feedback="tied"), net), net)) > 60


@pytest.mark.parametrize("chain", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("mode", MODES)
def test_with_random_feedback_a_weak_nudge_gives_feedback_alignment_and_without_gain_the_direct_one(
    mode: str, activation: str, chain: bool
) -> None:
    net = ladders.make(depth=4, reads="all", activation=activation)
    rule = prepared(net, mode=mode, feedback="random", nudge=1e-6, gain=None if chain else 0.0)
    updates = step(rule, net)
    for name, expected in aligned(net, rule, chain).items():
        torch.testing.assert_close(updates.ladder[name], expected, rtol=1e-4, atol=1e-5)
    other = aligned(net, rule, not chain)["weight_0"]  # the control: the two are not the same
    assert angle(updates.ladder["weight_0"], other) > 5


@pytest.mark.parametrize(
    "options",
    [{"feedback": "random"}, {"feedback": "tied"}, {"decay": 0.01}],
    ids=["random", "tied", "decay"],
)
def test_the_self_predicting_state_is_kept_while_rungs_and_feedback_learn(options: dict) -> None:
    net = task()
    rule = prepared(net, tolerance=1e-6, **options)
    start = net.ladder.weight(1).clone()
    for _ in range(30):
        learn(rule, net, step(rule, net), 0.1)
    for k in (1, 2):
        torch.testing.assert_close(rule.state[f"inter_{k}"], net.ladder.weight(k), **EXACT)
        torch.testing.assert_close(rule.state[f"inter_bias_{k}"], net.ladder.get_buffer(f"bias_{k}"), **EXACT)
        down = net.ladder.weight(k) if rule.feedback == "tied" else rule.state[f"down_{k}"]
        torch.testing.assert_close(rule.state[f"lateral_{k}"], -down, **EXACT)
    assert float((net.ladder.weight(1) - start).norm()) > 0.01
    assert untaught(rule, net).notes["free_apical"] < 1e-10
    net.ladder.weight(1).add_(0.1)  # the control: interneurons that lag behind leave something
    assert untaught(rule, net).notes["free_apical"] > 1e-3


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_bursts_are_those_of_the_formulas_by_hand(activation: str, recurrent: bool) -> None:
    """One unit a rung, one sample: numbers, not tensors. With tanh, e / 2 is the event rate sigma(2 a) and
    f' / e is twice the published 1 - rate."""
    net = ladders.make(depth=2, width=1, below=1, classes=2, batch=1, activation=activation, seed=4)
    net.drive.copy_(torch.tensor([[0.9, 0.4]]))
    net.ladder.weight(1).copy_(torch.tensor([[0.7]]))
    rule = prepared(net, mode="burst", recurrent=recurrent)
    assert (rule.nudge, rule.gain) == (0.2, 4.0)
    a1, a2 = (float(a) for a in net.climb.pre_activations)
    y, d = float(rule.state["down_1"]), rule.state["down_readout"][:, 0].tolist()
    v, t = net.values[0].tolist(), net.target[0].tolist()
    if activation == "tanh":
        (e1, h1), (e2, h2) = ((2 * sigma(2 * a), 2 * (1 - sigma(2 * a))) for a in (a1, a2))
    else:
        (e1, h1), (e2, h2) = ((a, 1 / a) for a in (a1, a2))
    with_teacher = 0.2 * sum(d[c] * ((t[c] - v[c]) + (0.0 if recurrent else v[c])) for c in range(2))
    without = 0.0 if recurrent else 0.2 * sum(d[c] * v[c] for c in range(2))
    p2_t, p2 = sigma(with_teacher * h2), sigma(without * h2)
    expected = 0.5 * e2 if recurrent else 0.0
    p1_t, p1 = (sigma(4 * y * (p * e2 - expected) * h1) for p in (p2_t, p2))
    updates = step(rule, net)
    z0, z1 = float(net.below), float(net.climb.states[0])
    hand = {
        "weight_0": (p1_t - p1) * e1 * z0 * 20,
        "bias_0": (p1_t - p1) * e1 * 20,
        "weight_1": (p2_t - p2) * e2 * z1 * 20,
        "bias_1": (p2_t - p2) * e2 * 20,
    }
    for name, number in hand.items():
        assert abs(number) > 1e-3
        assert float(updates.ladder[name]) == pytest.approx(number, rel=1e-9), name


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("reads", ["top", "all"])
def test_without_a_teacher_bursts_teach_nothing(reads: str, activation: str, recurrent: bool) -> None:
    net = ladders.make(reads=reads, activation=activation)
    updates = untaught(prepared(net, mode="burst", recurrent=recurrent), net)
    for direction in [*updates.ladder.values(), *updates.own.values(), updates.readout]:
        assert not direction.any()
