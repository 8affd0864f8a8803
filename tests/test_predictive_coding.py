"""RULES.md T1 to T6: predictive coding against its energy, closed forms, and backpropagation.

The energy is written down here a second time, and what descends it does so by automatic differentiation.
"""

from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.activation import Activation
from arr_coc.rules import Updates
from arr_coc.rules.predictive_coding import PredictiveCoding

EXACT = {"rtol": 0.0, "atol": 1e-12}
LINEAR = Activation(lambda a: a, torch.ones_like, torch.ones_like)
READS = pytest.mark.parametrize("reads", ["top", "all"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["tanh", "relu"])


def prepared(net: ladders.Net, **options) -> PredictiveCoding:
    rule = PredictiveCoding(**options)
    rule.prepare(net.ladder, len(net.readout))
    return rule


def with_steps(rule: PredictiveCoding, steps: int) -> PredictiveCoding:
    rule.steps = steps
    return rule


def step(net: ladders.Net, **options) -> Updates:
    return prepared(net, **options).step(net.ladder, net.climb, net.teaching())


def energy(
    net: ladders.Net,
    states: list[Tensor],
    out: float = 1.0,
    precision: list[Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
    readout: Tensor | None = None,
) -> Tensor:
    """F of every sample, with the squared error, (B,)."""
    weights = net.ladder.weights() if weights is None else weights
    readout = net.readout if readout is None else readout
    z, total = net.below, torch.zeros(len(net.below), dtype=torch.float64)
    for k, state in enumerate(states):
        x = net.drive[:, k * net.ladder.width : (k + 1) * net.ladder.width]
        eps = state - net.ladder.activation.f(z @ weights[f"weight_{k}"].T + x + weights[f"bias_{k}"])
        pi = torch.ones(1, dtype=torch.float64) if precision is None else precision[k]
        total = total + 0.5 * (pi * eps.square()).sum(1)
        z = state
    one = torch.ones(len(z), 1, dtype=torch.float64)
    seen = [net.drive, *states, net.climb.hidden.relu(), one] if net.ladder.reads == "all" else [z, one]
    return total + out * 0.5 * (net.target - torch.cat(seen, 1) @ readout.T).square().sum(1)


def slopes(net: ladders.Net, states: list[Tensor], *args) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """-dF/dz_l per sample, and -dF/dW, -dF/dR as batch means."""
    with torch.enable_grad():
        states = [z.detach().requires_grad_() for z in states]
        weights = {n: t.clone().requires_grad_() for n, t in net.ladder.weights().items()}
        readout = net.readout.clone().requires_grad_()
        total = energy(net, states, *args, weights=weights, readout=readout).sum()
        found = torch.autograd.grad(-total, [*states, *weights.values(), readout])
    depth = len(states)
    means = [g / len(net.drive) for g in found[depth:]]
    return list(found[:depth]), dict(zip(weights, means[:-1], strict=True)), means[-1]


def descend(net: ladders.Net, steps: int, eta: float, *args) -> list[list[Tensor]]:
    """Gradient descent on F from the climb on: the states at every step, the climb's first."""
    course = [net.climb.states]
    for _ in range(steps):
        down, _, _ = slopes(net, course[-1], *args)
        course.append([z + eta * d for z, d in zip(course[-1], down, strict=True)])
    return course


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|found - expected| / |expected| over all tensors."""
    off = sum(float((found[n] - expected[n]).square().sum()) for n in expected)
    return (off / sum(float(t.square().sum()) for t in expected.values())) ** 0.5


def linear(**shape) -> ladders.Net:
    net = ladders.make(**shape)
    net.ladder.activation = LINEAR
    return net


# -- T1: the energy ------------------------------------------------------------------------------------------


@READS
@ACTIVATIONS
@pytest.mark.parametrize("out", [1.0, 0.3])
def test_states_descend_the_energy_and_weights_what_is_left_of_it(reads, activation, out) -> None:
    net = ladders.make(reads=reads, activation=activation)
    course = descend(net, 6, 0.07, out)
    rule = prepared(net, steps=6, eta=0.07, precision=out)
    settled = rule.settle(net.ladder, net.climb, net.teaching())
    torch.testing.assert_close(settled.states, torch.stack(course[-1]), **EXACT)
    _, weights, readout = slopes(net, course[-1], out)
    updates = rule.step(net.ladder, net.climb, net.teaching())
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected / out, **EXACT)
    torch.testing.assert_close(updates.readout, readout / out, **EXACT)
    moved = (torch.stack(course[-1]) - torch.stack(course[-2])).abs().max()
    assert updates.notes == {"iterations": 6.0, "residual": pytest.approx(float(moved), rel=1e-9)}


@READS
def test_steps_of_states_and_weights_are_finite_differences_of_the_energy(reads) -> None:
    net, h = ladders.make(reads=reads), 1e-5
    rule = prepared(net, steps=5, eta=0.1)
    here, there = (with_steps(rule, k).settle(net.ladder, net.climb, net.teaching()).states for k in (5, 6))
    updates = with_steps(rule, 5).step(net.ladder, net.climb, net.teaching())
    draw = torch.Generator().manual_seed(3)
    way = torch.randn(here.shape, generator=draw, dtype=torch.float64)
    up, down = (energy(net, list(here + s * h * way)).sum() for s in (1, -1))
    torch.testing.assert_close(((there - here) / 0.1 * way).sum(), -(up - down) / (2 * h), rtol=1e-6, atol=0)
    for name, w in net.ladder.weights().items():
        way = torch.randn(w.shape, generator=draw, dtype=torch.float64)
        moved = [net.ladder.weights() | {name: w + s * h * way} for s in (1, -1)]
        up, down = (energy(net, list(here), weights=m).mean() for m in moved)
        told = (updates.ladder[name] * way).sum()
        torch.testing.assert_close(told, -(up - down) / (2 * h), rtol=1e-6, atol=1e-10)


@READS
def test_what_reaches_the_drives_is_the_slope_of_the_energy(reads) -> None:
    net = ladders.make(reads=reads)
    states = descend(net, 6, 0.1)[-1]
    with torch.enable_grad():
        drive = net.drive.clone().requires_grad_()
        (expected,) = torch.autograd.grad(-energy(replace(net, drive=drive), states).sum(), drive)
    updates = step(net, steps=6, eta=0.1)
    torch.testing.assert_close(updates.drive_feedback, expected, **EXACT)


# -- T2: fixed predictions -----------------------------------------------------------------------------------


@READS
@ACTIVATIONS
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_fixed_predictions_are_backpropagation_after_a_sweep_per_rung(reads, activation, depth) -> None:
    net = ladders.make(depth=depth, reads=reads, activation=activation)
    weights, readout, drives = ladders.gradients(net)
    updates = step(net, mode="fixed", steps=depth)
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)


@READS
def test_small_steps_on_fixed_predictions_get_there_late(reads) -> None:
    net = ladders.make(depth=4, reads=reads)
    weights, _, _ = ladders.gradients(net)
    assert gap(step(net, mode="fixed", eta=0.1, steps=300, precision=0.5).ladder, weights) < 1e-10
    assert gap(step(net, mode="fixed", eta=0.1, steps=20).ladder, weights) > 0.05  # negative control


@pytest.mark.parametrize("mode", ["strict", "fixed", "ipc"])
def test_the_error_comes_down_one_rung_a_step(mode) -> None:
    net = ladders.make(depth=4)
    for steps in (1, 2, 3):
        updates = step(net, mode=mode, steps=steps)
        reached = [bool((updates.ladder[f"weight_{k}"].abs() > 1e-12).any()) for k in range(4)]
        assert reached == [k >= 4 - steps for k in range(4)]


# -- T3: zero divergence -------------------------------------------------------------------------------------


@READS
@ACTIVATIONS
@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("out", [1.0, 0.2])
def test_zil_is_backpropagation(reads, activation, depth, out) -> None:
    net = ladders.make(depth=depth, reads=reads, activation=activation)
    weights, readout, drives = ladders.gradients(net)
    updates = step(net, mode="zil", precision=out)
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)
    assert updates.notes["iterations"] == depth


@READS
def test_zil_with_half_steps_is_short_by_a_half_for_each_step_from_the_answer(reads) -> None:
    """The negative control: layer l of N = L + 1, the readout the last, gets eta^(N - l); layer 1 of 4 is
    off by 1 - .5^3."""
    net = ladders.make(depth=3, reads=reads)
    weights, readout, _ = ladders.gradients(net)
    updates = step(net, mode="zil", eta=0.5)
    for k in range(3):
        for name in (f"weight_{k}", f"bias_{k}"):
            torch.testing.assert_close(updates.ladder[name], 0.5 ** (3 - k) * weights[name], **EXACT)
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    first = {"weight_0": weights["weight_0"]}
    assert gap(updates.ladder, first) == pytest.approx(0.875, abs=1e-12)


@pytest.mark.parametrize("size", [1.0, 12.0])
def test_without_a_given_step_it_comes_to_rest_where_small_steps_do(size: float) -> None:
    """Where the readout is large (curvature over 100, so that 2 / 100 is the limit) a step of .1 swings for
    ever; steps that mind the curvature that they met end in the same place as steps of .01. Where it is
    small they are steps of .1, to the bit."""
    net = ladders.make(depth=3)
    net.readout *= size / torch.linalg.matrix_norm(net.readout, 2)

    def settled(steps: int, eta: float | None) -> tuple[Tensor, float]:
        rule = prepared(net, steps=steps, eta=eta)
        found = rule.settle(net.ladder, net.climb, net.teaching())
        return found.states, found.residual

    expected, residual = settled(30_000, 0.01)
    assert residual < 1e-9
    states, residual = settled(30_000, None)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-6)
    assert residual < 1e-9
    states, residual = settled(2000, 0.1)
    swings = residual > 0.01 and not torch.allclose(states, expected, atol=0.1)
    assert swings == (size > 1)
    assert torch.equal(settled(40, None)[0], settled(40, 0.1)[0]) == (size == 1)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_zil_is_strict_predictive_coding_read_when_the_error_arrives(eta) -> None:
    net = ladders.make(depth=4)
    course = descend(net, 4, eta)
    updates = step(net, mode="zil", eta=eta)
    for k in range(4):
        _, weights, _ = slopes(net, course[4 - k])
        for name in (f"weight_{k}", f"bias_{k}"):
            torch.testing.assert_close(updates.ladder[name], weights[name], **EXACT)
    _, late, _ = slopes(net, course[4])
    assert gap({"weight_3": late["weight_3"]}, {"weight_3": updates.ladder["weight_3"]}) > 0.1  # control


# -- T4: settling --------------------------------------------------------------------------------------------


def system(net: ladders.Net, out: float) -> tuple[Tensor, Tensor]:
    """Of a linear net: the energy's Hessian in all states of a sample, block-tridiagonal if the answer reads
    the top alone, and where the energy is lowest, (B, L * width)."""
    width, depth, ladder = net.ladder.width, net.ladder.depth, net.ladder
    size = width * depth
    errors = torch.eye(size, dtype=torch.float64)  # eps = errors @ z - entering
    entering = net.drive + torch.cat([ladder.get_buffer(f"bias_{k}") for k in range(depth)])
    entering[:, :width] += net.below @ ladder.weight(0).T
    for k in range(1, depth):
        rows, columns = slice(k * width, (k + 1) * width), slice((k - 1) * width, k * width)
        errors[rows, columns] = -ladder.weight(k)
    seen = torch.zeros(len(net.readout), size, dtype=torch.float64)
    if ladder.reads == "all":
        seen[:] = net.readout[:, size : 2 * size]
    else:
        seen[:, -width:] = net.readout[:, :width]
    elsewhere = net.values - torch.cat(net.climb.states, 1) @ seen.T
    hessian = errors.T @ errors + out * seen.T @ seen
    right = entering @ errors + out * (net.target - elsewhere) @ seen
    return hessian, torch.linalg.solve(hessian, right.T).T


@READS
@pytest.mark.parametrize("out", [1.0, 4.0])
def test_a_linear_net_settles_where_the_block_tridiagonal_system_says(reads, out) -> None:
    net = linear(depth=4, reads=reads)
    hessian, expected = system(net, out)
    eta = 1.9 / float(torch.linalg.eigvalsh(hessian)[-1])
    rule = prepared(net, steps=20000, eta=eta, precision=out, tolerance=1e-13)
    settled = rule.settle(net.ladder, net.climb, net.teaching())
    torch.testing.assert_close(torch.cat(list(settled.states), 1), expected, rtol=0, atol=1e-8)
    assert settled.residual <= 1e-13
    assert settled.iterations < 20000
    down, _, _ = slopes(net, list(settled.states), out)
    assert max(float(d.abs().max()) for d in down) < 1e-10


@READS
def test_the_energy_never_rises_below_twice_the_inverse_curvature(reads) -> None:
    """With tanh: with relu F has kinks, at which no step is small enough."""
    net = ladders.make(depth=3, reads=reads, batch=4)
    flat = torch.stack(net.climb.states).flatten()

    def whole(z: Tensor) -> Tensor:
        return energy(net, list(z.view(3, 4, -1))).sum()

    course = [energy(net, net.climb.states).sum()]
    largest = float(torch.linalg.eigvalsh(torch.func.hessian(whole)(flat))[-1])
    rule = prepared(net, eta=1.0 / largest)
    for steps in range(1, 40):
        states = with_steps(rule, steps).settle(net.ladder, net.climb, net.teaching()).states
        course.append(energy(net, list(states)).sum())
    fall = torch.stack(course).diff()
    assert (fall <= 1e-12).all()
    assert fall[0] < -1e-3


@READS
def test_a_linear_nets_energy_falls_just_below_the_bound_and_rises_above_it(reads) -> None:
    net = linear(depth=3, reads=reads)
    largest = float(torch.linalg.eigvalsh(system(net, 1.0)[0])[-1])
    for share, falls in ((1.95, True), (2.2, False)):
        rule = prepared(net, eta=share / largest)
        course = [energy(net, net.climb.states)]
        for steps in range(1, 60):
            states = with_steps(rule, steps).settle(net.ladder, net.climb, net.teaching()).states
            course.append(energy(net, list(states)))
        assert bool((torch.stack(course).diff(dim=0) <= 1e-12).all()) is falls


def test_too_large_a_readout_makes_no_error_more_than_twice_as_large() -> None:
    net = ladders.make(reads="all")
    net.readout *= 30
    rule = prepared(net, steps=50)
    settled = rule.settle(net.ladder, net.climb, net.teaching())
    assert (settled.error.norm(dim=1) <= 2.001 * net.teaching().error.norm(dim=1)).all()
    assert torch.isfinite(settled.states).all()


# -- T5, T6: how far from backpropagation --------------------------------------------------------------------


def taught(net: ladders.Net, error: Tensor) -> dict[str, Tensor]:
    """Backpropagation of any error at the answer, by autograd."""
    with torch.enable_grad():
        copies = {n: t.clone().requires_grad_() for n, t in net.ladder.weights().items()}
        values = net.ladder.climb(net.drive, net.below, None, copies).phi @ net.readout.T
        found = torch.autograd.grad((values * error).sum() / len(error), list(copies.values()))
    return dict(zip(copies, found, strict=True))


def shortened(net: ladders.Net, error: Tensor, out: float) -> Tensor:
    """S^-1 e, S = 1 + Pi_out J J' with J the slope of the values in what is added to each state, (B, C)."""
    rows = []
    for b in range(len(error)):
        one = replace(net, drive=net.drive[b : b + 1], below=net.below[b : b + 1])
        hidden = one.climb.hidden

        def answer(added: Tensor, one: ladders.Net = one, hidden: Tensor = hidden) -> Tensor:
            z, states, ladder = one.below, [], one.ladder
            for k, x in enumerate(one.drive.split(ladder.width, 1)):
                a = z @ ladder.weight(k).T + x + ladder.get_buffer(f"bias_{k}")
                z = ladder.activation.f(a) + added[k]
                states.append(z)
            last = torch.ones(1, 1, dtype=torch.float64)
            seen = [one.drive, *states, hidden.relu(), last] if ladder.reads == "all" else [z, last]
            return (torch.cat(seen, 1) @ one.readout.T)[0]

        nothing = torch.zeros(net.ladder.depth, net.ladder.width, dtype=torch.float64)
        slope = torch.func.jacrev(answer)(nothing).flatten(1)
        whole = torch.eye(len(slope), dtype=torch.float64) + out * slope @ slope.T
        rows.append(torch.linalg.solve(whole, error[b]))
    return torch.stack(rows)


@READS
def test_small_errors_are_backpropagated_after_division_by_s(reads) -> None:
    net = ladders.make(reads=reads)
    error = net.target - net.values
    expected = taught(net, shortened(net, error, 1.0))
    gaps = []
    for beta in (0.1, 0.01):
        near = replace(net, target=net.values + beta * error)
        found = step(near, steps=3000, eta=0.2, tolerance=1e-15).ladder
        gaps.append(gap({n: t / beta for n, t in found.items()}, expected))
    assert gaps[0] < 0.3
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.2)
    assert gap(taught(net, error), expected) > 0.1  # negative control: S is not 1


@READS
def test_as_the_output_precision_goes_to_zero_it_becomes_backpropagation(reads) -> None:
    net = ladders.make(reads=reads)
    weights, readout, _ = ladders.gradients(net)
    gaps, of_readout = [], []
    for out in (1e-2, 1e-3):
        updates = step(net, steps=4000, eta=0.2, precision=out, tolerance=1e-15)
        gaps.append(gap(updates.ladder, weights))
        of_readout.append(float((updates.readout - readout).norm()))
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.2)
    assert of_readout[0] / of_readout[1] == pytest.approx(10, rel=0.2)
    assert gaps[1] < 0.01


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
