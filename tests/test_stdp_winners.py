"""STDP among winners: closed forms and loops, who wins and how often, what is learned, and the ledger."""

import math
from dataclasses import replace

import ladders
import numpy as np
import pytest
import torch
from torch import Tensor

from arr_coc.eval.rules_audit import audit
from arr_coc.rules import Updates
from arr_coc.rules.stdp import STDP, winner_stdp

EXACT = {"rtol": 0.0, "atol": 1e-12}


def step(net: ladders.Net, rule: STDP, **changes) -> Updates:
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


WTA = [{"mode": "wta"}, {"mode": "wta", "modulation": "reward"}]


def by_winners(pre, post, w, m, tau, dt) -> np.ndarray:
    """Every post spike and synapse on its own. M is (B,)."""
    steps, batch, n_pre = pre.shape
    total = np.zeros(w.shape)
    for k in range(batch):
        for t in range(steps):
            seen = [sum(math.exp(-(t - s) * dt / tau) * pre[s, k, j] for s in range(t)) for j in range(n_pre)]
            length = math.sqrt(sum(e**2 for e in seen))
            for i in range(len(w)):
                if post[t, k, i] and length:
                    for j in range(n_pre):
                        total[i, j] += m[k] * (seen[j] / length - w[i, j])
    return total


def signed_trains(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """ON and OFF trains (30, B, 4), winners (30, B, 5) and weights."""
    draw = torch.Generator().manual_seed(2)
    on = (torch.rand(30, batch, 4, generator=draw) < 0.3).double()
    off = (torch.rand(on.shape, generator=draw) < 0.3).double() * (1 - on)
    post = torch.eye(5, dtype=torch.float64)[torch.randint(5, on.shape[:2], generator=draw)]
    return on - off, post, torch.randn(5, 4, generator=draw, dtype=torch.float64)


def run_wta(net: ladders.Net, rule: STDP, steps: int, rate: float) -> None:
    """Plain SGD on one batch, spikes drawn anew in each step."""
    for k in range(steps):
        for name, direction in step(net, rule, step=k).ladder.items():
            net.ladder.get_buffer(name).add_(rate * direction)


def shares(net: ladders.Net, rule: STDP, when: int = 10**6) -> Tensor:
    """How often each neuron of the first rung wins."""
    return rule.winners(net.climb.pre_activations[0], 0, when).mean((0, 1))


@pytest.mark.parametrize("rewarded", [False, True])
def test_all_winners_together_are_the_sum_over_time_samples_and_synapses(rewarded: bool) -> None:
    pre, post, w = signed_trains()
    m = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64) if rewarded else None
    found = winner_stdp(pre, post, w, m, tau_plus=6.0, dt=0.7)
    each = np.ones(3) if m is None else m.numpy()
    expected = by_winners(pre.numpy(), post.numpy(), w.numpy(), each, 6.0, 0.7)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_a_batch_of_two_wins_as_much_as_both_alone() -> None:
    pre, post, w = signed_trains(batch=2)
    m = torch.tensor([0.7, 0.2], dtype=torch.float64)
    one, two = (winner_stdp(pre[:, [k]], post[:, [k]], w, m[[k]]) for k in range(2))
    assert one.abs().max() > 0.1
    torch.testing.assert_close(winner_stdp(pre, post, w, m), one + two, **EXACT)


def test_a_winner_moves_towards_the_closed_form_of_what_it_saw_and_later_spikes_do_not_count() -> None:
    pre, post = torch.zeros(40, 1, 3, dtype=torch.float64), torch.zeros(40, 1, 2, dtype=torch.float64)
    pre[5, 0, 0], pre[11, 0, 1], pre[25, 0, 2], pre[20, 0, 2], post[20, 0, 1] = 1.0, -1.0, 1.0, 1.0, 1.0
    w = torch.full((2, 3), 0.3, dtype=torch.float64)
    moved = winner_stdp(pre, post, w, tau_plus=8.0)
    seen = np.array([math.exp(-15 / 8), -math.exp(-9 / 8), 0.0])
    np.testing.assert_allclose(moved[1].numpy(), seen / math.hypot(*seen) - 0.3, rtol=0, atol=1e-12)
    assert not moved[0].any()
    again = winner_stdp(pre, post, w + moved, tau_plus=8.0)  # W_i is what it saw: at rest
    torch.testing.assert_close(again, torch.zeros_like(again), **EXACT)


def test_a_winner_that_saw_nothing_learns_nothing_but_its_threshold() -> None:
    net = ladders.make(depth=1)
    net.below.zero_()
    updates = step(net, STDP(mode="wta"))
    assert not updates.ladder["weight_0"].any()
    assert updates.ladder["bias_0"].any()


@pytest.mark.parametrize("options", WTA)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_every_rung_learns_from_the_winners_below_it_the_first_from_on_and_off_trains(
    options: dict, activation: str
) -> None:
    """The whole step again in numpy: the same spikes, one winner at a time, mean over time and batch."""
    net = ladders.make(depth=3, width=4, below=3, batch=5, activation=activation, reads="all")
    rule = STDP(**options, time_steps=12, peak=0.8, temperature=0.7, tau_plus=9.0, dt=2.0)
    updates, climb = step(net, rule, step=5), net.climb
    values, error = net.values.numpy(), net.target.numpy() - net.values.numpy()
    m = np.ones(5)
    if "modulation" in options:
        m = error[np.arange(5), values.argmax(1)].clip(0)
        assert 0 < np.count_nonzero(m) < 5
    on, off = rule.spikes(climb.below, 0, 5), rule.spikes(-climb.below, 0, 5)
    assert on.any()
    assert off.any()
    pre = on - off
    for level in range(3):
        post, w = rule.winners(climb.pre_activations[level], level, 5), net.ladder.weight(level)
        expected = by_winners(pre.numpy(), post.numpy(), w.numpy(), m, 9.0, 2.0) / (12 * 5)
        np.testing.assert_allclose(updates.ladder[f"weight_{level}"].numpy(), expected, rtol=0, atol=1e-12)
        assert np.abs(expected).max() > 1e-3
        share = np.array([sum(post[t, k, i] for t in range(12) for k in range(5)) / 60 for i in range(4)])
        np.testing.assert_allclose(updates.ladder[f"bias_{level}"].numpy(), 1 / 4 - share, atol=1e-12)
        pre = post


def test_one_neuron_wins_each_time_step_as_often_as_the_softmax_says() -> None:
    a = torch.tensor([[0.3, -0.2, 1.0, 0.0], [5.0, 0.0, 0.0, -900.0]], dtype=torch.float64)
    spikes = STDP(mode="wta", time_steps=20000, temperature=0.5).winners(a, 0, 0)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert (spikes.sum(2) == 1).all()
    p = np.exp(2 * a.numpy()) / np.exp(2 * a.numpy()).sum(1, keepdims=True)
    assert (np.abs(spikes.mean(0).numpy() - p) <= 4 * np.sqrt(p * (1 - p) / 20000)).all()
    sure = STDP(mode="wta", temperature=1e-4).winners(a, 0, 0)
    assert sure.argmax(2).unique(dim=0).tolist() == [[2, 0]]


def test_winners_are_drawn_anew_each_step_from_the_seed_and_apart_for_each_rung() -> None:
    a = torch.zeros(3, 6)
    first = STDP(mode="wta").winners(a, 1, 3)
    assert torch.equal(first, STDP(mode="wta").winners(a, 1, 3))
    for other in (STDP(mode="wta", seed=1).winners(a, 1, 3), STDP(mode="wta").winners(a, 1, 4)):
        assert not torch.equal(first, other)
    assert not torch.equal(first, STDP(mode="wta").winners(a, 2, 3))


@pytest.mark.parametrize("start", [0, 1])
def test_two_neurons_learn_the_means_of_two_clusters(start: int) -> None:
    """Inputs so large that every ON or OFF neuron spikes whenever it can: a trace at unit length is their
    signs over sqrt(n), and W_i comes to the mean of these over its cluster. At the start one wins all."""
    draw = torch.Generator().manual_seed(6)
    centres = torch.tensor([[1.0] * 8 + [-1.0] * 4, [-1.0] * 2 + [1.0] * 2 + [-1.0] * 4 + [1.0] * 4])
    label = torch.arange(40) % 2
    flips = 1 - 2 * (torch.rand(40, 12, generator=draw) < 0.1).double()
    signs = centres[label].double() * flips
    net = ladders.make(depth=1, width=2, below=12, batch=40, gain=0.1, drives=False)
    net.below = 50 * signs
    net.ladder.get_buffer("bias_0")[start] += 40.0
    rule = STDP(mode="wta", peak=1.0, time_steps=5)
    assert shares(net, rule)[start] == 1
    run_wta(net, rule, 600, 0.5)
    means = [signs[label == c].mean(0).numpy() / math.sqrt(12) for c in range(2)]
    w = net.ladder.weight(0).numpy()
    first = int(np.argmax(means[0] @ w.T))
    np.testing.assert_allclose(w[first], means[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(w[1 - first], means[1], rtol=0, atol=1e-6)
    assert shares(net, rule).tolist() == [0.5, 0.5]


def test_a_silent_neuron_comes_back_and_in_the_end_all_win_alike() -> None:
    net = ladders.make(depth=1, width=4, below=6, batch=50, drives=False)
    net.ladder.get_buffer("bias_0")[2] = -8.0
    rule = STDP(mode="wta", time_steps=20, temperature=0.5)
    assert shares(net, rule)[2] == 0
    assert float(step(net, rule).ladder["bias_0"][2]) == 1 / 4  # as much as one that never wins can get
    run_wta(net, rule, 1000, 0.3)
    np.testing.assert_allclose(shares(net, rule).numpy(), 1 / 4, atol=0.07)


@pytest.mark.parametrize("options", WTA)
@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_a_row_within_unit_length_stays_there_and_one_outside_comes_in(options: dict, gain: float) -> None:
    net = ladders.make(depth=2, width=4, batch=3, gain=gain)
    net.target.mul_(5.0)  # M well above 1 at times, which the rate has to make up for
    start = [net.ladder.weight(level).norm(dim=1) for level in range(2)]
    rule = STDP(**options, time_steps=4)
    for k in range(500):
        for name, direction in step(net, rule, step=k).ladder.items():
            if name.startswith("weight"):
                net.ladder.get_buffer(name).add_(0.1 * direction)
        for level in range(2):
            norm = net.ladder.weight(level).norm(dim=1)
            assert (norm <= start[level].clamp_min(1) + 1e-12).all()
    assert all((s > 1).all() == (gain > 1) for s in start)


def test_reward_counts_what_was_better_than_expected_and_thresholds_do_not_hear_of_it() -> None:
    net = ladders.make(depth=2)
    chosen = torch.eye(4, dtype=torch.float64)[[1] * 7]
    plain = step(net, STDP(mode="wta")).ladder
    rule = STDP(mode="wta", modulation="reward")
    better, worse = (step(net, rule, error=m * chosen).ladder for m in (0.5, -0.5))
    for level in range(2):
        w, b = f"weight_{level}", f"bias_{level}"
        assert plain[w].any()
        torch.testing.assert_close(better[w], 0.5 * plain[w], **EXACT)
        assert not worse[w].any()
        assert torch.equal(better[b], plain[b])
        assert torch.equal(worse[b], plain[b])


@pytest.mark.parametrize("options", WTA)
@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_readout_of_winners_is_taught_by_the_delta_rule_too(options: dict, reads: str) -> None:
    net = ladders.make(reads=reads)
    _, readout, _ = ladders.gradients(net)
    updates = step(net, STDP(**options))
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    retold = step(net, STDP(**options), error=1 - net.target)
    same = all(torch.equal(retold.ladder[n], u) for n, u in updates.ladder.items())
    assert same == ("modulation" not in options)


@pytest.mark.parametrize("options", WTA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_winners_learn_from_one_sample_and_from_weights_at_zero(options: dict, dtype: torch.dtype) -> None:
    for depth, activation, batch in ((1, "relu", 1), (3, "tanh", 1), (6, "relu", 5)):
        net = ladders.make(depth=depth, activation=activation, gain=0.0, batch=batch)
        net.ladder.to(dtype)
        net = replace(net, **{n: getattr(net, n).to(dtype) for n in ("drive", "below", "readout")})
        net.readout[net.target.sum(0) > 0] -= 0.1  # the right answer is better than expected
        before = {n: t.clone() for n, t in net.ladder.weights().items()}
        with torch.inference_mode():
            updates = step(net, STDP(**options, peak=0.9), error=net.target.to(dtype))
        for tensor in (*updates.ladder.values(), updates.readout):
            assert tensor.dtype == dtype
            assert torch.isfinite(tensor).all()
        assert all(updates.ladder[f"weight_{level}"].any() for level in range(depth))
        assert all(torch.equal(before[n], t) for n, t in net.ladder.weights().items())


@pytest.mark.parametrize("options", WTA)
def test_the_ledger_of_winners_is_the_truth(options: dict) -> None:
    found = {f.entry: f for f in audit(lambda: STDP(**options, peak=1.0))}
    assert not [f for f in found.values() if f.lie]
    told = {"global_scalar", "update_locking"} if "modulation" in options else set()
    assert {name for name, f in found.items() if f.verdict == "used"} == told | {"layer_wide_matrix"}


def test_who_wins_is_a_matter_of_the_whole_rung() -> None:
    """Its ledger says so: what one neuron learns moves with what its neighbours do."""
    net = ladders.make(depth=1)
    plain = step(net, STDP(mode="wta")).ladder["weight_0"][0]
    net.drive[:, 1:] += 2.0
    assert not torch.equal(step(net, STDP(mode="wta")).ladder["weight_0"][0], plain)


def test_reward_is_left_out_of_winners_unless_it_is_asked_for() -> None:
    assert (STDP().modulation, STDP(mode="wta").modulation) == ("reward", "none")
    assert STDP(mode="wta", modulation="reward").modulation == "reward"
    assert STDP(modulation="none").modulation == "none"


@pytest.mark.parametrize(
    ("option", "value"), [("mode", "triplets"), ("temperature", 0.0), ("temperature", float("inf"))]
)
def test_an_impossible_mode_or_temperature_is_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}={value!r}: possible are"):
        STDP(**{option: value})
