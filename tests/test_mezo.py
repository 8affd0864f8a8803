"""MeZO: an unbiased estimate from two passes, and weights that come back bit for bit."""

import ladders
import pytest
import torch

from arr_coc.rules.mezo import MeZO, zeroth_order_step


def flat(updates) -> torch.Tensor:
    return torch.cat([t.flatten() for t in (*updates.ladder.values(), updates.readout)])


def true(net: ladders.Net) -> torch.Tensor:
    weights, readout, _ = ladders.gradients(net)
    return torch.cat([t.flatten() for t in (*weights.values(), readout)])


def estimates(net: ladders.Net, count: int, **options) -> torch.Tensor:
    return torch.stack(
        [flat(MeZO(**options).step(net.ladder, net.climb, net.teaching(step=k))) for k in range(count)]
    )


def test_the_mean_estimate_is_the_gradient_within_three_sigma() -> None:
    net = ladders.make(depth=2, width=4, below=3, classes=3)
    drawn, gradient = estimates(net, 2000, eps=1e-4), true(net)
    z = (drawn.mean(0) - gradient) / (drawn.std(0) / len(drawn) ** 0.5)
    assert z.abs().max() < 4.5  # of some fifty weights
    assert (z.abs() < 3).double().mean() > 0.97


def test_the_cosine_with_the_gradient_follows_the_law_of_n_directions_and_p_weights() -> None:
    net = ladders.make(depth=2, width=8, below=8, classes=6)
    gradient = true(net)
    for n in (50, 1000):
        found = [
            ladders.cosine(
                flat(MeZO(samples=n, eps=1e-4).step(net.ladder, net.climb, net.teaching(step=k))), gradient
            )
            for k in range(2)
        ]
        law = (n / (n + len(gradient) + 1)) ** 0.5
        assert sum(found) / 2 == pytest.approx(law, rel=0.05 if n == 1000 else 0.2)


def test_one_direction_is_the_central_difference_along_it() -> None:
    net, rule = ladders.make(), MeZO(eps=1e-5)
    updates = rule.step(net.ladder, net.climb, net.teaching(step=3))
    z = [rule._direction(n, t, 3, 0) for n, t in net.ladder.weights().items()]
    z.append(rule._direction("readout", net.readout, 3, 0))
    along = torch.cat([t.flatten() for t in z])
    slope = along @ true(net)
    torch.testing.assert_close(flat(updates), slope * along, rtol=1e-6, atol=1e-8)


def test_the_same_seed_and_step_draw_the_same_direction_and_another_does_not() -> None:
    net = ladders.make()
    one = flat(MeZO(seed=1).step(net.ladder, net.climb, net.teaching(step=5)))
    assert torch.equal(one, flat(MeZO(seed=1).step(net.ladder, net.climb, net.teaching(step=5))))
    for seed, step in ((2, 5), (1, 6)):
        assert not torch.equal(
            one, flat(MeZO(seed=seed).step(net.ladder, net.climb, net.teaching(step=step)))
        )


def test_without_the_ladder_as_a_function_there_is_nothing_to_probe() -> None:
    net = ladders.make()
    with pytest.raises(ValueError, match="reward alone"):
        MeZO().step(net.ladder, net.climb, net.teaching(forward=None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    weights = [torch.randn(40, 30).to(dtype), torch.randn(7).to(dtype)]
    before, seen = [w.clone() for w in weights], []
    zeroth_order_step(
        weights, lambda: seen.append(weights[0].clone()) or float(len(seen)), rate=0.0, eps=0.05
    )
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))
    middle = (seen[0].double() + seen[1].double()) / 2
    torch.testing.assert_close(middle, before[0].double(), rtol=0.02, atol=0.02)
    assert not torch.equal(seen[0], seen[1])


def test_without_a_copy_they_come_back_to_the_last_bits() -> None:
    weights = [torch.randn(50, 20)]
    before = weights[0].clone()
    zeroth_order_step(weights, lambda: 1.0, rate=0.0, exact=False)
    torch.testing.assert_close(weights[0], before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("what", ["raises", "nan"])
def test_after_a_failed_loss_nothing_has_changed(call: int, what: str) -> None:
    weights, calls = [torch.randn(5, 5)], []
    before = weights[0].clone()

    def loss() -> float:
        calls.append(1)
        if len(calls) == call:
            if what == "raises":
                raise RuntimeError("out of memory")
            return float("nan")
        return 1.0

    with pytest.raises(RuntimeError if what == "raises" else FloatingPointError):
        zeroth_order_step(weights, loss, rate=0.1)
    assert torch.equal(weights[0], before)


def test_a_small_quadratic_is_learned() -> None:
    aim, weights = torch.linspace(-1, 1, 12), [torch.zeros(8), torch.zeros(4)]
    for seed in range(1500):
        zeroth_order_step(weights, lambda: (torch.cat(weights) - aim).square().sum(), rate=0.02, seed=seed)
    torch.testing.assert_close(torch.cat(weights), aim, rtol=0, atol=0.02)


def test_wrong_arguments_say_what_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one"):
        zeroth_order_step([], lambda: 0.0)
    with pytest.raises(ValueError, match="floating point"):
        zeroth_order_step([torch.zeros(3, dtype=torch.long)], lambda: 0.0)
    with pytest.raises(ValueError, match="above 0"):
        zeroth_order_step([torch.zeros(3)], lambda: 0.0, eps=0.0)
    for wrong in ({"loss": "hinge"}, {"eps": 0.0}, {"samples": 0}):
        with pytest.raises(ValueError, match=r"possible|needed"):
            MeZO(**wrong)
