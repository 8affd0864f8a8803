"""RULES.md T16: the window of spike pairs, eligibility, reward; and the rule that draws spikes."""

import math
from dataclasses import replace

import ladders
import numpy as np
import pytest
import torch
from torch import Tensor

from arr_coc.eval.rules_audit import audit
from arr_coc.rules import Teaching, Updates
from arr_coc.rules.stdp import STDP, pair_stdp, reward_error, trace, winner_stdp

EXACT = {"rtol": 0.0, "atol": 1e-12}
WINDOW = {"nu_plus": 0.9, "nu_minus": 0.4, "tau_plus": 17.0, "tau_minus": 31.0}
GAPS = (1, 10, 20, 40)


def train(steps: int, *at: int) -> Tensor:
    """One neuron that spikes at these steps, (T, 1, 1)."""
    spikes = torch.zeros(steps, 1, 1, dtype=torch.float64)
    spikes[list(at)] = 1.0
    return spikes


def random_trains(steps: int = 30, batch: int = 3, n_pre: int = 4, n_post: int = 5) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple((torch.rand(steps, batch, n, generator=draw) < 0.3).double() for n in (n_pre, n_post))


def by_pairs(pre, post, m, tau_e, dt, nu_plus, nu_minus, tau_plus, tau_minus) -> np.ndarray:
    """Every pair of spikes on its own: its change, and what is left of it whenever M comes. M is (T, B)."""
    steps, batch, _ = pre.shape
    total = np.zeros((post.shape[2], pre.shape[2]))
    for k in range(batch):
        for i in range(post.shape[2]):
            for j in range(pre.shape[2]):
                for s in range(steps):
                    for t in range(steps):
                        if s == t or not (post[s, k, i] and pre[t, k, j]):
                            continue
                        gap = (s - t) * dt  # above 0: the post spike came later
                        change = (
                            nu_plus * math.exp(-gap / tau_plus)
                            if gap > 0
                            else -nu_minus * math.exp(gap / tau_minus)
                        )
                        done = max(s, t)
                        for when in range(done, steps):
                            left = (
                                float(when == done)
                                if tau_e is None
                                else math.exp(-(when - done) * dt / tau_e)
                            )
                            total[i, j] += m[when, k] * left * change
    return total


@pytest.mark.parametrize("dt", [1.0, 0.5])
@pytest.mark.parametrize("gap", GAPS)
def test_the_window_of_one_pair_is_the_closed_form(gap: int, dt: float) -> None:
    first, second, steps = train(120, 7), train(120, 7 + round(gap / dt)), {"tau_eligibility": None, "dt": dt}
    causal = pair_stdp(first, second, **WINDOW, **steps)
    acausal = pair_stdp(second, first, **WINDOW, **steps)
    assert abs(float(causal) - 0.9 * math.exp(-gap / 17.0)) < 1e-12
    assert abs(float(acausal) + 0.4 * math.exp(-gap / 31.0)) < 1e-12


def test_spikes_in_the_same_time_step_make_no_pair() -> None:
    assert not pair_stdp(train(50, 9), train(50, 9), **WINDOW).any()
    again = pair_stdp(train(50, 9, 12), train(50, 9, 12), **WINDOW, tau_eligibility=None)
    assert abs(float(again) - (0.9 * math.exp(-3 / 17.0) - 0.4 * math.exp(-3 / 31.0))) < 1e-12


def test_lonely_spikes_change_nothing() -> None:
    assert not pair_stdp(train(20, 3, 8), train(20), **WINDOW).any()
    assert not pair_stdp(train(20), train(20, 3, 8), **WINDOW).any()


def test_earlier_spikes_add_up_in_a_trace_that_does_not_see_its_own_step() -> None:
    spikes, _ = random_trains()
    expected = np.zeros(spikes.shape)
    for t in range(len(spikes)):
        for before in range(t):
            expected[t] += math.exp(-(t - before) * 0.5 / 13.0) * spikes[before].numpy()
    np.testing.assert_allclose(trace(spikes, 13.0, 0.5).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("tau_e", [None, 6.0])
@pytest.mark.parametrize("timed", [False, True])
def test_many_spikes_are_the_sum_over_their_pairs(tau_e: float | None, timed: bool) -> None:
    pre, post = random_trains()
    draw = torch.Generator().manual_seed(1)
    m = torch.randn((30, 3) if timed else (3,), generator=draw, dtype=torch.float64)
    found = pair_stdp(pre, post, m, **WINDOW, tau_eligibility=tau_e, dt=0.7)
    expected = by_pairs(pre.numpy(), post.numpy(), m.expand(30, 3).numpy(), tau_e, 0.7, **WINDOW)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_a_batch_of_two_is_the_sum_of_both() -> None:
    pre, post = random_trains(batch=2)
    m = torch.tensor([0.7, -0.2], dtype=torch.float64)
    one, two = (pair_stdp(pre[:, [k]], post[:, [k]], m[[k]], **WINDOW) for k in range(2))
    assert one.abs().max() > 0.1
    torch.testing.assert_close(pair_stdp(pre, post, m, **WINDOW), one + two, **EXACT)


@pytest.mark.parametrize("wait", [0, 1, 10, 40])
def test_eligibility_waits_for_the_reward_and_decays(wait: int) -> None:
    pulse = torch.zeros(80, 1, dtype=torch.float64)
    pulse[15 + wait] = 2.0  # the pair is complete at step 15
    found = pair_stdp(train(80, 5), train(80, 15), pulse, **WINDOW, tau_eligibility=25.0)
    assert abs(float(found) - 2.0 * 0.9 * math.exp(-10 / 17.0) * math.exp(-wait / 25.0)) < 1e-12


def test_a_reward_before_the_pair_is_complete_comes_too_early() -> None:
    pulse = torch.zeros(80, 1, dtype=torch.float64)
    pulse[:15] = 1.0
    assert not pair_stdp(train(80, 5), train(80, 15), pulse, **WINDOW).any()


def test_without_reward_nothing_changes_and_its_sign_turns_the_change() -> None:
    pre, post = random_trains()
    m = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    plain = pair_stdp(pre, post, m, **WINDOW)
    assert plain.abs().max() > 0.1
    assert torch.equal(pair_stdp(pre, post, -m, **WINDOW), -plain)
    assert not pair_stdp(pre, post, 0 * m, **WINDOW).any()
    assert torch.equal(pair_stdp(pre, post, **WINDOW), pair_stdp(pre, post, torch.ones(3), **WINDOW))


def step(net: ladders.Net, rule: STDP, **changes) -> Updates:
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


OPTIONS = [{"modulation": "reward"}, {"modulation": "none"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_every_rung_learns_from_the_spikes_below_and_its_own(options: dict, activation: str) -> None:
    """The whole step again in numpy: the same spikes, one pair at a time, soft bounds, batch mean."""
    net = ladders.make(depth=2, width=4, below=3, batch=3, activation=activation, reads="all")
    rule = STDP(**options, time_steps=12, peak=0.8, tau_eligibility=9.0, dt=2.0, bound=1.5, **WINDOW)
    updates = step(net, rule, step=5)
    values, error = net.values.numpy(), net.target.numpy() - net.values.numpy()
    m = np.ones(3) if options["modulation"] == "none" else error[np.arange(3), values.argmax(1)]
    layers = [net.climb.below, *net.climb.states]
    trains = [rule.spikes(z, level, 5).numpy() for level, z in enumerate(layers)]
    for level in range(2):
        timed = np.broadcast_to(m, (12, 3))
        raw = by_pairs(trains[level], trains[level + 1], timed, 9.0, 2.0, **WINDOW) / 3
        assert (np.abs(raw) > 1).any() or options["modulation"] == "reward"
        raw, w = np.clip(raw, -1, 1), net.ladder.weight(level).numpy()
        top = 1.5 / math.sqrt(w.shape[1])
        expected = np.where(raw > 0, raw * (top - w), raw * (top + w))
        np.testing.assert_allclose(updates.ladder[f"weight_{level}"].numpy(), expected, rtol=0, atol=1e-12)
        assert np.abs(expected).max() > 1e-3
        assert not updates.ladder[f"bias_{level}"].any()


def test_spikes_come_as_often_as_the_state_says_and_silence_is_silent() -> None:
    z = torch.tensor([[-3.0, 0.0, 0.2, 1.0, 50.0]], dtype=torch.float64)
    spikes = STDP(time_steps=20000, peak=0.3).spikes(z, 0, 0)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    rate = spikes.mean((0, 1)).numpy()
    expected = 0.3 * (1 - np.exp([0.0, 0.0, -0.2, -1.0, -50.0]))
    assert (np.abs(rate - expected) <= 4 * np.sqrt(expected * (1 - expected) / 20000)).all()


def test_spikes_are_drawn_anew_each_step_from_the_seed_and_alike_for_a_rung_and_the_one_above() -> None:
    net = ladders.make(depth=2, activation="relu")

    def weight(seed: int, when: int) -> Tensor:
        return step(net, STDP(seed=seed), step=when).ladder["weight_1"]

    assert torch.equal(weight(0, 3), weight(0, 3))
    assert not torch.equal(weight(0, 3), weight(0, 4))
    assert not torch.equal(weight(0, 3), weight(1, 3))
    z = torch.ones(2, 6)
    assert not torch.equal(STDP().spikes(z, 0, 0), STDP().spikes(z, 1, 0))


def test_independent_spikes_change_a_weight_by_both_rates_and_the_area_of_the_window_on_average() -> None:
    """So with a balanced window a climb teaches nothing on average: timing counts in trains from outside."""
    z = torch.full((4000, 1), 0.9, dtype=torch.float64)
    rate = 0.5 * (1 - math.exp(-0.9))
    rule = STDP(peak=0.5)
    pre, post = (rule.spikes(z, level, 0) for level in range(2))
    for nu_minus in (0.01, 0.005, 0.0):
        mean = float(pair_stdp(pre, post, nu_plus=0.01, nu_minus=nu_minus, tau_eligibility=None)) / 4000
        pairs = sum(math.exp(-gap / 20) * (20 - gap) for gap in range(1, 20))
        assert mean == pytest.approx(rate**2 * (0.01 - nu_minus) * pairs, abs=0.006)
        assert pairs * rate**2 * 0.005 > 0.02


def test_the_modulator_is_how_much_better_the_best_answer_was_than_its_value() -> None:
    values = torch.tensor([[0.1, 0.6, 0.2], [0.9, 0.3, 0.4], [0.2, 0.5, 0.3]])
    target = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])

    def told(error: Tensor) -> list[float]:
        return reward_error(Teaching(error, target, torch.eye(3), values, torch.zeros(1, 1))).tolist()

    assert told(target - values) == pytest.approx([1 - 0.6, 0 - 0.9, 0 - 0.5])
    explored = torch.tensor([[0.0, 0.0, 1.0]] * 3)  # only the chosen answer is rewarded, best or not
    assert told((target - values) * explored) == pytest.approx([0 - 0.2, 0 - 0.4, 1 - 0.3])
    assert told(torch.zeros(3, 3)) == [0.0, 0.0, 0.0]


def test_worse_than_expected_weakens_what_better_would_have_strengthened() -> None:
    net = ladders.make(depth=2, gain=0.0)
    chosen = torch.eye(4, dtype=torch.float64)[[1] * 7]
    rule = STDP(nu_minus=0.0)
    better, worse, none = (step(net, rule, error=m * chosen).ladder["weight_0"] for m in (0.5, -0.5, 0.0))
    assert (better >= 0).all()
    assert better.any()
    torch.testing.assert_close(worse, -better, **EXACT)  # W is at zero, as far from either bound
    assert not none.any()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_readout_alone_is_supervised_by_the_delta_rule(options: dict, reads: str) -> None:
    net = ladders.make(reads=reads)
    _, readout, _ = ladders.gradients(net)
    updates = step(net, STDP(**options))
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    assert updates.drive_feedback is None
    other = torch.randn(net.target.shape, generator=torch.Generator().manual_seed(5)).double()
    retold = step(net, STDP(**options), error=other)
    same = all(torch.equal(retold.ladder[n], u) for n, u in updates.ladder.items())
    assert same == (options["modulation"] == "none")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_and_weights_at_zero_learn_from_their_drives_and_nothing_else_changes(
    options: dict, reads: str, dtype: torch.dtype
) -> None:
    for depth, activation, batch in ((1, "relu", 1), (3, "tanh", 1), (6, "relu", 5)):
        net = ladders.make(depth=depth, reads=reads, activation=activation, gain=0.0, batch=batch)
        net.ladder.to(dtype)
        net = replace(net, **{n: getattr(net, n).to(dtype) for n in ("drive", "below", "readout")})
        net.readout.add_(0.1)
        before = {n: t.clone() for n, t in net.ladder.weights().items()}
        with torch.inference_mode():
            updates = step(net, STDP(**options, peak=0.9))
        for tensor in (*updates.ladder.values(), updates.readout):
            assert tensor.dtype == dtype
            assert torch.isfinite(tensor).all()
        assert updates.ladder["weight_0"].any()
        assert all(torch.equal(before[n], t) for n, t in net.ladder.weights().items())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gain", [0.0, 10.0])
def test_no_weight_leaves_its_bounds_and_one_outside_comes_in(options: dict, gain: float) -> None:
    """2000 large changes at a large rate, one sample at a time."""
    net = ladders.make(depth=1, width=4, batch=1, gain=gain, activation="relu")
    w, top = net.ladder.weight(0), 2.0 / 5**0.5
    start = w.clone()
    net.drive.fill_(30.0)  # a silent neuron would stay where it is
    rule = STDP(**options, nu_plus=0.5, nu_minus=0.2, time_steps=5, bound=2.0)
    draw = torch.Generator().manual_seed(3)
    inputs = torch.randn(2000, 1, 5, generator=draw, dtype=torch.float64)
    for k, z in enumerate(inputs):
        net.below, net.target = z, torch.eye(4, dtype=torch.float64)[[k % 4]]
        climb = net.climb
        values = climb.phi @ net.readout.T
        error = net.target - values
        teaching = Teaching(error, net.target, net.readout, values, torch.zeros(1, 1), step=k)
        w += 0.5 * rule.step(net.ladder, climb, teaching).ladder["weight_0"]
        assert (w.abs() <= start.abs().clamp_min(top) + 1e-12).all()
    assert (w.norm(dim=1) <= 2.0 + 1e-12).all()
    assert (start.norm(dim=1) > 2.0).all() == (gain > 0)


@pytest.mark.parametrize("options", OPTIONS)
def test_its_ledger_is_the_truth_whatever_the_options(options: dict) -> None:
    found = {f.entry: f for f in audit(lambda: STDP(**options, peak=1.0))}
    assert not [f for f in found.values() if f.lie]
    used = {name for name, f in found.items() if f.verdict == "used"}
    assert used == ({"global_scalar", "update_locking"} if options["modulation"] == "reward" else set())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modulation", "dopamine"),
        ("time_steps", 1),
        ("peak", 1.5),
        ("nu_plus", -0.1),
        ("nu_minus", float("nan")),
        ("tau_plus", 0.0),
        ("tau_minus", -1.0),
        ("tau_eligibility", 0.0),
        ("dt", 0.0),
        ("bound", 0.0),
    ],
)
def test_an_impossible_option_is_refused_with_what_was_given(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}={value!r}: possible are"):
        STDP(**{option: value})


# -- "wta": one winner in each time step ---------------------------------------------------------------------

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
    on, _ = random_trains(batch=batch)
    draw = torch.Generator().manual_seed(2)
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
