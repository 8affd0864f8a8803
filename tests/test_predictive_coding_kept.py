"""Predictive coding: weights that move while states do, what the rule keeps, and any ladder."""

import ladders
import pytest
import torch
from pc_energy import ACTIVATIONS, EXACT, READS, descend, energy, gap, prepared, slopes, step, with_steps
from torch import Tensor

from arr_coc.rules.predictive_coding import PredictiveCoding

# -- incremental ---------------------------------------------------------------------------------------------


@READS
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_ipc_is_the_mean_of_the_updates_while_the_weights_move(reads, rate) -> None:
    net = ladders.make(reads=reads)
    steps, eta, out = 5, 0.1, 0.5
    found = step(net, mode="ipc", steps=steps, eta=eta, precision=out, weight_rate=rate)
    start = {n: t.clone() for n, t in net.ladder.weights().items()}
    states, asked, means, of_readout = net.climb.states, None, None, 0.0
    for _ in range(steps):
        # the state and the weights move at once, from what both were
        down, asked, _ = slopes(net, states, out)
        for name, w in net.ladder.weights().items():
            w += rate / steps * asked[name] / out
        states = [z + eta * d for z, d in zip(states, down, strict=True)]
        _, asked, readout = slopes(net, states, out)
        means = {n: t / (steps * out) + (means[n] if means else 0) for n, t in asked.items()}
        of_readout = of_readout + readout / (steps * out)
    for name, expected in means.items():
        torch.testing.assert_close(found.ladder[name], expected, **EXACT)
        if rate:  # SGD at this rate goes where the copy went
            w = net.ladder.get_buffer(name) + rate / steps * asked[name] / out
            torch.testing.assert_close(start[name] + rate * found.ladder[name], w, **EXACT)
    torch.testing.assert_close(found.readout, of_readout, **EXACT)


# -- what the rule keeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unit", "rung"])
@pytest.mark.parametrize("mode", ["strict", "fixed", "ipc"])
def test_learned_precision_weighs_every_error_and_follows_its_size(kind, mode) -> None:
    net = ladders.make(reads="all")
    rule = prepared(net, mode=mode, learned_precision=kind, steps=4, eta=0.1, weight_rate=0.0)
    draw = torch.Generator().manual_seed(5)
    for k in range(3):
        kept = rule.state[f"log_precision_{k}"]
        assert kept.shape == ((6,) if kind == "unit" else (1,))
        kept += torch.randn(kept.shape, generator=draw, dtype=torch.float64)
    pi = [rule.state[f"log_precision_{k}"].exp() for k in range(3)]
    largest = [1.0, *(float(p.max()) for p in pi), 1.0]
    rate = [0.1 / max(1.0, largest[k + 1], largest[k + 2]) for k in range(3)]
    settled = rule.settle(net.ladder, net.climb, net.teaching())
    updates = rule.step(net.ladder, net.climb, net.teaching())
    if mode != "fixed":
        states = net.climb.states
        for _ in range(4):
            down, _, _ = slopes(net, states, 1.0, pi)
            states = [z + r * d for z, r, d in zip(states, rate, down, strict=True)]
        torch.testing.assert_close(settled.states, torch.stack(states), **EXACT)
    if mode == "strict":
        _, weights, _ = slopes(net, states, 1.0, pi)
        for name, expected in weights.items():
            torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    for k in range(3):
        z = net.climb.below if k == 0 else settled.states[k - 1]
        x = net.climb.drives[k] + net.ladder.get_buffer(f"bias_{k}")
        mu = net.climb.states[k] if mode == "fixed" else torch.tanh(z @ net.ladder.weight(k).T + x)
        expected = (0.5 * (1 - pi[k] * (settled.states[k] - mu).square())).mean(0)
        if kind == "rung":
            expected = expected.mean(0, keepdim=True)
        torch.testing.assert_close(updates.own[f"log_precision_{k}"], expected, **EXACT)


def test_a_precision_at_its_bound_grows_no_further_and_keeps_settling_stable() -> None:
    net = ladders.make(depth=3)
    rule = prepared(net, learned_precision="rung", steps=400)
    high = [torch.full((1,), 100.0, dtype=torch.float64)] * 3
    for k in range(3):
        rule.state[f"log_precision_{k}"][:] = 6.0  # beyond ln 100
    updates = rule.step(net.ladder, net.climb, net.teaching())
    assert all(float(updates.own[f"log_precision_{k}"]) == 0 for k in range(3))
    course = [energy(net, net.climb.states, 1.0, high)]
    for steps in (1, 10, 100, 400):
        states = with_steps(rule, steps).settle(net.ladder, net.climb, net.teaching()).states
        course.append(energy(net, list(states), 1.0, high))
    assert (torch.stack(course).diff(dim=0) < 0).all()
    wild = energy(net, descend(net, 10, 0.1, 1.0, high)[-1], 1.0, high)
    assert (wild > course[0]).all()  # negative control: the same step without regard to Pi


@READS
@pytest.mark.parametrize("mode", ["strict", "fixed", "zil", "ipc"])
def test_feedback_of_its_own_takes_the_place_of_w_and_r_and_learns_by_their_product(reads, mode) -> None:
    net = ladders.make(depth=4, reads=reads)
    carried, rule = step(net, mode=mode), prepared(net, mode=mode, learned_feedback=True)
    apart = rule.step(net.ladder, net.climb, net.teaching())
    assert gap(apart.ladder, carried.ladder) > 0.5
    for k in range(1, 4):
        assert torch.equal(apart.own[f"feedback_{k}"], apart.ladder[f"weight_{k}"])
    assert torch.equal(apart.own["feedback_readout"], apart.readout)
    rule.state["feedback_readout"] = net.readout.clone()
    half = rule.step(net.ladder, net.climb, net.teaching())
    assert gap(half.ladder, carried.ladder) > 1e-3  # B_l is another still
    for k in range(1, 4):
        rule.state[f"feedback_{k}"] = net.ladder.weight(k).clone()
    same = rule.step(net.ladder, net.climb, net.teaching())
    for name, expected in carried.ladder.items():
        torch.testing.assert_close(same.ladder[name], expected, **EXACT)
    torch.testing.assert_close(same.drive_feedback, carried.drive_feedback, **EXACT)


@READS
@pytest.mark.parametrize("mode", ["fixed", "zil"])
def test_with_feedback_of_its_own_backpropagation_becomes_feedback_alignment(reads, mode) -> None:
    """g_l = (Q_l' e + B_{l+1}' g_{l+1}) * f'(a_l)."""
    net = ladders.make(depth=3, reads=reads)
    rule = prepared(net, mode=mode, learned_feedback=True)
    updates = rule.step(net.ladder, net.climb, net.teaching())
    told = (net.target - net.values) @ rule.state["feedback_readout"]
    above: Tensor | float = 0.0
    for k in (2, 1, 0):
        direct = told[:, (3 + k) * 6 : (4 + k) * 6] if reads == "all" else told[:, :6] * (k == 2)
        g = (direct + above) / torch.cosh(net.climb.pre_activations[k]) ** 2
        below = net.below if k == 0 else net.climb.states[k - 1]
        torch.testing.assert_close(updates.ladder[f"weight_{k}"], g.T @ below / len(g), **EXACT)
        above = g @ rule.state[f"feedback_{k}"] if k else 0.0


def test_learned_feedback_comes_to_point_where_the_weights_do() -> None:
    net = ladders.make(depth=2, batch=64, gain=0.3)
    rule = prepared(net, learned_feedback=True)
    angles = []
    for _ in range(400):
        angles.append(ladders.cosine(rule.state["feedback_readout"], net.readout))
        updates = rule.step(net.ladder, net.climb, net.teaching())
        for name, direction in updates.ladder.items():
            net.ladder.get_buffer(name).add_(0.5 * direction)
        net.readout += 0.5 * updates.readout
        for name, direction in updates.own.items():
            rule.state[name] += 0.5 * direction
    assert abs(angles[0]) < 0.5
    assert angles[-1] > angles[0] + 0.3


def test_feedback_of_a_class_is_the_same_whenever_it_appears() -> None:
    net = ladders.make(classes=5)
    late, early = (PredictiveCoding(learned_feedback=True) for _ in range(2))
    for count in (0, 2, 5):
        late.prepare(net.ladder, count)
    early.prepare(net.ladder, 5)
    assert late.state["feedback_readout"].shape == (5, net.ladder.phi_width)
    for name, kept in early.state.items():
        assert torch.equal(kept, late.state[name]), name


# -- any ladder ----------------------------------------------------------------------------------------------


@READS
@ACTIVATIONS
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("mode", ["strict", "fixed", "zil", "ipc"])
def test_it_runs_in_float32_from_weights_of_zero_without_a_graph(reads, activation, depth, mode) -> None:
    net = ladders.make(depth=depth, reads=reads, activation=activation, gain=0.0, batch=1)
    net.ladder.float()
    for field in ("drive", "below", "readout", "target"):
        setattr(net, field, getattr(net, field).float())
    with torch.no_grad():
        climb, taught = net.climb, net.teaching()
    for kind in (None,) if mode == "zil" else (None, "unit"):
        rule = prepared(net, mode=mode, learned_precision=kind, learned_feedback=True)
        before = {n: t.clone() for n, t in rule.state.items()}
        updates = rule.step(net.ladder, climb, taught)
        tensors = [*updates.ladder.values(), updates.readout, updates.drive_feedback, *updates.own.values()]
        assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in tensors)
        assert not any(t.requires_grad for t in tensors)
        assert all(torch.equal(t, rule.state[n]) for n, t in before.items())
        assert set(updates.own) == set(rule.state)


def test_what_is_not_possible_is_refused_with_what_is() -> None:
    for options, hint in (
        ({"mode": "epc"}, "'strict', 'fixed', 'zil', 'ipc'"),
        ({"steps": 0}, "whole numbers from 1"),
        ({"steps": 2.5}, "whole numbers from 1"),
        ({"eta": 0.0}, "above 0"),
        ({"precision": -1.0}, "above 0"),
        ({"tolerance": -1e-3}, "from 0"),
        ({"weight_rate": float("nan")}, "from 0"),
        ({"learned_precision": "layer"}, "None, 'unit', 'rung'"),
        ({"mode": "zil", "learned_precision": "unit"}, "possible are None"),
    ):
        name = list(options)[-1]
        with pytest.raises(ValueError, match=hint) as told:
            PredictiveCoding(**options)
        assert f"{name}={options[name]!r}" in str(told.value)
