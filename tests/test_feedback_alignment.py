"""Feedback alignment: the formulas, what stays fixed, and that forward weights come to fit the feedback."""

from collections.abc import Callable

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.eval.rules_audit import audit
from arr_coc.rules import Updates
from arr_coc.rules.feedback_alignment import DIRECT, MODES, SIGNS, FeedbackAlignment

EXACT = {"rtol": 0.0, "atol": 1e-12}


def stepped(net: ladders.Net, rule: FeedbackAlignment, **changes) -> Updates:
    rule.prepare(net.ladder, net.readout.shape[0])
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


def learn(net: ladders.Net, rule: FeedbackAlignment, updates: Updates, rate: float) -> None:
    for name, direction in updates.ladder.items():
        net.ladder.get_buffer(name).add_(rate * direction)
    for name, direction in updates.own.items():
        rule.state[name] += rate * direction
    net.readout += rate * updates.readout


def slopes(net: ladders.Net, activation: str) -> list[Tensor]:
    z = net.climb.states
    return [1 - s**2 for s in z] if activation == "tanh" else [(s > 0).to(s) for s in z]


def at_rungs(net: ladders.Net, reads: str, told: Tensor) -> list[Tensor]:
    """What of a signal where phi lives, (D,), belongs to z_1 .. z_L."""
    depth, w = net.ladder.depth, net.ladder.width
    if reads == "top":
        return [torch.zeros(w, dtype=told.dtype)] * (depth - 1) + [told[:w]]
    return [told[(depth + k) * w : (depth + k + 1) * w] for k in range(depth)]


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("mode", ["fa", "kp", "usf", "frsf"])
def test_errors_come_down_by_the_feedback_weights_and_the_slope(
    mode: str, activation: str, reads: str
) -> None:
    """RULES.md T11, sample by sample: W, b, R and what reaches the drives."""
    net, rule = ladders.make(depth=4, activation=activation, reads=reads), FeedbackAlignment(mode)
    rule.prepare(net.ladder, 4)
    forward = {"readout": net.readout} | {str(k): net.ladder.weight(k) for k in range(1, 4)}
    if mode == "usf":
        back = {k: w.sign() / w.shape[1] ** 0.5 for k, w in forward.items()}
    elif mode == "frsf":
        back = {k: rule.state[f"feedback_{k}"].abs() * w.sign() for k, w in forward.items()}
    else:
        back = {k: rule.state[f"feedback_{k}"].clone() for k in forward}
    weights = [torch.zeros_like(net.ladder.weight(k)) for k in range(4)]
    biases, drives = [torch.zeros(6, dtype=torch.float64) for _ in range(4)], []
    bent, climb, error = slopes(net, activation), net.climb, net.target - net.values
    for b in range(7):
        told = back["readout"].T @ error[b]
        reached = told[:24].clone() if reads == "all" else torch.zeros(24, dtype=torch.float64)
        above = torch.zeros(6, dtype=torch.float64)
        for k in (3, 2, 1, 0):
            delta = (at_rungs(net, reads, told)[k] + above) * bent[k][b]
            weights[k] += torch.outer(delta, (climb.states[k - 1] if k else climb.below)[b]) / 7
            biases[k] += delta / 7
            reached[6 * k : 6 * k + 6] += delta
            above = back[str(k)].T @ delta if k else above
        drives.append(reached)
    updates = stepped(net, rule)
    decay = rule.decay if mode == "kp" else 0.0
    for k in range(4):
        shrunk = decay * net.ladder.weight(k) if k else 0.0
        torch.testing.assert_close(updates.ladder[f"weight_{k}"], weights[k] - shrunk, **EXACT)
        torch.testing.assert_close(updates.ladder[f"bias_{k}"], biases[k], **EXACT)
    torch.testing.assert_close(updates.drive_feedback, torch.stack(drives), **EXACT)
    exact = torch.einsum("bc,bd->cd", error, climb.phi) / 7
    torch.testing.assert_close(updates.readout, exact - decay * net.readout, **EXACT)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("mode", DIRECT)
def test_direct_feedback_reaches_every_rung_by_its_own_matrix(mode: str, activation: str, reads: str) -> None:
    net, rule = ladders.make(depth=3, activation=activation, reads=reads), FeedbackAlignment(mode)
    updates = stepped(net, rule)
    error, climb = net.target - net.values, net.climb
    taught = {"dfa": error, "sdfa": error / error.abs(), "drtp": net.target}[mode]
    assert len({rule.state[f"direct_{k}"].sum().item() for k in range(3)}) == 3
    for k, bent in enumerate(slopes(net, activation)):
        delta = torch.einsum("bc,ci->bi", taught, rule.state[f"direct_{k}"]) * bent
        below = climb.states[k - 1] if k else climb.below
        expected = torch.einsum("bi,bj->ij", delta, below) / 7
        torch.testing.assert_close(updates.ladder[f"weight_{k}"], expected, **EXACT)
        torch.testing.assert_close(updates.ladder[f"bias_{k}"], delta.mean(0), **EXACT)
        told = taught @ rule.state["feedback_readout"][:, 6 * k : 6 * k + 6] if reads == "all" else 0.0
        torch.testing.assert_close(updates.drive_feedback[:, 6 * k : 6 * k + 6], told + delta, **EXACT)


@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("mode", ["fa", "kp"])
def test_with_the_forward_weights_as_feedback_it_is_backpropagation(
    mode: str, depth: int, activation: str, reads: str
) -> None:
    """RULES.md T11: B = W', the gradient by automatic differentiation; of the drives all but the part that
    the expansion sends."""
    net = ladders.make(depth=depth, activation=activation, reads=reads)
    rule = FeedbackAlignment(mode, decay=0.0)
    rule.prepare(net.ladder, 4)
    rule.state["feedback_readout"] = net.readout.clone()
    for level in range(1, depth):
        rule.state[f"feedback_{level}"] = net.ladder.weight(level).clone()
    weights, readout, drives = ladders.gradients(net)
    if reads == "all":
        hidden = net.climb.hidden
        told = (net.target - net.values) @ net.readout[:, 12 * depth : 12 * depth + 5]
        drives = drives - (told * hidden * (1 - hidden)) @ net.ladder.expand_weight
    updates = stepped(net, rule)
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_readout_is_exact_and_the_expansion_has_no_way_down(mode: str, reads: str) -> None:
    net, rule = ladders.make(reads=reads), FeedbackAlignment(mode, decay=0.0)
    updates, climb = stepped(net, rule), net.climb
    torch.testing.assert_close(updates.readout, ladders.gradients(net)[1], **EXACT)
    teaching = net.teaching()
    net.ladder.expand_weight.mul_(-3.0)
    assert torch.equal(rule.step(net.ladder, climb, teaching).drive_feedback, updates.drive_feedback)


@pytest.mark.parametrize("mode", ["fa", "frsf", *DIRECT])
def test_fixed_feedback_never_changes_and_a_class_has_its_row_whenever_it_comes(mode: str) -> None:
    net, rule, late = ladders.make(), FeedbackAlignment(mode), FeedbackAlignment(mode)
    rule.prepare(net.ladder, 4)
    first = {name: tensor.clone() for name, tensor in rule.state.items()}
    for k in range(20):
        updates = stepped(net, rule, step=k)
        assert updates.own == {}
        learn(net, rule, updates, 0.1)
    late.prepare(net.ladder, 1)
    late.prepare(net.ladder, 4)
    other = FeedbackAlignment(mode, seed=1)
    other.prepare(net.ladder, 4)
    below = {"direct_0", "direct_1", "direct_2"} if mode in DIRECT else {"feedback_1", "feedback_2"}
    assert first.keys() == rule.state.keys() == late.state.keys() == below | {"feedback_readout"}
    for name, tensor in first.items():
        assert torch.equal(tensor, rule.state[name])
        assert torch.equal(tensor, late.state[name])
        assert not torch.equal(tensor, other.state[name])


@pytest.mark.parametrize("mode", ["fa", "dfa", "frsf", "kp"])
def test_feedback_starts_as_the_weights_do_that_it_stands_for(mode: str) -> None:
    net, rule = ladders.make(depth=2, width=40, classes=100), FeedbackAlignment(mode)
    rule.prepare(net.ladder, 100)
    for tensor in rule.state.values():
        assert float(tensor.std()) == pytest.approx(tensor.shape[1] ** -0.5, rel=0.08)
        assert float(tensor.mean()) == pytest.approx(0.0, abs=0.02)


@pytest.mark.parametrize("mode", SIGNS)
def test_sign_feedback_has_the_signs_of_the_weights_and_sizes_drawn_as_the_mode_says(mode: str) -> None:
    """B_1 is solved for from what reaches the two rungs."""
    net, rule = ladders.make(depth=2, width=20, batch=50, classes=20, gain=0.3), FeedbackAlignment(mode)
    forward, bent = net.ladder.weight(1), slopes(net, "tanh")

    def back(step: int) -> Tensor:
        low, high = stepped(net, rule, step=step).drive_feedback.split(20, 1)
        return torch.linalg.lstsq(high, low / bent[0]).solution

    first, again, then = back(0), back(0), back(7)
    assert torch.equal(first.sign(), forward.sign())
    assert torch.equal(then.sign(), forward.sign())
    assert float(first.square().mean()) == pytest.approx(1 / 20, rel=0.15)
    torch.testing.assert_close(first, again)
    assert torch.allclose(first, then, atol=1e-6) == (mode != "brsf")
    assert (float(first.abs().std()) < 1e-6) == (mode == "usf")
    forward.neg_()
    torch.testing.assert_close(back(0), -first)


def digits() -> tuple[Tensor, Tensor]:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.from_numpy((bunch.data / 16 - bunch.data.mean(0) / 16) / (bunch.data.std(0) / 16 + 0.1))
    return x, torch.eye(10, dtype=torch.float64)[torch.from_numpy(bunch.target)]


def course(
    rule_of: Callable[[int], FeedbackAlignment], steps: int = 500, frozen: bool = False
) -> tuple[list[float], list[float], float]:
    """Digits, three rungs: degrees between a sample's update and its gradient, and between B and W, at the
    start, half way and at the end; the accuracy on all digits. Both updates of a rung are outer products with
    what is below, and the angle between them is that between what they multiply it by.

    Args:
        rule_of: the rule of step k. frozen: the rungs stay as they are drawn.
    """
    x, y = digits()
    net = ladders.make(depth=3, width=32, below=64, classes=10, batch=1)
    draw, to_gradient, to_weights = torch.Generator().manual_seed(0), [], []

    def shown(some: Tensor | slice) -> ladders.Net:
        drive = torch.zeros(len(x[some]), 96, dtype=torch.float64)
        return ladders.Net(net.ladder, drive, x[some], net.readout, y[some])

    for k in range(steps + 1):
        rule, here = rule_of(k), shown(torch.randint(len(x), (64,), generator=draw))
        if k % (steps // 2) == 0:
            whole = shown(slice(None))
            found, true = stepped(whole, rule, step=k).drive_feedback, ladders.gradients(whole)[2]
            cos = torch.cosine_similarity(found.unflatten(1, (3, 32)), true.unflatten(1, (3, 32)), dim=2)
            to_gradient.append(float(cos.mean().acos().rad2deg()))
            if "feedback_1" in rule.state:
                cos = [ladders.cosine(rule.state[f"feedback_{n}"], net.ladder.weight(n)) for n in (1, 2)]
                to_weights.append(float(torch.tensor(cos).mean().acos().rad2deg()))
        updates = stepped(here, rule, step=k)
        if frozen:
            updates.ladder.clear()
        learn(net, rule, updates, 0.1)
    right = (shown(slice(None)).values.argmax(1) == y.argmax(1)).double().mean()
    return to_gradient, to_weights, float(right)


@pytest.fixture(scope="module")
def frozen() -> float:
    """The accuracy of a readout on rungs that do not learn."""
    rule = FeedbackAlignment("fa")
    return course(lambda k: rule, frozen=True)[2]


@pytest.mark.parametrize("mode", ["fa", "dfa"])
def test_the_update_turns_towards_the_gradient_and_hidden_rungs_learn(mode: str, frozen: float) -> None:
    """RULES.md T12."""
    rule = FeedbackAlignment(mode)
    turned, _, right = course(lambda k: rule)
    assert turned[0] > turned[1] > turned[2]
    assert turned[2] < 70 < 80 < turned[0]
    assert right > frozen + 0.08


def test_feedback_redrawn_at_every_step_does_not_turn_and_hidden_rungs_do_not_learn(frozen: float) -> None:
    """RULES.md T12, the control."""
    turned, _, right = course(lambda k: FeedbackAlignment("fa", seed=k))
    assert all(80 < angle < 100 for angle in turned)
    assert right < frozen + 0.02


def test_kolen_pollack_feedback_starts_at_random_and_turns_to_the_weights() -> None:
    rule = FeedbackAlignment("kp", decay=0.05)
    turned, apart, _ = course(lambda k: rule)
    assert 80 < apart[0] < 100
    assert apart[0] > apart[1] > apart[2]
    assert apart[2] < 30
    assert turned[0] > turned[1] > turned[2]
    assert turned[2] < 30


@pytest.mark.parametrize("decay", [0.1, 0.0])
def test_the_gap_between_w_and_b_shrinks_by_the_decay_whatever_the_product(decay: float) -> None:
    net, rule, gaps = ladders.make(depth=3), FeedbackAlignment("kp", decay=decay), []
    for _ in range(60):
        updates = stepped(net, rule)
        pairs = [(net.ladder.weight(k), rule.state[f"feedback_{k}"]) for k in (1, 2)]
        pairs.append((net.readout, rule.state["feedback_readout"]))
        gaps.append(torch.stack([(w - b).norm() for w, b in pairs]))
        learn(net, rule, updates, 0.1)
    expected = torch.full((3,), (1 - 0.1 * decay) ** 59, dtype=torch.float64)
    torch.testing.assert_close(gaps[-1] / gaps[0], expected, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("mode", ["fa", "usf", "frsf", "dfa"])
@pytest.mark.filterwarnings("ignore:Using a non-full backward hook")
def test_equal_to_biotorch(mode: str) -> None:
    """RULES.md T11: its gradients with these weights; its matrix of a layer is for the layer's input, so that
    a direct matrix stands one layer up."""
    pytest.importorskip("biotorch")
    layers = pytest.importorskip(f"biotorch.layers.{mode}")
    net, rule = ladders.make(depth=3, drives=False), FeedbackAlignment(mode)
    updates, signal = stepped(net, rule), (net.values - net.target) / 7
    forward = [net.ladder.weight(k) for k in range(3)] + [net.readout[:, :-1]]
    bias = [net.ladder.get_buffer(f"bias_{k}") for k in range(3)] + [net.readout[:, -1]]
    with torch.enable_grad():
        z, chain = net.below, []
        for k, w in enumerate(forward):
            out = {"output_dim": 4} if mode == "dfa" else {}
            layer = layers.Linear(w.shape[1], w.shape[0], layer_config={}, **out).double()
            layer.weight.data, layer.bias.data = w.clone(), bias[k].clone()
            if mode == "dfa":
                layer.loss_gradient = signal
                layer.weight_backward.data = rule.state[f"direct_{k - 1}"] if k else w.new_zeros(4, 5)
            elif mode == "usf":
                layer.scaling_factor = (7 if k == 3 else w.shape[1]) ** -0.5  # R has an input of 1 besides
            elif k:
                layer.weight_backward.data = rule.state[f"feedback_{'readout' if k == 3 else k}"][:, :6]
            chain.append(layer)
            z = layer(z) if k == 3 else torch.tanh(layer(z))
        (0.5 * (net.target - z).square().sum(1).mean()).backward()
    torch.testing.assert_close(z.detach(), net.values, **EXACT)
    for k in range(3):
        torch.testing.assert_close(updates.ladder[f"weight_{k}"], -chain[k].weight.grad, **EXACT)
        torch.testing.assert_close(updates.ladder[f"bias_{k}"], -chain[k].bias.grad, **EXACT)
    whole = torch.cat([chain[3].weight.grad, chain[3].bias.grad[:, None]], 1)
    torch.testing.assert_close(updates.readout, -whole, **EXACT)


@pytest.mark.parametrize("mode", MODES)
def test_the_ledger_is_true_for_every_mode(mode: str) -> None:
    assert [f for f in audit(lambda: FeedbackAlignment(mode)) if f.lie] == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("depth", [1, 6])
def test_any_ladder_one_sample_weights_at_zero_and_either_precision(
    mode: str, reads: str, depth: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        net = ladders.make(depth=depth, classes=1, batch=1, reads=reads, activation="relu", gain=0.0)
        net.ladder.to(dtype)
        net.drive, net.below = net.drive.to(dtype), net.below.to(dtype)
        net.readout, net.target = net.readout.to(dtype), net.target.to(dtype)
        updates = stepped(net, FeedbackAlignment(mode))
        assert updates.finite()
        tensors = [*updates.ladder.values(), updates.readout, updates.drive_feedback, *updates.own.values()]
        assert all(t.dtype == dtype and t.grad_fn is None for t in tensors)
        assert {n: t.shape for n, t in updates.ladder.items()} == {
            n: t.shape for n, t in net.ladder.weights().items()
        }


def test_wrong_options_say_what_is_possible() -> None:
    with pytest.raises(ValueError, match=r"mode='fb'.*'fa', 'dfa'"):
        FeedbackAlignment("fb")
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="at least 0"):
            FeedbackAlignment(decay=wrong)
