"""The rule protocol, backpropagation and the attention-gated rule on every form of the ladder."""

import ladders
import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept
from arr_coc.activation import ACTIVATIONS
from arr_coc.eval.rules_audit import audit
from arr_coc.rules import RULES, make_rule

EXACT = {"rtol": 0.0, "atol": 1e-12}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_told_from_the_state_is_the_derivative(name: str) -> None:
    activation = ACTIVATIONS[name]
    a = torch.linspace(-3, 3, 24, dtype=torch.float64, requires_grad=True)
    z = activation.f(a)
    (expected,) = torch.autograd.grad(z.sum(), a)
    for found in (activation.slope(a), activation.slope_at(z)):
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("reads", ["top", "all", "drives"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("depth", [1, 4])
def test_feedback_from_every_answer_is_the_gradient(reads: str, activation: str, depth: int) -> None:
    """RULES.md T9: summed over all output units, the attention-gated update is backpropagation's."""
    net = ladders.make(depth=depth, reads=reads, activation=activation)
    weights, readout, drives = ladders.gradients(net)
    with torch.no_grad():
        updates = make_rule("attention_gated", {}).step(net.ladder, net.climb, net.teaching())
    for name, expected in weights.items():
        torch.testing.assert_close(updates.ladder[name], expected, **EXACT)
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)


@pytest.mark.parametrize("reads", ["all", "top"])
def test_learned_feedback_comes_down_by_weights_of_its_own_that_follow_the_others(reads: str) -> None:
    """The way down is B: with R and W in the place of B the update is the gradient, and B gets the same
    product as what it stands for (RULES.md 1, Kolen-Pollack)."""
    net = ladders.make(depth=3, reads=reads)
    rule = make_rule("attention_gated", {"feedback": "learned", "decay": 0.01, "feedback_start": 1.0})
    rule.prepare(net.ladder, 4)
    drawn = {n: t.clone() for n, t in rule.state.items()}
    tied = make_rule("attention_gated", {})
    with torch.no_grad():
        other = rule.step(net.ladder, net.climb, net.teaching())
        true = tied.step(net.ladder, net.climb, net.teaching())
        assert not torch.allclose(other.ladder["weight_0"], true.ladder["weight_0"], atol=1e-3)
        if reads == "top":  # the expansion of the others has a way down by forward weights alone
            forward = {"readout": net.readout} | {str(k): net.ladder.weight(k) for k in (1, 2)}
            rule.state = {f"feedback_{n}": w.clone() for n, w in forward.items()}
            same = rule.step(net.ladder, net.climb, net.teaching())
            torch.testing.assert_close(same.drive_feedback, true.drive_feedback, **EXACT)
            for name, product in true.ladder.items():
                decay = 0.01 * net.ladder.get_buffer(name) if name in ("weight_1", "weight_2") else 0.0
                torch.testing.assert_close(same.ladder[name], product - decay, **EXACT)
    for k in (1, 2):  # what W and B get differs by the decay of their difference alone
        apart = other.own[f"feedback_{k}"] - other.ladder[f"weight_{k}"]
        gap = net.ladder.weight(k) - drawn[f"feedback_{k}"]
        torch.testing.assert_close(apart, 0.01 * gap, **EXACT)
    apart = other.own["feedback_readout"] - other.readout
    torch.testing.assert_close(apart, 0.01 * (net.readout - drawn["feedback_readout"]), **EXACT)
    assert [f for f in audit(lambda: make_rule("attention_gated", {"feedback": "learned"})) if f.lie] == []


def test_learned_feedback_follows_what_a_late_reward_teaches() -> None:
    options = {"feedback": "learned", "decay": 0.0, "feedback_start": 1.0}
    learner = Learner(ArrCocConfig(**LEARNS, eta_readout=0.1, rule_options=options), [6, 6], 5)
    seen, _ = percepts(1)
    for _ in range(3):
        _, left = learner.act(seen, ["0", "1", "2"])
        weight, readout = learner.ladder.weight(1).clone(), learner.readout.weight.clone()
        back = {n: t.clone() for n, t in learner.rule.state.items()}
        learner.reward(left, torch.tensor([1.0]))
        moved = learner.ladder.weight(1) - weight
        torch.testing.assert_close(learner.rule.state["feedback_1"] - back["feedback_1"], moved)
        step = (learner.readout.weight - readout).float()
        followed = learner.rule.state["feedback_readout"] - back["feedback_readout"]
        torch.testing.assert_close(followed, step, rtol=1e-4, atol=1e-6)
        assert step.abs().max() > 0
    assert moved.abs().max() > 0


def percepts(count: int, seed: int = 0) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(count, 4, 6, generator=draw) for _ in range(2))
    return (
        Percept(tokens, torch.ones(count, 4) / 4, torch.randn(count, 5, generator=draw)),
        [str(int(k)) for k in torch.randint(3, (count,), generator=draw)],
    )


LEARNS = {
    "width": 6,
    "spread": 0,
    "reads": "top",
    "ladder_gain": 1.0,
    "readout": "delta",
    "eta_ladder": 0.1,
    "optimizer": "sgd",
}


def test_a_late_reward_moves_the_ladder_as_the_gradient_asked_when_the_choice_was_made() -> None:
    learner = Learner(ArrCocConfig(**LEARNS, eta_readout=0.2, eta=0.0, explore=0.0), [6, 6], 5)
    seen, _ = percepts(1)
    learner.readout.rows(["0", "1", "2"], grow=True)
    learner.readout.weight.normal_(generator=torch.Generator().manual_seed(1))
    before = {n: t.clone() for n, t in learner.ladder.weights().items()}
    before_readout = learner.readout.weight.clone()
    choice, left = learner.act(seen, ["0", "1", "2"])
    answer = learner.answer(seen)
    names = {n: t.double().clone().requires_grad_() for n, t in before.items()}
    readout = before_readout.clone().requires_grad_()
    drive = torch.cat(answer.climb.drives, 1).double()
    learner.ladder.double()
    phi = learner.ladder.climb(drive, answer.context.double(), None, names).phi
    learner.ladder.float()
    q = (phi @ readout.T)[0, int(choice)]
    grads = torch.autograd.grad(-0.5 * (1.0 - q) ** 2, [*names.values(), readout])
    learner.reward(left, torch.tensor([1.0]))
    for (name, old), g in zip(before.items(), grads, strict=False):
        moved = learner.ladder.get_buffer(name) - old
        torch.testing.assert_close(moved.double(), 0.1 * g, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(learner.readout.weight - before_readout, 0.2 * grads[-1], rtol=1e-4, atol=1e-6)
    others = [k for k in range(3) if k != int(choice)]
    assert torch.equal(learner.readout.weight[others], before_readout[others])


def test_an_action_is_the_value_plus_beta_deviations_of_that_answers_own_statistics() -> None:
    """LinUCB (Li et al., 2010): q_s + beta sqrt(phi' (A_s / rho + I)^-1 phi), A_s over what s was told."""
    config = ArrCocConfig(width=6, expansion=0, spread=0, ridge=0.5, explore=0.0, explore_bonus=2.0)
    learner, names = Learner(config, [6, 6], 5), ["0", "1", "2"]
    seen, labels = percepts(30)
    told = torch.arange(30) % 3  # a choice made elsewhere
    _, left = learner.act(seen, names, told)
    right = torch.tensor([float(names[k] == label) for k, label in zip(told, labels, strict=True)])
    learner.reward(left, right)
    phi = torch.stack([e.phi for e in left]).double()
    asked, _ = percepts(40, seed=9)
    answer = learner.answer(asked)
    now = answer.climb.phi.double()
    hoped = torch.empty(40, 3, dtype=torch.float64)
    for k in range(3):
        mine = (told == k) | (right == 1)
        gram = phi[mine].T @ phi[mine] + 0.5 * torch.eye(phi.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(
            gram, phi[mine].T @ torch.where(told[mine] == k, right[mine].double(), 0.0)
        )
        variance = torch.einsum("bd,de,be->b", now, torch.linalg.inv(gram / 0.5), now)
        hoped[:, k] = now @ weight + 2.0 * variance.sqrt()
    choice, _ = learner.act(asked, names)
    assert torch.equal(choice, hoped.argmax(1))
    assert not torch.equal(choice, answer.values.argmax(1))  # the bonus decided somewhere


@pytest.mark.parametrize("rule", ["feedback_alignment", "attention_gated"])
def test_what_an_action_leaves_behind_came_down_the_rules_own_way(rule: str) -> None:
    options = (
        {"mode": "fa"} if rule == "feedback_alignment" else {"feedback": "learned", "feedback_start": 1.0}
    )
    learner = Learner(ArrCocConfig(**LEARNS, rule=rule, rule_options=options), [6, 6], 5)
    seen, _ = percepts(3)
    learner.readout.rows(["0", "1", "2"], grow=True)
    learner.readout.weight.normal_(generator=torch.Generator().manual_seed(1))
    choice, left = learner.act(seen, ["0", "1", "2"])
    states = torch.stack([e.states for e in left]).transpose(0, 1)  # (L, B, width)
    back = {n: t.clone() for n, t in learner.rule.state.items()}
    top = back["feedback_readout"][choice][:, :6] * (states[1] > 0)
    below = top @ back["feedback_1"] * (states[0] > 0)
    torch.testing.assert_close(torch.stack([e.gates for e in left]), torch.stack([below, top], 1))
    assert below.abs().max() > 0


def test_no_rewards_change_nothing() -> None:
    learner = Learner(ArrCocConfig(width=6, spread=0), [6, 6], 5)
    assert learner.reward([], torch.zeros(0)).shape == (0,)
    assert int(learner.step) == 0


@pytest.mark.parametrize("readout", ["delta", "precision"])
def test_a_reward_that_would_leave_nan_behind_is_an_error_before_anything_changes(readout: str) -> None:
    from dataclasses import replace

    from arr_coc import state

    learner = Learner(ArrCocConfig(**{**LEARNS, "readout": readout}), [6, 6], 5)
    seen, _ = percepts(2)
    _, left = learner.act(seen, ["0", "1"])
    before = {n: t.clone() for n, t in state.tensors(learner).items()}
    for name in ("direction", "phi", "gates"):
        broken = replace(left[1], **{name: getattr(left[1], name) * float("inf")})
        with pytest.raises(FloatingPointError, match="nothing was changed"):
            learner.reward([left[0], broken], torch.tensor([1.0, 0.0]))
    with pytest.raises(FloatingPointError):
        learner.reward(left, torch.tensor([1.0, float("nan")]))
    after = state.tensors(learner)
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    learner.reward(left, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_learns_is_saved_and_goes_on_the_same(name: str, tmp_path) -> None:
    """Any rule by one word in the config: batch 1, classes in turn, restored half way; bit-identical."""
    from arr_coc import state

    def fresh() -> Learner:
        adam = {"optimizer": "adam", "eta_ladder": 0.01, "eta_readout": 0.01, "eta": 0.01}
        return Learner(ArrCocConfig(**(LEARNS | adam), rule=name), [6, 6], 5)

    whole, first = fresh(), fresh()
    start = {n: t.clone() for n, t in first.ladder.weights().items()}
    steps = [percepts(1 + k % 3, seed=k) for k in range(20)]
    for k, (seen, keys) in enumerate(steps):
        keys = [key if k > 5 else "0" for key in keys]
        whole.learn(seen, keys)
        if k < 10:
            first.learn(seen, keys)
    second = fresh()
    saved = {n: t.clone() for n, t in state.tensors(first).items()}
    state.load(second, saved, state.meta(first))
    for seen, keys in steps[10:]:
        second.learn(seen, keys)
    for n, tensor in state.tensors(whole).items():
        assert torch.equal(tensor, state.tensors(second)[n]), n
        assert torch.isfinite(tensor.double()).all(), n
    assert any(not torch.equal(start[n], t) for n, t in whole.ladder.weights().items())


def test_steps_that_are_too_long_end_in_an_error_and_no_nan_enters_the_state() -> None:
    from arr_coc import state

    learner = Learner(
        ArrCocConfig(**LEARNS | {"eta_ladder": 1e12}, eta_readout=1e12, error="squared"), [6, 6], 5
    )
    before: dict[str, torch.Tensor] = {}

    def teach() -> None:
        for k in range(60):
            before.update({n: t.clone() for n, t in state.tensors(learner).items()})
            seen, keys = percepts(2, seed=k)
            learner.learn(seen, keys if k < 2 else ["new", *keys[1:]])

    with pytest.raises(FloatingPointError, match="too long"):
        teach()
    after = state.tensors(learner)
    assert before.keys() == after.keys()
    for n, t in before.items():
        assert torch.equal(t, after[n]), n


@pytest.mark.parametrize("name", [n for n in RULES if n != "backprop"])
def test_a_local_rule_needs_no_autograd(name: str) -> None:
    net = ladders.make()
    rule = make_rule(name, {})
    with torch.inference_mode():
        rule.prepare(net.ladder, 4)
        updates = rule.step(net.ladder, net.climb, net.teaching())
    tensors = [*updates.ladder.values(), updates.readout, *updates.own.values()]
    tensors += [] if updates.drive_feedback is None else [updates.drive_feedback]
    assert all(t.grad_fn is None and not t.requires_grad for t in tensors)
    assert all(torch.isfinite(t).all() for t in tensors)
