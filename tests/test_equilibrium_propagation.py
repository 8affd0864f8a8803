"""Equilibrium propagation against energies written out here and gradients by autograd (T1, T7, T8)."""

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.rules.equilibrium_propagation import EquilibriumPropagation
from arr_coc.rules.protocol import Teaching, Updates

EXACT = {"tolerance": 1e-15, "free_steps": 300, "nudged_steps": 150}
Weights = dict[str, Tensor]


def inputs(net: ladders.Net, weights: Weights, states: list[Tensor], both_ways: bool) -> list[Tensor]:
    """What enters each rung: from below, and from above too."""
    found, drives, depth = [], net.climb.drives, net.ladder.depth
    for k in range(depth):
        below = net.below if k == 0 else states[k - 1]
        a = torch.einsum("bi,oi->bo", below, weights[f"weight_{k}"]) + drives[k] + weights[f"bias_{k}"]
        if both_ways and k < depth - 1:
            a = a + torch.einsum("bo,oi->bi", states[k + 1], weights[f"weight_{k + 1}"])
        found.append(a)
    return found


def values_of(net: ladders.Net, states: list[Tensor], readout: Tensor) -> Tensor:
    phi = net.climb.phi
    if net.ladder.reads == "top":
        return torch.cat([states[-1], phi[:, -1:]], 1) @ readout.T
    width = net.ladder.depth * net.ladder.width
    return torch.cat([phi[:, :width], *states, phi[:, 2 * width :]], 1) @ readout.T


def energy_of(kind: str, net: ladders.Net, weights: Weights, states: list[Tensor]) -> Tensor:
    """E of each sample, for tanh, (B,)."""
    entering = inputs(net, weights, states, both_ways=False)
    total = torch.zeros(len(net.below), dtype=torch.float64)
    for s, a in zip(states, entering, strict=True):
        if kind == "prediction":
            total = total + 0.5 * (s - torch.tanh(a)).square().sum(1)
        else:  # the integral of artanh, less s . a
            total = total + (s * torch.atanh(s) + 0.5 * torch.log(1 - s * s) - s * a).sum(1)
    return total


def loss_of(net: ladders.Net, values: Tensor) -> Tensor:
    return 0.5 * (net.target - values).square().sum(1)


def run(net: ladders.Net, rule: EquilibriumPropagation, **changes) -> tuple[Updates, list[Tensor]]:
    """The rule as the learner calls it; its updates and the free states."""
    with torch.no_grad():
        climb = rule.infer(net.ladder, net.climb)
        values = climb.phi @ net.readout.T
        teaching = net.teaching(error=net.target - values, values=values, **changes)
        return rule.step(net.ladder, climb, teaching), climb.states


def settle(net: ladders.Net, weights: Weights, states: list[Tensor], steps: int, eta: float) -> list[Tensor]:
    """The free Hopfield dynamics, all rungs at once."""
    f = net.ladder.activation.f
    for _ in range(steps):
        asked = [f(a) for a in inputs(net, weights, states, both_ways=True)]
        states = [(1 - eta) * s + eta * new for s, new in zip(states, asked, strict=True)]
    return states


def exact(kind: str, net: ladders.Net, steps: int = 120) -> Weights:
    """-dC/dW at the free state: of the climb, or through the last `steps` iterations of free settling."""
    if kind == "prediction":
        return ladders.gradients(net)[0]
    own = net.ladder.weights()
    start = settle(net, own, net.climb.states, 300, 0.5)
    copies = {n: t.clone().requires_grad_() for n, t in own.items()}
    states = settle(net, copies, start, steps, 0.5)
    objective = -loss_of(net, values_of(net, states, net.readout)).mean()
    found = torch.autograd.grad(objective, list(copies.values()), allow_unused=True)
    return {
        n: torch.zeros_like(c) if g is None else g for (n, c), g in zip(copies.items(), found, strict=True)
    }


def distance(one: Weights, other: Weights) -> float:
    off = sum(float((one[n] - other[n]).square().sum()) for n in other)
    return (off / sum(float(t.square().sum()) for t in other.values())) ** 0.5


def slope(xs: list[float], ys: list[float]) -> float:
    x, y = torch.tensor(xs).double().log(), torch.tensor(ys).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


KINDS = [("prediction", 1.0), ("hopfield", 0.3)]  # with the gain at which everything settles fast


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


def test_a_free_phase_cut_short_is_biased_and_its_residual_tells() -> None:
    """What is left of the free settling is taken for the nudge's effect, and divided by beta."""
    net = ladders.make(gain=0.5)
    true, found = exact("hopfield", net), {}
    for steps in (1, 4, 300):
        rule = EquilibriumPropagation(
            "hopfield", "one_sided", 1e-3, 4, steps, nudged_steps=150, tolerance=0.0
        )
        updates, free = run(net, rule)
        entering = inputs(net, net.ladder.weights(), free, both_ways=True)
        residual = max(float((torch.tanh(a) - s).abs().max()) for a, s in zip(entering, free, strict=True))
        assert updates.notes["free_residual"] == pytest.approx(residual, abs=1e-14)
        found[steps] = (distance(updates.ladder, true), residual)
    assert found[300][0] < 1e-2
    assert found[300][1] < 1e-12
    assert found[1][1] > found[4][1] > 1e-3
    assert found[1][0] > found[4][0] > 1


def test_a_nudged_phase_cut_short_tells_by_its_residual() -> None:
    net = ladders.make(gain=0.3)
    short, long = (
        run(net, EquilibriumPropagation("hopfield", free_steps=300, nudged_steps=n, tolerance=0.0))[0].notes
        for n in (2, 150)
    )
    assert short["residual"] > 1e-3
    assert long["residual"] < 1e-12
    assert (short["iterations"], long["iterations"]) == (4, 300)


def test_settling_ends_at_the_tolerance() -> None:
    net = ladders.make(gain=0.3)
    for kind in ("prediction", "hopfield"):
        notes = run(net, EquilibriumPropagation(kind, nudged_steps=500, tolerance=1e-5))[0].notes
        assert notes["residual"] <= 1e-5
        assert notes["iterations"] < 100


@pytest.mark.parametrize("reads", ["top", "all"])
def test_hopfield_answers_from_its_free_equilibrium(reads: str) -> None:
    net = ladders.make(gain=0.3, reads=reads)
    climb = net.climb
    rested = EquilibriumPropagation("hopfield", **EXACT).infer(net.ladder, climb)
    entering = inputs(net, net.ladder.weights(), rested.states, both_ways=True)
    for a, z, pre in zip(entering, rested.states, rested.pre_activations, strict=True):
        torch.testing.assert_close(z, torch.tanh(a), rtol=0.0, atol=1e-12)
        torch.testing.assert_close(pre, a, rtol=0.0, atol=1e-12)
    assert rested.phi.shape == climb.phi.shape
    eye = torch.eye(net.ladder.phi_width, dtype=torch.float64)
    torch.testing.assert_close(rested.phi, values_of(net, rested.states, eye), rtol=0.0, atol=0.0)
    assert max(float((a - b).abs().max()) for a, b in zip(rested.states, climb.states, strict=True)) > 0.01
    assert EquilibriumPropagation("prediction").infer(net.ladder, climb) is climb


@pytest.mark.parametrize("kind", ["prediction", "hopfield"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("reads", ["top", "all"])
def test_a_deep_wide_ladder_of_gain_1_does_not_diverge(kind: str, activation: str, reads: str) -> None:
    net = ladders.make(depth=4, width=64, activation=activation, reads=reads)
    for beta in (0.05, 1.0):
        updates, free = run(net, EquilibriumPropagation(kind, beta=beta))
        assert max(float(z.abs().max()) for z in free) < 10
        assert max(float(u.abs().max()) for u in updates.ladder.values()) < 10


def test_hopfield_relu_states_have_a_ceiling_because_they_diverge_without_one() -> None:
    net = ladders.make(depth=4, width=64, activation="relu")
    assert max(float(z.max()) for z in run(net, EquilibriumPropagation("hopfield"))[1]) == 1
    without = settle(net, net.ladder.weights(), net.climb.states, 200, 0.5)
    assert max(float(z.max()) for z in without) > 1e9


def test_hopfield_is_damped_because_all_rungs_at_once_go_round_in_a_circle() -> None:
    net = ladders.make(depth=4, width=64)
    residuals = [
        run(net, EquilibriumPropagation("hopfield", free_steps=1000, eta=eta))[0].notes["free_residual"]
        for eta in (1.0, 0.5)
    ]
    assert residuals[0] > 1
    assert residuals[1] < 0.01


@pytest.mark.parametrize("nudge", ["one_sided", "symmetric", "random_sign"])
def test_the_nudging_error_is_at_most_twice_the_answers(nudge: str) -> None:
    """Where beta |R|^2 > 1 the equilibrium at -beta is no minimum; the post-synaptic factor stays below
    2 |e| |R| all the same, and 0 for a sample without error."""
    net = ladders.make(depth=1, activation="tanh")
    strong = ladders.Net(net.ladder, net.drive, net.below, 100 * net.readout, net.target.clone())
    strong.target[0] = strong.values[0]
    updates, _ = run(strong, EquilibriumPropagation(nudge=nudge, beta=1.0))
    error = (strong.target - strong.values).norm(dim=1)
    bound = 2 * error * torch.linalg.matrix_norm(strong.readout, 2)
    assert updates.drive_feedback is not None
    reached = updates.drive_feedback.norm(dim=1)
    assert (reached <= bound).all()
    assert reached[0] == 0
    assert reached[1:].max() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["prediction", "hopfield"])
@pytest.mark.parametrize("nudge", ["one_sided", "symmetric", "random_sign", "holomorphic"])
@pytest.mark.parametrize(("depth", "batch", "classes"), [(1, 1, 2), (6, 3, 7)])
@pytest.mark.parametrize(("reads", "gain"), [("top", 0.0), ("all", 0.0), ("all", 0.5)])
def test_updates_are_finite_real_and_of_the_ladders_type(
    dtype: torch.dtype, kind: str, nudge: str, depth: int, batch: int, classes: int, reads: str, gain: float
) -> None:
    """W at zero, one sample, any depth; no autograd graph."""
    net = ladders.make(depth, batch=batch, classes=classes, reads=reads, gain=gain)
    ladder, readout = net.ladder.to(dtype), torch.ones_like(net.readout).to(dtype)
    net = ladders.Net(ladder, net.drive.to(dtype), net.below.to(dtype), readout, net.target.to(dtype))
    with torch.inference_mode():
        updates, _ = run(net, EquilibriumPropagation(kind, nudge))
    tensors = [*updates.ladder.values(), updates.readout, updates.drive_feedback]
    for name, weight in ladder.weights().items():
        assert updates.ladder[name].shape == weight.shape
    for tensor in tensors:
        assert tensor is not None
        assert tensor.dtype == dtype
        assert tensor.grad_fn is None
        assert torch.isfinite(tensor).all()
    assert any(float(u.abs().max()) > 0 for u in updates.ladder.values())


@pytest.mark.parametrize("kind", ["prediction", "hopfield"])
def test_the_error_is_asked_for_at_the_moved_values(kind: str) -> None:
    """Here a softmax error: the first values are the answer's, the last those of the equilibrium."""
    net = ladders.make(gain=0.3, reads="all")

    def softmax_error(values: Tensor) -> Tensor:
        return net.target - (3 * values).softmax(1)

    seen: list[Tensor] = []

    def watched(values: Tensor) -> Tensor:
        seen.append(values)
        return softmax_error(values)

    rule = EquilibriumPropagation(kind, "one_sided", 0.1, **EXACT)
    with torch.no_grad():
        climb = rule.infer(net.ladder, net.climb)
        values = climb.phi @ net.readout.T
        teaching: Teaching = net.teaching(error=softmax_error(values), values=values, error_of=watched)
        states = rule.nudged(net.ladder, climb, teaching, torch.tensor(0.1, dtype=torch.float64)).states
    torch.testing.assert_close(seen[0], values)
    torch.testing.assert_close(seen[-1], values_of(net, states, net.readout), rtol=0.0, atol=1e-12)
    assert float((seen[-1] - values).abs().max()) > 1e-3


def test_step_changes_nothing() -> None:
    net = ladders.make()
    climb, teaching = net.climb, net.teaching()
    tensors = [*net.ladder.weights().values(), *climb.states, *climb.pre_activations, climb.phi, net.readout]
    before = [t.clone() for t in tensors]
    for kind in ("prediction", "hopfield"):
        rule = EquilibriumPropagation(kind)
        rule.prepare(net.ladder, 4)
        first, second = (rule.step(net.ladder, climb, teaching).ladder for _ in range(2))
        assert all(torch.equal(first[n], second[n]) for n in first)
        assert not rule.state
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))


def test_the_ledger_follows_the_options() -> None:
    for kind in ("prediction", "hopfield"):
        for nudge in ("one_sided", "symmetric", "random_sign", "holomorphic"):
            ledger = EquilibriumPropagation(kind, nudge).ledger
            assert ledger.weight_transport
            assert ledger.two_phases
            assert ledger.iterative_settling
            assert not ledger.layer_wide_matrix
            assert ledger.global_scalar == (nudge in ("random_sign", "holomorphic"))
            assert ledger.stored_activations


@pytest.mark.parametrize(
    "options",
    [
        {"energy": "ising"},
        {"nudge": "both"},
        {"beta": 0.0},
        {"beta": float("nan")},
        {"points": 1},
        {"free_steps": 0},
        {"nudged_steps": 0},
        {"tolerance": -1.0},
        {"eta": 0.0},
        {"eta": 1.5},
        {"ceiling": 0.0},
    ],
)
def test_impossible_options_are_refused_by_name(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.*possible are"):
        EquilibriumPropagation(**options)
