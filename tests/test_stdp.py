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
from arr_coc.rules.stdp import STDP, pair_stdp, reward_error, trace

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
