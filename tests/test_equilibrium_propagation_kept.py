"""Equilibrium propagation: residuals and rest, no ladder that diverges, and what is refused."""

import ladders
import pytest
import torch
from ep_energy import EXACT, distance, exact, inputs, run, settle, values_of
from torch import Tensor

from arr_coc.rules.equilibrium_propagation import EquilibriumPropagation
from arr_coc.rules.protocol import Teaching


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
