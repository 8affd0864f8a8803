"""Sizes of classes are evened out where answers are given, and nowhere else."""

import numpy as np
import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept
from arr_coc.readout import PrecisionReadout

WIDTH, SIZES = 6, (60, 12, 3)


def drawn(seed: int, sizes: tuple[int, ...] = SIZES) -> tuple[torch.Tensor, list[str]]:
    """Samples (n, 6) of classes that lie apart by a fixed pattern each, shuffled; the last entry is 1."""
    draw = torch.Generator().manual_seed(seed)
    means = 1.2 * torch.randn(len(sizes), WIDTH - 1, generator=torch.Generator().manual_seed(99))
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    label = label[torch.randperm(len(label), generator=draw)]
    x = means[label] + torch.randn(len(label), WIDTH - 1, generator=draw)
    return torch.cat([x, torch.ones(len(x), 1)], 1).double(), [str(int(k)) for k in label]


def taught(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> PrecisionReadout:
    phi, labels = drawn(seed, sizes)
    readout = PrecisionReadout(WIDTH, 0.5)
    for start in range(0, len(phi), 10):
        rows = readout.rows(labels[start : start + 10], grow=True)
        readout.learn(phi[start : start + 10], rows)
    return readout


@pytest.mark.parametrize("power", [0.0, 0.33, 0.5, 1.0])
def test_evened_values_are_ridge_regression_on_targets_of_that_height(power: float) -> None:
    """scikit-learn's ridge on one-hot targets times (n / (K n_c))^power."""
    linear = pytest.importorskip("sklearn.linear_model")
    phi, labels = drawn(0)
    target = np.array([[(75 / (3 * SIZES[c])) ** power * (y == str(c)) for c in range(3)] for y in labels])
    joint = linear.Ridge(0.5, fit_intercept=False).fit(phi.numpy(), target)
    readout, (asked, _) = taught(), drawn(1)
    found = readout.evened(readout.values(asked), power)[:, readout.rows(["0", "1", "2"])]
    torch.testing.assert_close(found, torch.tensor(joint.predict(asked.numpy())), rtol=0, atol=1e-9)


def test_classes_of_one_size_keep_their_values_bit_for_bit() -> None:
    readout, (asked, _) = taught(sizes=(20, 20, 20)), drawn(1)
    values = readout.values(asked)
    assert torch.equal(readout.evened(values, 0.5), values)
    assert not torch.equal(taught().evened(values, 0.5), values)


def test_rows_without_samples_or_with_their_own_precision_stay_and_are_not_counted() -> None:
    """By hand: of 60, 12 and 3 samples, and a class that only rewards have told of."""
    readout = taught()
    phi, _ = drawn(1)
    rows = readout.rows(["told", "never"], grow=True)
    readout.learn_outcomes(phi[:4], rows[:1].repeat(4), torch.tensor([0.0, 0.5, 0.0, 0.2]))
    values = readout.values(phi)
    found = readout.evened(values, 0.5)
    assert torch.equal(found[:, rows], values[:, rows])
    assert bool(values[:, rows[0]].any())
    for name, size in zip("012", SIZES, strict=True):
        row = readout.rows([name])[0]
        torch.testing.assert_close(found[:, row], values[:, row] * (25 / size) ** 0.5, rtol=1e-12, atol=0)
    readout.learn_outcomes(phi[:1], readout.rows(["0"]), torch.zeros(1))  # from now on, that one as well
    values, row = readout.values(phi), readout.rows(["0"])[0]
    found = readout.evened(values, 1.0)
    assert torch.equal(found[:, row], values[:, row])
    rare = readout.rows(["2"])[0]
    torch.testing.assert_close(found[:, rare], values[:, rare] * (7.5 / 3), rtol=1e-12, atol=0)


def test_what_is_rare_is_found_more_often() -> None:
    """Mean recall over ten draws of a stream of 60, 12 and 3, asked about as many of each."""
    gained = []
    for seed in range(10):
        readout, (asked, labels) = taught(seed), drawn(seed + 100, (200, 200, 200))
        right = readout.rows(labels)
        plain, evened = (readout.evened(readout.values(asked), k).argmax(1) == right for k in (0.0, 0.5))
        gained.append(float(evened.double().mean() - plain.double().mean()))
    assert np.mean(gained) - 2.3 * np.std(gained, ddof=1) / 10**0.5 > 0.02


def percepts(n: int, seed: int) -> Percept:
    draw = torch.Generator().manual_seed(seed)
    shape = torch.randn(n, 5, 8, generator=draw)
    return Percept((shape, shape), torch.rand(n, 5, generator=draw), torch.randn(n, 4, generator=draw))


def test_what_is_taught_knows_nothing_of_it() -> None:
    """Two learners that differ in `class_balance` alone: the same state, but for the confidence; other
    answers."""
    learners = [
        Learner(ArrCocConfig(width=8, expansion=4, class_balance=k), [8, 8], 4, 0) for k in (0.0, 0.33)
    ]
    for step in range(8):
        for learner in learners:
            learner.learn(percepts(5, step), list("aaaab") if step % 2 else list("aaaaa"))
    plain, evened = (dict(learner.named_buffers()) for learner in learners)
    differ = {name for name in plain if not torch.equal(plain[name], evened[name])}
    assert differ == {"confidence.log_scale"}
    answers = [learner.answer(percepts(3, 50)) for learner in learners]
    assert torch.equal(answers[0].values, answers[1].values)
    assert torch.equal(answers[0].values, answers[0].evened)
    own, keys = torch.zeros(3, 2), ["a", "b"]
    scores = [learner.fuse(own, keys, answer) for learner, answer in zip(learners, answers, strict=True)]
    t = answers[1].trust.unsqueeze(1)
    size = torch.tensor([36.0, 4.0], dtype=torch.float64)  # of 40 labels
    raised = answers[1].values * (20.0 / size) ** 0.33
    wanted = torch.log((1 - t) / 2 + t * (10.0 * raised).softmax(1)) + np.log(2)
    assert bool((t > 0).any())
    torch.testing.assert_close(scores[1].double(), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(scores[0], scores[1])


@pytest.mark.parametrize("given", [-0.1, 1.5, float("nan")])
def test_a_power_that_cannot_be_is_refused(given: float) -> None:
    with pytest.raises(ValueError, match=r"class_balance=.*between 0 and 1"):
        ArrCocConfig(class_balance=given)
