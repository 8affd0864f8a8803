"""RULES.md T1 to T6: predictive coding against its energy, closed forms, and backpropagation."""

from dataclasses import replace

import ladders
import pytest
import torch
from pc_energy import (
    ACTIVATIONS,
    EXACT,
    READS,
    descend,
    energy,
    gap,
    linear,
    prepared,
    slopes,
    step,
    with_steps,
)
from torch import Tensor

from arr_coc.rules.predictive_coding import _slower

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


def test_a_sample_is_slowed_to_one_over_the_curvature_from_a_swing_of_three_quarters_on() -> None:
    """A step of s g along a mode of curvature c leaves (1 - s c) g: what has s c > 1.5 is slowed to 1 / c."""
    before = torch.ones(2, 5, 3, dtype=torch.float64)
    before[:, 4] = 0.0  # has not moved yet
    curvature = torch.tensor([0.1, 1.4, 1.6, 40.0, 9.0], dtype=torch.float64)[None, :, None]
    for s in (1.0, 0.5):
        slower = torch.full((1, 5, 1), s, dtype=torch.float64)
        found = _slower((1 - s * curvature) * before, before, slower)
        kept = s * curvature[:, :4] <= 1.5
        torch.testing.assert_close(found[:, :4], torch.where(kept, s, 1 / curvature[:, :4]), **EXACT)
        assert float(found[0, 4, 0]) == s


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
            seen = [one.drive, *states, hidden, last] if ladder.reads == "all" else [z, last]
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
