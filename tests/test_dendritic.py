"""RULES.md T14 and T12: the dendritic microcircuit, burstprop, and what they tend to."""

import inspect
import math
from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.rules import dendritic
from arr_coc.rules.dendritic import Dendritic
from arr_coc.rules.protocol import Ledger, Updates

MODES = ["microcircuit", "burst"]
EXACT = {"rtol": 0.0, "atol": 1e-12}


def prepared(net: ladders.Net, **options) -> Dendritic:
    rule = Dendritic(**{"tolerance": 1e-13, **options})
    rule.prepare(net.ladder, len(net.readout))
    return rule


def step(rule: Dendritic, net: ladders.Net, **changes) -> Updates:
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


def untaught(rule: Dendritic, net: ladders.Net) -> Updates:
    """What the rule does where nobody teaches, whatever the values."""
    return step(rule, net, error=torch.zeros_like(net.target), error_of=torch.zeros_like)


def angle(one: Tensor, other: Tensor) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, ladders.cosine(one, other)))))


def angles(updates: Updates, net: ladders.Net) -> list[float]:
    """To backpropagation, of W in each rung, degrees."""
    expected, _, _ = ladders.gradients(net)
    names = [f"weight_{k}" for k in range(net.ladder.depth)]
    return [angle(updates.ladder[n], expected[n]) for n in names]


def learn(rule: Dendritic, net: ladders.Net, updates: Updates, rate: float) -> None:
    """Plain SGD on all that the rule moves."""
    for name, direction in updates.ladder.items():
        net.ladder.get_buffer(name).add_(rate * direction)
    for name, direction in updates.own.items():
        rule.state[name] += rate * direction
    net.readout = net.readout + rate * updates.readout


def task(activation: str = "tanh", reads: str = "top") -> ladders.Net:
    """A small task that can be learned: the classes are those of another ladder with the same input."""
    net = ladders.make(3, 16, 10, 3, 50, reads, activation, drives=False, seed=3)
    other = ladders.make(2, 16, 10, 3, 1, drives=False, seed=9)
    other.ladder.weight(0).mul_(2)
    values = other.ladder.climb(torch.zeros(50, 32).double(), net.below, None).phi @ other.readout.T
    net.target, net.readout = torch.eye(3).double()[values.argmax(1)], 0.3 * net.readout
    return net


def loss(net: ladders.Net) -> float:
    return float(0.5 * (net.target - net.values).square().sum(1).mean())


def parts(net: ladders.Net, at_phi: Tensor) -> list[Tensor]:
    """What of a tensor (N, D) belongs to each z_l, cut by hand."""
    w, depth = net.ladder.width, net.ladder.depth
    if net.ladder.reads == "top":
        return [torch.zeros_like(at_phi[:, :w])] * (depth - 1) + [at_phi[:, :w]]
    return [at_phi[:, (depth + k) * w : (depth + k + 1) * w] for k in range(depth)]


def aligned(net: ladders.Net, rule: Dendritic, chain: bool) -> dict[str, Tensor]:
    """Feedback alignment with the rule's D and Y, written out; without the chain: direct."""
    sent = parts(net, (net.target - net.values) @ rule.state["down_readout"])
    below = [net.below, *net.climb.states[:-1]]
    found, above = {}, torch.zeros_like(sent[0])
    for k in reversed(range(net.ladder.depth)):
        a = net.climb.pre_activations[k]
        slope = 1 - torch.tanh(a) ** 2 if net.ladder.activation.f is torch.tanh else (a > 0).double()
        g = (sent[k] + above) * slope
        found[f"weight_{k}"] = torch.einsum("bi,bj->ij", g, below[k]) / len(g)
        found[f"bias_{k}"] = g.mean(0)
        above = torch.einsum("bi,ij->bj", g, rule.state[f"down_{k}"]) if k and chain else 0 * g
    return found


def relax(net: ladders.Net, rule: Dendritic, dt: float = 0.4, steps: int = 400) -> dict[str, Tensor]:
    """The published leaky dynamics with conductances, by Euler's method from rest, and the updates of W."""
    g_lk, g_b, g_a, g_d, g_som = 0.1, 1.0, 0.8, 1.0, 0.8
    depth, phi, tanh = net.ladder.depth, net.climb.phi, torch.tanh
    u = [torch.zeros_like(z) for z in net.climb.states]
    inter = [torch.zeros_like(z) for z in net.climb.states[:-1]]
    out = torch.zeros_like(net.target)
    seen = parts(net, net.readout)
    for _ in range(steps):
        r = [tanh(x) for x in u]
        below = [net.below, *r[:-1]]
        hats = [
            below[k] @ net.ladder.weight(k).T + net.climb.drives[k] + net.ladder.get_buffer(f"bias_{k}")
            for k in range(depth)
        ]
        moved = [(r[k] - net.climb.states[k]) @ seen[k].T for k in range(depth)]
        hat_out = phi @ net.readout.T + sum(moved)
        back = parts(net, (out - hat_out) @ rule.state["down_readout"])
        new_u, new_inter = [], []
        for k in range(depth):
            v_a = back[k]
            if k + 1 < depth:
                y, w_pi = rule.state[f"down_{k + 1}"], rule.state[f"lateral_{k + 1}"]
                v_a = v_a + rule.gain * (r[k + 1] @ y + tanh(inter[k]) @ w_pi)
                guess = r[k] @ rule.state[f"inter_{k + 1}"].T + net.climb.drives[k + 1]
                v_i = (guess + rule.state[f"inter_bias_{k + 1}"]) * (g_lk + g_d) / g_d
                du = -g_lk * inter[k] + g_d * (v_i - inter[k]) + g_som * (u[k + 1] - inter[k])
                new_inter.append(inter[k] + dt * du)
            v_b = hats[k] * (g_lk + g_b + g_a) / g_b
            new_u.append(u[k] + dt * (-g_lk * u[k] + g_b * (v_b - u[k]) + g_a * (v_a - u[k])))
        v_out = hat_out * (g_lk + g_b) / g_b
        out = out + dt * (-g_lk * out + g_b * (v_out - out) + g_som * (net.target - out))
        u, inter = new_u, new_inter
    unit = g_a / (g_lk + g_b + g_a) * g_som / (g_lk + g_b + g_som)
    post = [(tanh(u[k]) - tanh(hats[k])) / unit for k in range(depth)]
    below = [net.below, *[tanh(x) for x in u[:-1]]]
    return {f"weight_{k}": torch.einsum("bi,bj->ij", post[k], below[k]) / len(u[0]) for k in range(depth)}


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
