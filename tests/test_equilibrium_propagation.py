"""Equilibrium propagation against energies written out here and gradients by autograd (T1, T7, T8)."""

import ladders
import pytest
import torch
from ep_energy import (
    EXACT,
    KINDS,
    Weights,
    distance,
    energy_of,
    exact,
    loss_of,
    run,
    settle,
    slope,
    values_of,
)
from torch import Tensor

from arr_coc.rules.equilibrium_propagation import EquilibriumPropagation


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize(("kind", "gain"), KINDS)
@pytest.mark.parametrize("beta", [0.03, -0.03])
def test_the_nudged_states_are_stationary_in_the_energy(
    kind: str, gain: float, reads: str, beta: float
) -> None:
    """T1, states: finite differences of E + beta C in random directions vanish; without the nudge they do
    not."""
    net = ladders.make(gain=gain, reads=reads)
    rule = EquilibriumPropagation(kind, **EXACT)
    climb = rule.infer(net.ladder, net.climb)
    teaching = net.teaching(error=net.target - climb.phi @ net.readout.T, values=climb.phi @ net.readout.T)
    states = rule.nudged(net.ladder, climb, teaching, torch.tensor(beta, dtype=torch.float64)).states

    def slopes(strength: float) -> Tensor:
        def total(at: list[Tensor]) -> Tensor:
            e = energy_of(kind, net, net.ladder.weights(), at)
            return e + strength * loss_of(net, values_of(net, at, net.readout))

        draw, h, found = torch.Generator().manual_seed(1), 1e-6, []
        for _ in range(5):
            way = [torch.randn(s.shape, generator=draw, dtype=s.dtype) for s in states]
            up, down = ([s + sign * h * w for s, w in zip(states, way, strict=True)] for sign in (1, -1))
            found.append((total(up) - total(down)) / (2 * h))
        return torch.stack(found)

    assert slopes(beta).abs().max() < 1e-6 * slopes(0.0).abs().max()


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize(("kind", "gain"), KINDS)
@pytest.mark.parametrize("nudge", ["one_sided", "symmetric"])
def test_the_update_is_the_difference_of_energy_slopes(
    kind: str, gain: float, reads: str, nudge: str
) -> None:
    """T1, weights: finite differences of E over W and b at the states of either phase."""
    net, beta = ladders.make(gain=gain, reads=reads), 0.03
    rule = EquilibriumPropagation(kind, nudge, beta, **EXACT)
    updates, free = run(net, rule)
    climb = rule.infer(net.ladder, net.climb)
    teaching = net.teaching(error=net.target - climb.phi @ net.readout.T, values=climb.phi @ net.readout.T)

    def rest(strength: float) -> list[Tensor]:
        return rule.nudged(net.ladder, climb, teaching, torch.tensor(strength, dtype=torch.float64)).states

    high, low, apart = (
        (rest(beta), free, beta) if nudge == "one_sided" else (rest(beta), rest(-beta), 2 * beta)
    )
    draw, h, own = torch.Generator().manual_seed(1), 1e-5, net.ladder.weights()
    for name in own:
        way = torch.randn(own[name].shape, generator=draw, dtype=torch.float64)

        def over_weights(states: list[Tensor], name: str = name, way: Tensor = way) -> float:
            up, down = ({**own, name: own[name] + sign * h * way} for sign in (1, -1))
            gap = energy_of(kind, net, up, states) - energy_of(kind, net, down, states)
            return float(gap.mean() / (2 * h))

        expected = -(over_weights(high) - over_weights(low)) / apart
        assert float((updates.ladder[name] * way).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize(("kind", "gain"), KINDS)
@pytest.mark.parametrize(("nudge", "order"), [("one_sided", 1), ("symmetric", 2)])
def test_the_error_is_of_the_nudges_order(kind: str, gain: float, reads: str, nudge: str, order: int) -> None:
    """T7: slope 1 one-sided, slope 2 symmetric."""
    net, betas = ladders.make(gain=gain, reads=reads), [0.03, 0.01, 0.003]
    true = exact(kind, net)
    errors = [
        distance(run(net, EquilibriumPropagation(kind, nudge, b, **EXACT))[0].ladder, true) for b in betas
    ]
    assert slope(betas, errors) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_under_a_weak_nudge_prediction_gives_the_gradient(reads: str, activation: str, depth: int) -> None:
    net = ladders.make(depth=depth, reads=reads, activation=activation)
    weights, readout, drives = ladders.gradients(net)
    updates, _ = run(net, EquilibriumPropagation(beta=1e-4, tolerance=0.0))
    assert distance(updates.ladder, weights) < 1e-5
    torch.testing.assert_close(updates.readout, readout, rtol=0.0, atol=1e-12)
    assert updates.drive_feedback is not None
    assert float((updates.drive_feedback - drives).norm() / drives.norm()) < 1e-5


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize(("nudge", "beta"), [("symmetric", 1e-3), ("one_sided", 1e-6)])
def test_under_a_weak_nudge_hopfield_tells_the_drives_the_gradient(
    reads: str, nudge: str, beta: float
) -> None:
    net = ladders.make(gain=0.3, reads=reads)
    updates, _ = run(net, EquilibriumPropagation("hopfield", nudge, beta, **EXACT))
    drive = net.drive.clone().requires_grad_()
    moved = ladders.Net(net.ladder, drive, net.below, net.readout, net.target)
    own = net.ladder.weights()
    states = settle(moved, own, moved.climb.states, 300, 0.5)
    objective = -loss_of(net, values_of(moved, states, net.readout)).sum()
    expected = torch.autograd.grad(objective, drive)[0]
    assert updates.drive_feedback is not None
    assert float((updates.drive_feedback - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_every_nudged_step_is_a_step_of_backpropagation_through_time(eta: float) -> None:
    """T7, gradient-descending updates: after t nudged steps the update is the gradient through the last t
    free steps, for every t, and the first steps are far from the limit."""
    net = ladders.make(gain=0.3)
    own = net.ladder.weights()
    start = settle(net, own, net.climb.states, 200, 0.5)
    far, limit = [], exact("hopfield", net)
    for t in range(1, 7):
        rule = EquilibriumPropagation(
            "hopfield", beta=1e-4, free_steps=200, nudged_steps=t, tolerance=0.0, eta=eta
        )
        updates, _ = run(net, rule)
        copies = {n: w.clone().requires_grad_() for n, w in own.items()}
        states = settle(net, copies, start, t, eta)
        objective = -loss_of(net, values_of(net, states, net.readout)).mean()
        found = torch.autograd.grad(objective, list(copies.values()), allow_unused=True)
        truncated = {n: torch.zeros_like(own[n]) if g is None else g for n, g in zip(own, found, strict=True)}
        assert distance(updates.ladder, truncated) < 1e-6
        far.append(distance(updates.ladder, limit))
    assert far == sorted(far, reverse=True)
    assert far[0] > 0.1


@pytest.mark.parametrize(("kind", "gain", "beta"), [("prediction", 1.0, 0.1), ("hopfield", 0.3, 0.4)])
def test_holomorphic_error_falls_geometrically_with_the_points(kind: str, gain: float, beta: float) -> None:
    """T8: by the same factor for every two points more; and for N points it is of order beta^N."""
    net = ladders.make(gain=gain, reads="all")
    true = exact(kind, net)

    def error(points: int, beta: float) -> float:
        rule = EquilibriumPropagation(kind, "holomorphic", beta, points, **EXACT)
        return distance(run(net, rule)[0].ladder, true)

    errors = torch.tensor([error(n, beta) for n in (2, 4, 6, 8)]).double()
    falls = errors[:-1] / errors[1:]
    assert falls.min() > 10
    assert falls.max() / falls.min() < 5
    for points in (2, 3, 4):
        assert slope([beta, beta / 2], [error(points, beta), error(points, beta / 2)]) == pytest.approx(
            points, abs=0.3
        )


def test_holomorphic_needs_an_analytic_activation() -> None:
    net = ladders.make(activation="relu")
    with pytest.raises(ValueError, match="tanh"):
        run(net, EquilibriumPropagation(nudge="holomorphic"))


@pytest.mark.parametrize(("kind", "gain"), KINDS)
def test_damping_changes_the_way_and_not_the_rest(kind: str, gain: float) -> None:
    net = ladders.make(gain=gain, reads="all")
    damped, plain = (run(net, EquilibriumPropagation(kind, **EXACT, eta=eta))[0] for eta in (0.5, 1.0))
    assert distance(damped.ladder, plain.ladder) < 1e-9
    assert damped.notes["iterations"] > plain.notes["iterations"]


@pytest.mark.parametrize(("kind", "gain"), KINDS)
def test_the_two_random_signs_average_to_the_symmetric_update(kind: str, gain: float) -> None:
    net = ladders.make(gain=gain, batch=1)
    rule = EquilibriumPropagation(kind, "random_sign", **EXACT)
    seen: list[Weights] = []
    for step in range(12):
        update = run(net, rule, step=step)[0].ladder
        if all(distance(update, other) > 1e-6 for other in seen):
            seen.append(update)
    assert len(seen) == 2
    mean = {n: (seen[0][n] + seen[1][n]) / 2 for n in seen[0]}
    assert distance(mean, run(net, EquilibriumPropagation(kind, "symmetric", **EXACT))[0].ladder) < 1e-9


def test_each_sample_draws_its_sign_and_the_batch_is_the_mean() -> None:
    net = ladders.make(batch=9)
    whole = run(net, EquilibriumPropagation(nudge="random_sign", **EXACT), step=5)[0]
    again = run(net, EquilibriumPropagation(nudge="random_sign", **EXACT), step=5)[0]
    for name, update in whole.ladder.items():
        assert torch.equal(update, again.ladder[name])
    assert whole.drive_feedback is not None
    signs = set()
    for i in range(9):
        alone = ladders.Net(
            net.ladder, net.drive[i : i + 1], net.below[i : i + 1], net.readout, net.target[i : i + 1]
        )
        plus, both = (
            run(alone, EquilibriumPropagation(nudge=n, **EXACT))[0].drive_feedback
            for n in ("one_sided", "symmetric")
        )
        assert plus is not None
        assert both is not None
        minus = 2 * both - plus
        gaps = [float((whole.drive_feedback[i] - side[0]).abs().max()) for side in (plus, minus)]
        assert min(gaps) < 1e-12 < max(gaps)
        signs.add(gaps[0] < gaps[1])
    assert signs == {True, False}
