"""RULES.md T13: difference target propagation and the feedback weights that it learns."""

from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.activation import Activation
from arr_coc.rules.target_propagation import TargetPropagation

EXACT = {"rtol": 0.0, "atol": 1e-12}
LINEAR = Activation(lambda a: a, torch.ones_like, torch.ones_like)


def prepared(net: ladders.Net, transposed: bool = False, **options) -> TargetPropagation:
    """A rule for this net; `transposed`: its feedback is what L-DRL drives it to."""
    rule = TargetPropagation(**options)
    rule.prepare(net.ladder, len(net.readout))
    if transposed:
        for level in range(1, net.ladder.depth):
            rule.state[f"feedback_{level}"] = net.ladder.weight(level).T.clone()
        rule.state["feedback_readout"] = net.readout.clone()
    return rule


def train_feedback(rule: TargetPropagation, net: ladders.Net, steps: int, rate: float) -> None:
    """Plain SGD on what the rule says of its own weights, with a falling rate; the ladder stays."""
    climb, teaching = net.climb, net.teaching()
    for k in range(steps):
        own = rule.step(net.ladder, climb, replace(teaching, step=k)).own
        for name, direction in own.items():
            rule.state[name] += rate / (1 + 0.1 * rate * k) * direction


def forward_jacobian(net: ladders.Net, level: int) -> Tensor:
    """J_F of rung `level` at every sample, (B, width, width), by autograd."""
    w, b, x = net.ladder.weight(level), net.ladder.get_buffer(f"bias_{level}"), net.climb.drives[level]

    def rung(z: Tensor, x: Tensor) -> Tensor:
        return net.ladder.activation.f(w @ z + x + b)

    return torch.func.vmap(torch.func.jacrev(rung))(net.climb.states[level - 1], x)


def send(net: ladders.Net, level: int, back: Tensor, y: Tensor, z: Tensor, a: Tensor) -> Tensor:
    """G_l(y) = B f(a + y - z) of one sample."""
    return back @ net.ladder.activation.f(a + y - z)


def feedback_jacobian(net: ladders.Net, level: int, back: Tensor) -> Tensor:
    """J_G of rung `level` at every state, (B, width, width), by autograd."""
    z, a = net.climb.states[level], net.climb.pre_activations[level]
    one = torch.func.jacrev(lambda y, z, a: send(net, level, back, y, z, a))
    return torch.func.vmap(one)(z, z, a)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_ldrl_drives_the_jacobian_of_the_feedback_to_the_transposed_one(activation: str) -> None:
    net = ladders.make(activation=activation, reads="all")
    rule = prepared(net, feedback_steps=32)
    before = [rule.state[f"feedback_{level}"].clone() for level in (1, 2)]
    train_feedback(rule, net, 400, 0.5)
    for level in (1, 2):
        asked = forward_jacobian(net, level).transpose(1, 2)
        start = ladders.cosine(feedback_jacobian(net, level, before[level - 1]), asked)
        end = ladders.cosine(feedback_jacobian(net, level, rule.state[f"feedback_{level}"]), asked)
        assert abs(start) < 0.5, start
        assert end > 0.98, end
    assert ladders.cosine(rule.state["feedback_readout"], net.readout) > 0.98


@pytest.mark.parametrize("reads", ["top", "all"])
def test_a_trained_feedback_gives_the_direction_of_backpropagation_in_every_rung(reads: str) -> None:
    net = ladders.make(depth=4, reads=reads)
    weights, _, drives = ladders.gradients(net)
    rule = prepared(net, beta=0.01, feedback_steps=32)
    untrained = rule.step(net.ladder, net.climb, net.teaching())
    train_feedback(rule, net, 400, 0.5)
    trained = rule.step(net.ladder, net.climb, net.teaching())
    for name, expected in weights.items():
        assert ladders.cosine(trained.ladder[name], expected) > 0.97, name
    assert ladders.cosine(trained.drive_feedback, drives) > 0.97
    assert ladders.cosine(untrained.ladder["weight_0"], weights["weight_0"]) < 0.8


def test_the_update_of_the_feedback_is_the_slope_of_the_loss_by_finite_differences() -> None:
    net = ladders.make(depth=2)
    rule = prepared(net, noise=0.3, feedback_steps=3, feedback_scale=2.0)
    back, w = rule.state["feedback_1"], net.ladder.weight(1)
    z0, z, a = net.climb.states[0], net.climb.states[1], net.climb.pre_activations[1]
    n = 0.3 * torch.randn(3, 7, 6, generator=rule.draw("noise", 1, 5)).double()
    moved = torch.tanh((z0 + n) @ w.T + net.climb.drives[1] + net.ladder.get_buffer("bias_1"))

    def loss(b: Tensor) -> float:
        along = (n * ((torch.tanh(a + moved - z) - torch.tanh(a)) @ b.T)).sum(2).mean()
        return float(-2 * along / 0.3**2 + feedback_jacobian(net, 1, b).square().sum((1, 2)).mean())

    slopes = torch.zeros_like(back)
    for i in range(6):
        for j in range(6):
            step = torch.zeros_like(back)
            step[i, j] = 1e-3
            slopes[i, j] = (loss(back + step) - loss(back - step)) / 2e-3
    own = rule.step(net.ladder, net.climb, net.teaching(step=5)).own["feedback_1"]
    torch.testing.assert_close(own, 2.0 * -0.5 * slopes, rtol=1e-8, atol=1e-9)


def test_on_average_the_feedback_follows_the_published_loss_with_noise_in_both_rungs() -> None:
    """-2 <dx, G(F(h + dx)) - G(F(h))> + |G(F(h) + dy) - G(F(h))|^2 on other draws, by autograd."""
    net = ladders.make(depth=2, width=3, batch=4)
    rule = prepared(net, noise=0.05, feedback_steps=40000)
    own = rule.step(net.ladder, net.climb, net.teaching()).own["feedback_1"]
    draw = torch.Generator().manual_seed(9)
    dx, dy = (0.05 * torch.randn(40000, 4, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    h, z, a = net.climb.states[0], net.climb.states[1], net.climb.pre_activations[1]
    back = rule.state["feedback_1"].clone().requires_grad_()

    def g(y: Tensor) -> Tensor:
        return torch.tanh(a + y - z) @ back.T

    rung = torch.tanh(
        (h + dx) @ net.ladder.weight(1).T + net.climb.drives[1] + net.ladder.get_buffer("bias_1")
    )
    loss = -2 * (dx * (g(rung) - g(z))).sum(2) + (g(z + dy) - g(z)).square().sum(2)
    (slopes,) = torch.autograd.grad(loss.mean(), back)
    torch.testing.assert_close(own, -0.5 * slopes / 0.05**2, rtol=0.0, atol=0.02 * float(own.abs().max()))


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("depth", [1, 3, 6])
def test_with_transposed_jacobians_the_update_tends_to_backpropagation_linearly_in_beta(
    depth: int, reads: str
) -> None:
    net = ladders.make(depth=depth, reads=reads)
    weights, readout, drives = ladders.gradients(net)
    errors = []
    for beta in (1e-3, 1e-4, 1e-5):
        updates = prepared(net, transposed=True, beta=beta).step(net.ladder, net.climb, net.teaching())
        off = [(updates.ladder[n] - w).norm() for n, w in weights.items()]
        errors.append(float(torch.stack([*off, (updates.drive_feedback - drives).norm()]).norm()))
        torch.testing.assert_close(updates.readout, readout, **EXACT)
        for name in (f"weight_{depth - 1}", f"bias_{depth - 1}"):  # no feedback map above the top rung
            torch.testing.assert_close(updates.ladder[name], weights[name], **EXACT)
    if depth == 1:
        assert max(errors) < 1e-12
    else:
        assert errors[0] < 1e-2
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
        assert errors[1] / errors[2] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("learned_readout", [True, False])
def test_where_the_net_is_linear_the_update_is_backpropagation_at_any_beta(learned_readout: bool) -> None:
    net = ladders.make(depth=4, reads="all")
    net.ladder.activation = LINEAR
    weights, _, drives = ladders.gradients(net)
    rule = prepared(net, transposed=True, beta=3.0, learned_readout=learned_readout)
    updates = rule.step(net.ladder, net.climb, net.teaching())
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)


def test_relu_is_piecewise_linear_so_that_a_beta_short_of_every_kink_gives_backpropagation() -> None:
    net = ladders.make(depth=4, reads="all", activation="relu")
    weights, _, _ = ladders.gradients(net)
    near = min(float(a.abs().min()) for a in net.climb.pre_activations)
    beta = near * 1e-2
    updates = prepared(net, transposed=True, beta=beta).step(net.ladder, net.climb, net.teaching())
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, rtol=0.0, atol=1e-13 / beta)
    far = prepared(net, transposed=True, beta=5.0).step(net.ladder, net.climb, net.teaching())
    assert not torch.allclose(far.ladder["weight_0"], weights["weight_0"], atol=1e-3)


def test_a_small_step_brings_every_rung_nearer_to_its_target_and_targets_lower_the_loss() -> None:
    net = ladders.make(depth=3, reads="all")
    rule = prepared(net, transposed=True, beta=1e-3)
    climb, teaching = net.climb, net.teaching()
    at_phi = teaching.error @ net.readout
    moves = rule.moves(net.ladder, climb, at_phi)
    updates = rule.step(net.ladder, climb, teaching)
    below = [climb.below, *climb.states[:-1]]
    for level, move in enumerate(moves):
        target = climb.states[level] + move

        def local_loss(size: float, level: int = level, target: Tensor = target) -> float:
            w = net.ladder.weight(level) + size * updates.ladder[f"weight_{level}"]
            b = net.ladder.get_buffer(f"bias_{level}") + size * updates.ladder[f"bias_{level}"]
            state = torch.tanh(below[level] @ w.T + climb.drives[level] + b)
            return float(0.5 * (target - state).square().sum())

        assert local_loss(1e-5) < local_loss(0.0) < local_loss(-1e-5)

    def loss(level: int, size: float) -> float:
        """With rung `level` moved towards its target, and the rungs above following it."""
        states = [*climb.states[:level], climb.states[level] + size * moves[level]]
        for above in range(level + 1, 3):
            w, b = net.ladder.weight(above), net.ladder.get_buffer(f"bias_{above}")
            states.append(torch.tanh(states[-1] @ w.T + climb.drives[above] + b))
        phi = climb.phi.clone()
        phi[:, 18:36] = torch.cat(states, 1)  # phi = [x_1 .. x_3, z_1 .. z_3, ...], width 6
        return float(0.5 * (net.target - phi @ net.readout.T).square().sum())

    for level in range(3):
        assert loss(level, 1.0) < loss(level, 0.0) < loss(level, -1.0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_target_that_is_the_state_cancels_whatever_the_feedback(activation: str) -> None:
    net = ladders.make(depth=4, reads="all", activation=activation)
    rule = prepared(net)
    updates = rule.step(net.ladder, net.climb, net.teaching(error=torch.zeros_like(net.target)))
    assert all(not u.any() for u in updates.ladder.values())
    assert not updates.drive_feedback.any()
    moves = rule.moves(net.ladder, net.climb, net.teaching().error @ rule.state["feedback_readout"])
    assert all(m.abs().max() > 1e-3 for m in moves)


def test_moves_are_those_of_the_recursion_written_out_with_states() -> None:
    """that_{l-1} = z_{l-1} + G_l(that_l) - G_l(z_l) + beta Q' e, one sample at a time, at a large beta."""
    net = ladders.make(depth=3, reads="all")
    rule = prepared(net, beta=0.7)
    q, climb, teaching = rule.state["feedback_readout"], net.climb, net.teaching()
    moves = rule.moves(net.ladder, climb, teaching.error @ q)
    for k in range(7):
        from_above = torch.zeros(6, dtype=torch.float64)
        for level in (2, 1, 0):
            z, a = climb.states[level][k], climb.pre_activations[level][k]
            columns = q[:, 18 + 6 * level : 24 + 6 * level]
            target = z + from_above + 0.7 * columns.T @ teaching.error[k]
            torch.testing.assert_close(moves[level][k], target - z, **EXACT)
            if level:
                back = rule.state[f"feedback_{level}"]
                from_above = send(net, level, back, target, z, a) - send(net, level, back, z, z, a)


def test_reconstruction_drives_the_feedback_to_the_inverse_and_ldrl_does_not() -> None:
    """A linear square net, with drives and biases, which no inverse over z has to undo."""
    net = ladders.make(depth=2, width=4, batch=5)
    net.ladder.activation = LINEAR
    w = net.ladder.weight(1)
    rotation = torch.linalg.qr(w).Q
    w.copy_(rotation * torch.tensor([0.6, 0.8, 1.2, 1.5], dtype=torch.float64))
    inverse = torch.linalg.inv(w)
    assert ladders.cosine(inverse, w.T) < 0.9
    classic, ldrl = prepared(net, feedback="reconstruction"), prepared(net, feedback_steps=64)
    train_feedback(classic, net, 300, 0.3)
    train_feedback(ldrl, net, 300, 0.3)
    torch.testing.assert_close(classic.state["feedback_1"], inverse, rtol=0.0, atol=1e-3)
    assert ladders.cosine(ldrl.state["feedback_1"], w.T) > 0.99
    assert ladders.cosine(ldrl.state["feedback_1"], inverse) < 0.93


def test_reconstruction_follows_the_slope_of_its_loss() -> None:
    net = ladders.make(depth=2)
    rule = prepared(net, feedback="reconstruction", noise=0.3, feedback_steps=3)
    n = 0.3 * torch.randn(3, 7, 6, generator=rule.draw("noise", 1, 0)).double()
    h, z, a = net.climb.states[0], net.climb.states[1], net.climb.pre_activations[1]
    rung = torch.tanh(
        (h + n) @ net.ladder.weight(1).T + net.climb.drives[1] + net.ladder.get_buffer("bias_1")
    )
    back = rule.state["feedback_1"].clone().requires_grad_()
    loss = ((torch.tanh(a + rung - z) - torch.tanh(a)) @ back.T - n).square().sum(2).mean()
    (slopes,) = torch.autograd.grad(loss, back)
    own = rule.step(net.ladder, net.climb, net.teaching()).own["feedback_1"]
    torch.testing.assert_close(own, -0.5 * slopes / 0.3**2, **EXACT)


def test_it_uses_no_forward_weight_on_the_way_down_unless_its_ledger_says_so() -> None:
    net = ladders.make(depth=3, reads="all")
    climb, teaching = net.climb, net.teaching()
    learned, transported = prepared(net), prepared(net, learned_readout=False)
    assert not learned.ledger.weight_transport
    assert transported.ledger.weight_transport
    was = [rule.step(net.ladder, climb, teaching) for rule in (learned, transported)]
    for level in range(3):
        net.ladder.weight(level).normal_()
    other = replace(teaching, readout=torch.randn_like(net.readout))
    now = [rule.step(net.ladder, climb, other) for rule in (learned, transported)]
    assert all(torch.equal(now[0].ladder[n], was[0].ladder[n]) for n in was[0].ladder)
    assert torch.equal(now[0].drive_feedback, was[0].drive_feedback)
    assert torch.equal(now[0].readout, was[0].readout)
    assert not torch.equal(now[1].ladder["weight_0"], was[1].ladder["weight_0"])


@pytest.mark.parametrize("options", [{}, {"feedback": "reconstruction"}, {"learned_readout": False}])
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_and_weights_at_zero_give_finite_updates_and_change_nothing(
    options: dict, reads: str, dtype: torch.dtype
) -> None:
    for depth in (1, 3, 6):
        net = ladders.make(depth=depth, reads=reads, activation="relu", gain=0.0, batch=1)
        net.ladder.to(dtype)
        net = replace(
            net, drive=net.drive.to(dtype), below=net.below.to(dtype), readout=net.readout.to(dtype)
        )
        rule = prepared(net, **options)
        kept = {n: t.clone() for n, t in rule.state.items()}
        updates = rule.step(net.ladder, net.climb, net.teaching())
        for tensor in (*updates.ladder.values(), *updates.own.values(), updates.drive_feedback):
            assert tensor.dtype == dtype
            assert torch.isfinite(tensor).all()
        assert updates.own.keys() == kept.keys()
        assert all(torch.equal(kept[n], t) and updates.own[n].shape == t.shape for n, t in rule.state.items())


def test_feedback_never_reaches_into_the_context_and_grows_with_the_classes() -> None:
    net = ladders.make(depth=3)
    rule = TargetPropagation()
    rule.prepare(net.ladder, 1)
    assert set(rule.state) == {"feedback_1", "feedback_2", "feedback_readout"}
    first = rule.state["feedback_readout"].clone()
    rule.prepare(net.ladder, 4)
    assert torch.equal(rule.state["feedback_readout"][:1], first)
    at_once = prepared(net)
    assert all(torch.equal(rule.state[n], t) for n, t in at_once.state.items())


def test_noise_depends_on_the_seed_and_on_the_samples_learned_before() -> None:
    net = ladders.make(depth=2)

    def own(seed: int, step: int) -> Tensor:
        rule = prepared(net, seed=seed)
        rule.state["feedback_1"].zero_()
        return rule.step(net.ladder, net.climb, net.teaching(step=step)).own["feedback_1"]

    assert torch.equal(own(0, 3), own(0, 3))
    assert not torch.equal(own(0, 3), own(0, 4))
    assert not torch.equal(own(0, 3), own(1, 3))


def test_it_learns_what_no_readout_of_the_untaught_ladder_can() -> None:
    """Parity of four bits, read from the top of two rungs; ladder, readout and feedback by plain SGD."""
    bits = torch.tensor([[1.0 if k >> i & 1 else -1.0 for i in range(4)] for k in range(16)]).double()
    net = ladders.make(depth=2, width=8, below=4, classes=2, batch=16, drives=False)
    net = replace(net, below=bits, target=torch.eye(2).double()[(bits.prod(1) > 0).long()])
    net.readout.mul_(0.1)
    phi = net.climb.phi
    untaught = phi @ torch.linalg.lstsq(phi, net.target).solution
    best = float((net.target - untaught).square().mean())
    rule = prepared(net)
    for k in range(1500):
        updates = rule.step(net.ladder, net.climb, net.teaching(step=k))
        for name, direction in updates.ladder.items():
            net.ladder.get_buffer(name).add_(0.3 * direction)
        net.readout.add_(0.3 * updates.readout)
        for name, direction in updates.own.items():
            rule.state[name] += 0.3 * direction
    assert best > 0.05
    assert float((net.target - net.values).square().mean()) < 0.2 * best
    assert torch.equal(net.values.argmax(1), net.target.argmax(1))


@pytest.mark.parametrize(
    ("option", "value"),
    [("feedback", "drl"), ("beta", 0.0), ("noise", -0.1), ("feedback_steps", 0), ("feedback_scale", -1.0)],
)
def test_an_impossible_option_is_refused_with_what_was_given(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}={value!r}: possible are"):
        TargetPropagation(**{option: value})
