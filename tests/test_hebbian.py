"""RULES.md T15: SoftHebb and Oja's rule on the rungs, the delta rule on the readout."""

from dataclasses import replace

import ladders
import numpy as np
import pytest
import torch
from torch import Tensor

from arr_coc.eval.rules_audit import audit
from arr_coc.ladder import Climb
from arr_coc.rules import Teaching, Updates
from arr_coc.rules.hebbian import Hebbian

EXACT = {"rtol": 0.0, "atol": 1e-12}
OPTIONS = [{"mode": m, "modulation": g} for m in ("softhebb", "oja") for g in ("none", "reward")]


def learn(net: ladders.Net, rule: Hebbian, steps: int, rate: float, inputs: Tensor, batch: int) -> None:
    """Plain SGD on inputs drawn from `inputs` (N, below), or on all of them if `batch` is their number."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        some = torch.randint(len(inputs), (batch,), generator=draw)
        net.below = inputs if batch == len(inputs) else inputs[some]
        climb = net.climb
        error = net.target - climb.phi @ net.readout.T
        teaching = Teaching(error, net.target, net.readout, net.target - error, torch.zeros(1, 1))
        for name, direction in rule.step(net.ladder, climb, teaching).ladder.items():
            net.ladder.get_buffer(name).add_(rate * direction)


def clusters(count: int, below: int, batch: int) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    centres = torch.randn(count, below, generator=draw, dtype=torch.float64)
    noise = torch.randn(batch, below, generator=draw, dtype=torch.float64)
    return centres[torch.randint(count, (batch,), generator=draw)] + 0.3 * noise


def softhebb_by_hand(w, z, a, gates, temperature, anneal) -> np.ndarray:
    """One sample and one neuron at a time, in numpy."""
    total = np.zeros(w.shape)
    for k in range(len(z)):
        p = np.exp((a[k] - a[k].max()) / temperature)
        p /= p.sum()
        for i in range(len(w)):
            y = p[i] if i == np.argmax(a[k]) else -p[i]
            total[i] += gates[k] * y * (z[k] - (w[i] @ z[k]) * w[i]) / len(z)
    total *= np.mean(np.abs(gates)) / np.abs(total).max()
    return np.stack([abs(np.linalg.norm(row) - 1) ** anneal * d for row, d in zip(w, total, strict=True)])


def oja_by_hand(w, z, a, gates) -> np.ndarray:
    """Delta w_i = y_i (z - sum_k u_k w_k), one sample and one neuron at a time."""
    total = np.zeros(w.shape)
    for k in range(len(z)):
        rebuilt = sum((w[j] @ z[k]) * w[j] for j in range(len(w)))
        for i in range(len(w)):
            total[i] += gates[k] * a[k][i] * (z[k] - rebuilt) / len(z)
    return total / max(1.0, np.abs(total).max())


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gain", [0.3, 2.0])
def test_every_rung_moves_as_the_formula_says_with_drives_and_biases(
    options: dict, activation: str, gain: float
) -> None:
    net = ladders.make(depth=3, activation=activation, reads="all", gain=gain)
    net.readout.mul_(0.1)
    climb, teaching = net.climb, net.teaching()
    rule = Hebbian(temperature=0.7, anneal=0.8, **options)
    updates = rule.step(net.ladder, climb, teaching)
    right = net.target.argmax(1)
    gates = np.clip([float(teaching.error[k, c]) for k, c in enumerate(right)], 0, 1)
    assert len(set(gates)) > 2
    gates = gates if options["modulation"] == "reward" else np.ones(len(right))
    below = [climb.below, *climb.states[:-1]]
    for level in range(3):
        w, z, a = (t.numpy() for t in (net.ladder.weight(level), below[level], climb.pre_activations[level]))
        if options["mode"] == "oja":
            expected = oja_by_hand(w, z, a, gates)
        else:
            expected = softhebb_by_hand(w, z, a, gates, 0.7, 0.8)
        np.testing.assert_allclose(updates.ladder[f"weight_{level}"].numpy(), expected, atol=1e-12)
        assert not updates.ladder[f"bias_{level}"].any()


@pytest.mark.parametrize("drives", [False, True])
@pytest.mark.parametrize("gain", [5.0, 0.2])
def test_softhebb_rests_where_every_row_has_norm_one_in_every_rung(gain: float, drives: bool) -> None:
    net = ladders.make(depth=2, below=12, batch=20, gain=gain, drives=drives)
    start = [net.ladder.weight(level).norm(dim=1) for level in range(2)]
    assert all(((norm - 1).abs() > 0.3).all() for norm in start)
    learn(net, Hebbian(temperature=1.0), 700, 0.1, clusters(6, 12, 1000), 20)
    for level in range(2):
        norm = net.ladder.weight(level).norm(dim=1)
        torch.testing.assert_close(norm, torch.ones_like(norm), rtol=0.0, atol=0.02)


def test_a_row_of_norm_one_is_at_rest_only_if_it_is_annealed() -> None:
    net = ladders.make(depth=1)
    w = net.ladder.weight(0)
    w.div_(w.norm(dim=1, keepdim=True))
    w[0].mul_(2)
    rested = Hebbian().step(net.ladder, net.climb, net.teaching()).ladder["weight_0"]
    free = Hebbian(anneal=0.0).step(net.ladder, net.climb, net.teaching()).ladder["weight_0"]
    assert rested[1:].abs().max() < 1e-7  # (rounding of the norm) ** .5
    assert free[1:].abs().max() > 1e-3
    torch.testing.assert_close(rested[0], free[0], **EXACT)  # | 2 - 1 | ** .5 = 1


def test_the_winner_moves_towards_the_input_and_losers_away_from_it() -> None:
    net = ladders.make(depth=1, batch=1, gain=0.2)
    w, z = net.ladder.weight(0), net.below[0]
    assert w.norm(dim=1).max() < 1  # then z . (z - u W_i) > 0 by Cauchy and Schwarz
    for favoured in range(6):
        net.drive.zero_()
        net.drive[0, favoured] = 2.0  # the competition sees drives
        moved = Hebbian(temperature=1.0).step(net.ladder, net.climb, net.teaching()).ladder["weight_0"] @ z
        assert (moved > 0).tolist() == [k == favoured for k in range(6)]
        assert (moved < 0).tolist() == [k != favoured for k in range(6)]


def test_a_low_temperature_leaves_losers_alone() -> None:
    net = ladders.make(depth=1, batch=1)
    rule = Hebbian(temperature=1e-3)
    moved = rule.step(net.ladder, net.climb, net.teaching()).ladder["weight_0"]
    winner = int(net.climb.pre_activations[0].argmax())
    assert moved[winner].abs().max() > 1e-3
    assert moved[[k for k in range(6) if k != winner]].abs().max() < 1e-12


def principal(inputs: Tensor, count: int) -> np.ndarray:
    """The first eigenvectors of the second moment, (below, count)."""
    z = inputs.numpy()
    return np.linalg.eigh(z.T @ z / len(z))[1][:, ::-1][:, :count]


def spread_out(below: int, samples: int = 60) -> Tensor:
    """Inputs whose axes have clearly different variances, turned."""
    draw = torch.Generator().manual_seed(4)
    z = torch.randn(samples, below, generator=draw, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(below, below, generator=draw, dtype=torch.float64)).Q
    return z * 0.6 ** torch.arange(below) @ turn


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_one_oja_neuron_becomes_the_first_principal_component(activation: str) -> None:
    inputs = spread_out(6)
    net = ladders.make(depth=1, width=1, below=6, batch=60, drives=False, activation=activation)
    net.ladder.get_buffer("bias_0").zero_()
    first, second = principal(inputs, 2).T
    assert abs(net.ladder.weight(0)[0].numpy() @ first) < 0.9
    learn(net, Hebbian(mode="oja"), 800, 0.2, inputs, 60)
    w = net.ladder.weight(0)[0].numpy()
    np.testing.assert_allclose(w * np.sign(w @ first), first, atol=1e-9)
    assert abs(w @ second) < 1e-9


def test_several_oja_neurons_share_the_principal_subspace_and_not_one_component() -> None:
    inputs = spread_out(6)
    net = ladders.make(depth=1, width=3, below=6, batch=60, drives=False)
    net.ladder.get_buffer("bias_0").zero_()
    learn(net, Hebbian(mode="oja"), 1200, 0.4, inputs, 60)
    w, basis = net.ladder.weight(0).numpy(), principal(inputs, 3)
    np.testing.assert_allclose(w @ w.T, np.eye(3), atol=1e-8)
    np.testing.assert_allclose(w.T @ w, basis @ basis.T, atol=1e-6)
    assert np.abs(w @ basis[:, 0]).max() < 0.999  # rotated within it: Oja's rule, not Sanger's


def step(net: ladders.Net, rule: Hebbian, **changes) -> Updates:
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reads", ["top", "all"])
def test_the_readout_alone_is_supervised_by_the_delta_rule(options: dict, reads: str) -> None:
    net = ladders.make(reads=reads)
    _, readout, _ = ladders.gradients(net)
    updates = step(net, Hebbian(**options))
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    assert updates.drive_feedback is None
    other = torch.randn(net.target.shape, generator=torch.Generator().manual_seed(5)).double()
    retold = step(net, Hebbian(**options), error=other)
    same = all(torch.equal(retold.ladder[n], u) for n, u in updates.ladder.items())
    assert same == (options["modulation"] == "none")


@pytest.mark.parametrize("mode", ["softhebb", "oja"])
def test_the_gate_is_the_error_at_the_right_answer_and_its_size_counts_at_batch_one(mode: str) -> None:
    net = ladders.make(depth=2, batch=1, gain=0.2)
    net.below.mul_(0.1)  # under the limit of Oja's steps
    plain = step(net, Hebbian(mode=mode)).ladder
    rule, elsewhere = Hebbian(mode=mode, modulation="reward"), 1 - net.target
    for told, gate in ((0.5, 0.5), (0.25, 0.25), (0.0, 0.0), (-0.5, 0.0), (3.0, 1.0)):
        gated = step(net, rule, error=told * net.target + 3.0 * elsewhere).ladder
        for name, u in plain.items():
            torch.testing.assert_close(gated[name], gate * u, **EXACT)


def test_where_only_the_chosen_answer_is_rewarded_a_wrong_choice_teaches_the_rungs_nothing() -> None:
    net = ladders.make()
    chosen = torch.zeros_like(net.target)
    chosen[:, 1] = 1.0
    target = net.target * chosen  # what the learner makes of a reward
    wrong = step(net, Hebbian(modulation="reward"), target=0 * target, error=-0.3 * chosen)
    assert not any(u.any() for u in wrong.ladder.values())
    assert target.any()
    mixed = step(net, Hebbian(modulation="reward"), target=target, error=chosen * (target - 0.3))
    assert mixed.ladder["weight_0"].any()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_at_zero_are_kicked_by_their_drives_and_nothing_else_changes(
    options: dict, reads: str, dtype: torch.dtype
) -> None:
    for depth, activation, batch in ((1, "relu", 1), (3, "tanh", 1), (6, "relu", 5)):
        for drives in (True, False):
            net = ladders.make(
                depth=depth, reads=reads, activation=activation, gain=0.0, batch=batch, drives=drives
            )
            net.ladder.to(dtype)
            net = replace(net, **{n: getattr(net, n).to(dtype) for n in ("drive", "below", "readout")})
            before = {n: t.clone() for n, t in net.ladder.weights().items()}
            with torch.inference_mode():
                updates = step(net, Hebbian(**options))
            for tensor in (*updates.ladder.values(), updates.readout):
                assert tensor.dtype == dtype
                assert torch.isfinite(tensor).all()
            assert updates.ladder["weight_0"].any()  # by the drive, or by the bias alone
            assert all(torch.equal(before[n], t) for n, t in net.ladder.weights().items())


def test_without_any_input_there_is_nothing_to_learn_and_nothing_to_divide_by() -> None:
    net = ladders.make(depth=2, gain=0.0, drives=False)
    for name, tensor in net.ladder.weights().items():
        tensor.zero_() if name.startswith("bias") else None
    net.below.zero_()
    for options in OPTIONS:
        assert not any(u.any() for u in step(net, Hebbian(**options)).ladder.values())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("gain", [0.0, 1.0, 8.0])
def test_weights_stay_small_one_sample_at_a_time(options: dict, gain: float) -> None:
    net = ladders.make(depth=2, batch=1, gain=gain, activation="relu")
    inputs = 5 * clusters(6, 5, 200)
    learn(net, Hebbian(**options), 500, 0.1, inputs, 1)
    for level in range(2):
        assert float(net.ladder.weight(level).norm(dim=1).max()) < max(4.0, 2 * gain)


def test_it_finds_clusters_that_random_weights_of_norm_one_do_not_separate() -> None:
    """Each neuron's share of its favourite cluster among its wins; unsupervised."""
    draw = torch.Generator().manual_seed(6)
    centres = torch.linalg.qr(torch.randn(12, 6, generator=draw, dtype=torch.float64)).Q.T * 2
    label = torch.randint(6, (600,), generator=draw)
    inputs = centres[label] + 0.4 * torch.randn(600, 12, generator=draw, dtype=torch.float64)

    silent = torch.zeros(600, 6, dtype=torch.float64)

    def purity(climb: Climb) -> float:
        wins = climb.pre_activations[0].argmax(1)
        return sum(int(label[wins == k].bincount().max()) for k in wins.unique()) / 600

    net = ladders.make(depth=1, below=12, batch=10, drives=False, gain=3.0)
    net.ladder.get_buffer("bias_0").zero_()
    before = purity(net.ladder.climb(silent, inputs, None))
    learn(net, Hebbian(), 400, 0.1, inputs, 10)
    after = purity(net.ladder.climb(silent, inputs, None))
    assert before < 0.75, before
    assert after > 0.9, after


@pytest.mark.parametrize("options", OPTIONS)
def test_its_ledger_is_the_truth_whatever_the_options(options: dict) -> None:
    found = {f.entry: f for f in audit(lambda: Hebbian(**options))}
    assert not [f for f in found.values() if f.lie]
    assert (found["weight_transport"].verdict == "used") == (options["mode"] == "oja")
    assert (found["global_scalar"].verdict == "used") == (options["modulation"] == "reward")


@pytest.mark.parametrize(
    ("option", "value"),
    [("mode", "hebb"), ("temperature", 0.0), ("anneal", -0.5), ("modulation", "dopamine")],
)
def test_an_impossible_option_is_refused_with_what_was_given(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option}={value!r}: possible are"):
        Hebbian(**{option: value})
