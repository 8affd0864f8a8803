"""Feedback alignment: the formulas, what stays fixed, and that forward weights come to fit the feedback."""

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.rules import Updates
from arr_coc.rules.feedback_alignment import MODES, FeedbackAlignment

EXACT = {"rtol": 0.0, "atol": 1e-12}


def stepped(net: ladders.Net, rule: FeedbackAlignment, **changes) -> Updates:
    rule.prepare(net.ladder, net.readout.shape[0])
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


def by_hand(net: ladders.Net, out: Tensor, back: list[Tensor]) -> list[Tensor]:
    """Updates of W from delta_l = (e B_R + delta_{l+1} B_{l+1}) * f'(a_l), sample by sample; reads top."""
    climb, error = net.climb, net.target - net.values
    total = [torch.zeros_like(net.ladder.weight(k)) for k in range(net.ladder.depth)]
    for b in range(len(error)):
        down = out[:, :-1].T @ error[b]
        for level in reversed(range(net.ladder.depth)):
            bent = down * (1 - climb.states[level][b] ** 2)
            below = climb.below[b] if level == 0 else climb.states[level - 1][b]
            total[level] += torch.outer(bent, below) / len(error)
            down = back[level].T @ bent if level else down
    return total


@pytest.mark.parametrize("mode", ["fa", "frsf", "usf", "kp"])
def test_errors_come_down_by_the_feedback_weights_and_the_slope(mode: str) -> None:
    net, rule = ladders.make(depth=4), FeedbackAlignment(mode)
    rule.prepare(net.ladder, 4)
    if mode == "kp":
        for tensor in rule.state.values():
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    updates = stepped(net, rule)
    forward = [net.ladder.weight(k) for k in range(4)]
    if mode == "usf":
        out = net.readout.sign() / net.readout.shape[1] ** 0.5
        back = [w.sign() / w.shape[1] ** 0.5 for w in forward]
    elif mode == "frsf":
        out = rule.state["feedback_readout"].abs() * net.readout.sign()
        back = [None] + [rule.state[f"feedback_{k}"].abs() * forward[k].sign() for k in range(1, 4)]
    else:
        out, back = rule.state["feedback_readout"], [None] + [rule.state[f"feedback_{k}"] for k in (1, 2, 3)]
    decay = rule.decay if mode == "kp" else 0.0
    for level, expected in enumerate(by_hand(net, out, back)):
        shrunk = decay * forward[level] if level else 0.0
        torch.testing.assert_close(updates.ladder[f"weight_{level}"], expected - shrunk, **EXACT)


def test_direct_feedback_takes_the_whole_error_to_every_rung_by_its_own_matrix() -> None:
    net, rule = ladders.make(depth=3), FeedbackAlignment("dfa")
    updates = stepped(net, rule)
    error, climb = net.target - net.values, net.climb
    for level in range(3):
        bent = (error @ rule.state[f"direct_{level}"]) * (1 - climb.states[level] ** 2)
        below = climb.below if level == 0 else climb.states[level - 1]
        expected = torch.einsum("bi,bj->ij", bent, below) / len(error)
        torch.testing.assert_close(updates.ladder[f"weight_{level}"], expected, **EXACT)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_with_the_forward_weights_as_feedback_it_is_backpropagation(activation: str) -> None:
    for mode in ("fa", "kp"):
        net, rule = ladders.make(depth=4, activation=activation), FeedbackAlignment(mode, decay=0.0)
        rule.prepare(net.ladder, 4)
        rule.state["feedback_readout"] = net.readout.clone()
        for level in range(1, 4):
            rule.state[f"feedback_{level}"] = net.ladder.weight(level).clone()
        weights, readout, drives = ladders.gradients(net)
        updates = stepped(net, rule)
        for name, expected in weights.items():
            torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
        torch.testing.assert_close(updates.readout, readout, **EXACT)
        torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_readout_is_exact_and_the_expansion_has_no_way_down(mode: str, reads: str) -> None:
    net, rule = ladders.make(reads=reads), FeedbackAlignment(mode, decay=0.0)
    updates = stepped(net, rule)
    torch.testing.assert_close(updates.readout, ladders.gradients(net)[1], **EXACT)
    other = ladders.make(reads=reads)
    other.ladder.expand_weight.mul_(-3.0)
    climb = net.climb
    again = FeedbackAlignment(mode, decay=0.0)
    again.prepare(other.ladder, 4)
    told = again.step(other.ladder, climb, net.teaching())
    assert torch.equal(told.drive_feedback, updates.drive_feedback)


@pytest.mark.parametrize("mode", ["fa", "dfa", "frsf"])
def test_fixed_feedback_is_never_learned_and_a_class_has_its_row_whenever_it_comes(mode: str) -> None:
    net, rule, late = ladders.make(), FeedbackAlignment(mode), FeedbackAlignment(mode)
    updates = stepped(net, rule)
    assert updates.own == {}
    late.prepare(net.ladder, 1)
    late.prepare(net.ladder, 4)
    assert rule.state.keys() == late.state.keys()
    assert all(torch.equal(rule.state[n], late.state[n]) for n in rule.state)
    other = FeedbackAlignment(mode, seed=1)
    other.prepare(net.ladder, 4)
    assert not torch.equal(other.state["feedback_readout"], rule.state["feedback_readout"])


def test_batchwise_sizes_are_drawn_anew_at_every_step_and_signs_are_those_of_the_weights() -> None:
    net, rule = ladders.make(), FeedbackAlignment("brsf")
    first, again = stepped(net, rule, step=0), stepped(net, rule, step=0)
    then = stepped(net, rule, step=7)
    assert torch.equal(first.ladder["weight_0"], again.ladder["weight_0"])
    assert not torch.equal(first.ladder["weight_0"], then.ladder["weight_0"])
    back = rule._back("feedback_1", net.ladder.weight(1), 3)
    assert torch.equal(back.sign(), net.ladder.weight(1).sign())


def digits() -> tuple[Tensor, Tensor]:
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    x = torch.from_numpy((bunch.data / 16 - bunch.data.mean(0) / 16) / (bunch.data.std(0) / 16 + 0.1))
    return x, torch.eye(10, dtype=torch.float64)[torch.from_numpy(bunch.target)]


class Redrawn(FeedbackAlignment):
    """The control: feedback that is another one at every step."""

    def _back(self, name: str, forward: Tensor, step: int) -> Tensor:
        drawn = torch.randn(forward.shape, generator=self.draw(name, step), dtype=forward.dtype)
        return drawn / forward.shape[-1] ** 0.5


def angles(rule: FeedbackAlignment, steps: int, rate: float = 0.05) -> tuple[list[float], float]:
    """Degrees to the gradient of W below the top rung as learning goes on; the accuracy on all digits."""
    x, y = digits()
    net = ladders.make(depth=3, width=32, below=64, classes=10, batch=1)
    draw = torch.Generator().manual_seed(0)
    found = []
    for k in range(steps + 1):
        some = torch.randint(len(x), (64,), generator=draw)
        here = ladders.Net(
            net.ladder, torch.zeros(64, 96, dtype=torch.float64), x[some], net.readout, y[some]
        )
        updates = stepped(here, rule, step=k)
        if k in (0, steps // 2, steps):
            true = ladders.gradients(here)[0]
            cos = [ladders.cosine(updates.ladder[f"weight_{n}"], true[f"weight_{n}"]) for n in (0, 1)]
            found.append(float(torch.tensor(cos).mean().acos().rad2deg()))
        for name, direction in updates.ladder.items():
            net.ladder.get_buffer(name).add_(rate * direction)
        for name, direction in updates.own.items():
            rule.state[name] = rule.state[name].double() + rate * direction
        net.readout += rate * updates.readout
    whole = ladders.Net(net.ladder, torch.zeros(len(x), 96, dtype=torch.float64), x, net.readout, y)
    return found, float((whole.values.argmax(1) == y.argmax(1)).double().mean())


@pytest.mark.parametrize("mode", ["fa", "dfa"])
def test_the_update_turns_towards_the_gradient_and_redrawn_feedback_does_not(mode: str) -> None:
    turned, right = angles(FeedbackAlignment(mode), 800)
    assert turned[-1] < 70 < turned[0]
    assert turned[-1] < turned[0] - 15
    stayed, wrong = angles(Redrawn("fa"), 800)
    assert min(stayed) > 75
    assert right > wrong + 0.03


def test_kolen_pollack_feedback_grows_alike_with_the_weights() -> None:
    rule = FeedbackAlignment("kp", decay=0.02)
    turned, _ = angles(rule, 800, rate=0.1)
    assert turned[-1] < 35
    gap = []
    net = ladders.make(depth=2)
    start = FeedbackAlignment("kp", decay=0.1)
    start.prepare(net.ladder, 4)
    for _ in range(60):
        updates = stepped(net, start)
        gap.append(float((net.ladder.weight(1) - start.state["feedback_1"]).norm()))
        net.ladder.get_buffer("weight_1").add_(0.1 * updates.ladder["weight_1"])
        start.state["feedback_1"] = start.state["feedback_1"] + 0.1 * updates.own["feedback_1"]
    # W - B shrinks by exactly 1 - rate x decay a step, whatever the product
    assert gap[-1] / gap[0] == pytest.approx(0.99**59, rel=1e-9)


def test_wrong_options_say_what_is_possible() -> None:
    with pytest.raises(ValueError, match="'fa', 'dfa'"):
        FeedbackAlignment("fb")
    with pytest.raises(ValueError, match="at least 0"):
        FeedbackAlignment(decay=-1.0)
