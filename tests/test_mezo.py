"""MeZO: an unbiased estimate from two passes, and weights that come back bit for bit (T18)."""

from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.rules.mezo import MeZO, zeroth_order_step
from arr_coc.rules.protocol import Updates


def flat(updates: Updates) -> Tensor:
    return torch.cat([t.flatten() for t in (*updates.ladder.values(), updates.readout)])


def true(net: ladders.Net) -> Tensor:
    weights, readout, _ = ladders.gradients(net)
    return torch.cat([t.flatten() for t in (*weights.values(), readout)])


def estimates(net: ladders.Net, count: int, **options) -> Tensor:
    rule = MeZO(**options)
    return torch.stack([flat(rule.step(net.ladder, net.climb, net.teaching(step=k))) for k in range(count)])


def bits(tensors: list[Tensor]) -> list[Tensor]:
    """So that -0 is not 0 and NaN is NaN."""
    return [t.detach().clone().view(torch.uint8) for t in tensors]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# -- the rule -----------------------------------------------------------------------------------------------


def test_the_mean_estimate_is_the_gradient_within_three_sigma() -> None:
    net = ladders.make(depth=2, width=4, below=3, classes=3)
    drawn, gradient = estimates(net, 2000, eps=1e-4), true(net)
    sigmas = (drawn.mean(0) - gradient) / (drawn.std(0) / len(drawn) ** 0.5)
    assert sigmas.abs().max() < 4  # of 51 weights, the most that chance allows
    assert (sigmas.abs() < 3).double().mean() > 0.97
    assert sigmas.square().mean() == pytest.approx(1, abs=0.5)
    against = (drawn.mean(0) + gradient) / (drawn.std(0) / len(drawn) ** 0.5)
    assert against.abs().max() > 8  # that of the other sign is told apart


@pytest.mark.parametrize(("n", "within"), [(50, 0.2), (1000, 0.05)])
def test_the_cosine_with_the_gradient_follows_the_law_of_n_directions_and_p_weights(
    n: int, within: float
) -> None:
    net = ladders.make(depth=2, width=8, below=8, classes=6)
    gradient = true(net)
    assert len(gradient) == 2 * 8 * 9 + 6 * 9
    rule = MeZO(samples=n, eps=1e-4)
    updates = [rule.step(net.ladder, net.climb, net.teaching(step=k)) for k in range(2)]
    found = [ladders.cosine(flat(u), gradient) for u in updates]
    assert sum(found) / 2 == pytest.approx((n / (n + len(gradient) + 1)) ** 0.5, rel=within)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("some_rivals", [False, True])
@pytest.mark.parametrize("reads", ["top", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_update_is_the_slope_of_the_loss_along_z_times_z(
    loss: str, some_rivals: bool, reads: str, dtype: torch.dtype
) -> None:
    """z is read off what the ladder was asked for; the slope along it is autograd's, of W, b, R and U."""
    net = ladders.make(reads=reads)
    net.ladder.to(dtype)
    net = replace(net, drive=net.drive.to(dtype), below=net.below.to(dtype), readout=net.readout.to(dtype))
    rivals = torch.tensor([True, True, False, True]) if some_rivals else None
    relevance = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    asked: list[dict[str, Tensor]] = []

    def values_of(copies: dict[str, Tensor]) -> Tensor:
        drive = net.drive * (1 + copies["relevance"].sin().sum())
        return net.ladder.climb(drive, net.below, None, copies).phi @ copies["readout"].T

    def forward(copies: dict[str, Tensor]) -> Tensor:
        assert not torch.is_grad_enabled()
        asked.append({n: t.clone() for n, t in copies.items()})
        return values_of(copies)

    teaching = replace(net.teaching(), rivals=rivals, relevance=relevance, forward=forward)
    eps = 1e-4 if dtype == torch.float64 else 1e-3
    rule = MeZO(loss=loss, scale=3.0, eps=eps, seed=5)
    updates = rule.step(net.ladder, net.climb, teaching)
    assert len(asked) == 2
    centre = {**net.ladder.weights(), "relevance": relevance, "readout": net.readout}
    assert all(t.dtype == dtype for copies in asked for t in copies.values())
    z = {n: (asked[0][n] - asked[1][n]).double() / (2 * eps) for n in centre}
    for n, t in centre.items():
        torch.testing.assert_close((asked[0][n] + asked[1][n]) / 2, t.to(dtype), rtol=0, atol=1e-6)
    copies = {n: t.to(dtype).clone().requires_grad_() for n, t in centre.items()}
    v, t = values_of(copies).double(), net.target
    if some_rivals:
        v, t = v[:, [0, 1, 3]], t[:, [0, 1, 3]]
    if loss == "squared":
        objective = -0.5 * ((t - v) ** 2).sum(1).mean()
    else:
        objective = ((3 * v * t).sum(1) - t.sum(1) * torch.logsumexp(3 * v, 1)).mean()
    found = torch.autograd.grad(objective, list(copies.values()))
    slope = sum((g.double() * z[n]).sum() for n, g in zip(copies, found, strict=True))
    assert abs(slope) > 0.1
    given = {**updates.ladder, "relevance": updates.relevance, "readout": updates.readout}
    assert given.keys() == centre.keys()
    for n, update in given.items():
        assert update.dtype == dtype
        rough = 1e-4 if dtype == torch.float64 else 5e-3
        torch.testing.assert_close(update.double(), slope * z[n], rtol=rough, atol=rough * float(abs(slope)))


def test_the_same_seed_and_step_draw_the_same_direction_and_another_does_not() -> None:
    net = ladders.make()

    def update(seed: int, step: int) -> Tensor:
        return flat(MeZO(seed=seed).step(net.ladder, net.climb, net.teaching(step=step)))

    one = update(1, 5)
    torch.manual_seed(7)
    assert torch.equal(one, update(1, 5))
    assert abs(ladders.cosine(one, update(2, 5))) < 0.4
    assert abs(ladders.cosine(one, update(1, 6))) < 0.4


def test_a_large_loss_that_z_does_not_move_leaves_the_slope_as_it_is_in_float32() -> None:
    net = ladders.make()
    net.ladder.float()
    net = replace(net, drive=net.drive.float(), below=net.below.float(), readout=net.readout.float())
    constant = torch.tensor([0.0, 1.0, 1.0, 1.0])

    def update(first: float) -> Tensor:
        teaching = net.teaching()
        assert teaching.forward is not None
        target = torch.cat([torch.full((7, 1), first), net.target[:, 1:].float()], 1)
        return flat(
            MeZO().step(
                net.ladder,
                net.climb,
                replace(teaching, target=target, forward=lambda c: net.teaching().forward(c) * constant),
            )
        )

    torch.testing.assert_close(update(1e4), update(0.0), rtol=1e-3, atol=1e-4)


def test_directions_are_averaged() -> None:
    net = ladders.make()
    alone = flat(MeZO().step(net.ladder, net.climb, net.teaching()))
    twice = 2 * flat(MeZO(samples=2).step(net.ladder, net.climb, net.teaching())) - alone  # the second one
    assert abs(ladders.cosine(alone, twice)) < 0.4
    assert 0.1 < twice.norm() / alone.norm() < 10


@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("reads", ["top", "all"])
def test_a_ladder_of_zeros_and_a_batch_of_one_give_finite_updates(depth: int, reads: str) -> None:
    net = ladders.make(depth=depth, reads=reads, activation="relu", gain=0.0, batch=1)
    updates = MeZO().step(net.ladder, net.climb, net.teaching())
    assert updates.finite()
    assert flat(updates).abs().sum() > 0


def test_without_the_ladder_as_a_function_there_is_nothing_to_probe() -> None:
    net = ladders.make()
    with pytest.raises(ValueError, match="reward alone"):
        MeZO().step(net.ladder, net.climb, net.teaching(forward=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "hinge"},
        {"eps": 0.0},
        {"eps": float("nan")},
        {"scale": 0.0},
        {"samples": 0},
        {"samples": 1.5},
    ],
)
def test_wrong_options_say_what_is_possible(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"possible|needed"):
        MeZO(**wrong)


# -- any weights of a model ---------------------------------------------------------------------------------


def awkward(dtype: torch.dtype) -> list[Tensor]:
    """Weights whose small parts a probe rounds away."""
    draw = torch.Generator().manual_seed(0)
    wide = torch.randn(40, 30, generator=draw).to(dtype) * 10.0 ** torch.randint(
        -6, 3, (40, 30), generator=draw
    )
    return [wide.to(dtype), torch.tensor([0.0, 1e-7, 1.0, -3e4] + 8 * [-0.0]).to(dtype)]


@pytest.mark.parametrize("keep", ["all", "each"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_come_back_bit_for_bit(dtype: torch.dtype, keep: str) -> None:
    weights = awkward(dtype)
    before, seen = bits(weights), []

    def loss() -> float:
        seen.append(bits(weights))
        return float(len(seen))

    zeroth_order_step(weights, loss, rate=0.0, eps=0.05, keep=keep)
    assert same(bits(weights), before)
    assert len(seen) == (2 if keep == "all" else 4)
    for k, probed in enumerate(seen):
        moved = [not torch.equal(a, b) for a, b in zip(probed, before, strict=True)]
        assert moved == ([True, True] if keep == "all" else [k < 2, k >= 2])


def test_without_a_copy_they_come_back_but_for_the_last_bits() -> None:
    weights = awkward(torch.float32)
    before, old = bits(weights), [w.clone() for w in weights]
    zeroth_order_step(weights, lambda: 1.0, rate=0.0, keep="none")
    assert not same(bits(weights), before)  # what is kept is needed
    for w, b in zip(weights, old, strict=True):
        torch.testing.assert_close(w, b, rtol=3e-7, atol=3e-9)


@pytest.mark.parametrize("keep", ["all", "none"])
def test_probes_are_eps_z_to_both_sides_and_the_step_is_minus_rate_g_z(keep: str) -> None:
    torch.manual_seed(0)
    weights = [torch.randn(200, 100, dtype=torch.float64), torch.randn(7, dtype=torch.float64)]
    before, seen = [w.clone() for w in weights], []

    def loss() -> Tensor:
        seen.append([w.clone() for w in weights])
        return torch.tensor(5.0 if len(seen) == 1 else 2.0)

    (g,) = zeroth_order_step(weights, loss, eps=0.01, rate=0.1, seed=3, keep=keep)
    assert g == pytest.approx(150.0)
    for k, w in enumerate(weights):
        z = (seen[0][k] - before[k]) / 0.01
        torch.testing.assert_close(before[k] - seen[1][k], 0.01 * z, rtol=0, atol=1e-12)
        torch.testing.assert_close(w, before[k] - 0.1 * 150 * z, rtol=0, atol=1e-9)
        if k == 0:
            assert abs(z.mean()) < 0.03
            assert float(z.var()) == pytest.approx(1, abs=0.03)
            assert float((z**4).mean()) == pytest.approx(3, abs=0.2)  # a Gaussian


def test_one_tensor_at_a_time_gives_each_its_own_slope_at_the_same_point() -> None:
    """Of a linear loss c.w, g is c.z of that tensor alone: no other is moved meanwhile."""
    torch.manual_seed(0)
    weights = [torch.randn(6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)]
    c, before = [torch.randn_like(w) for w in weights], [w.clone() for w in weights]
    found = zeroth_order_step(
        weights, lambda: sum((a * w).sum() for a, w in zip(c, weights, strict=True)), rate=0.1, keep="each"
    )
    for a, w, b, g in zip(c, weights, before, found, strict=True):
        z = (b - w) / (0.1 * g)
        assert float((a * z).sum()) == pytest.approx(g, rel=1e-6)


def test_the_same_seed_draws_the_same_z_in_the_same_order_and_precision() -> None:
    def stepped(weights, seed: int = 1) -> list[Tensor]:
        losses = iter([1.0, 0.0])
        zeroth_order_step(weights, lambda: next(losses), rate=1e-4, seed=seed)
        return list(weights.values()) if isinstance(weights, dict) else weights

    def zeros(*names: str) -> dict[str, Tensor]:
        return {n: torch.zeros(6) for n in names}

    one = stepped([torch.zeros(6), torch.zeros(6)])
    torch.manual_seed(9)
    assert same(one, stepped([torch.zeros(6), torch.zeros(6)]))
    assert not same(one, stepped([torch.zeros(6), torch.zeros(6)], seed=2))
    assert not torch.equal(one[0], one[1])
    half = stepped([torch.zeros(6).bfloat16(), torch.zeros(6).bfloat16()])
    assert same([t.bfloat16() for t in one], half)  # low precision sees the same z, rounded
    named, turned = stepped(zeros("a", "b")), stepped(zeros("b", "a"))
    assert same(named, turned[::-1])  # names keep their z in any order


@pytest.mark.parametrize(("keep", "call"), [("all", 1), ("all", 2), ("each", 1), ("each", 2), ("each", 4)])
@pytest.mark.parametrize("what", ["raises", "nan", "inf"])
def test_after_a_failed_loss_nothing_has_changed(call: int, what: str, keep: str) -> None:
    weights, calls = awkward(torch.float32), []
    before = bits(weights)

    def loss() -> float:
        calls.append(1)
        if len(calls) == call and what == "raises":
            raise RuntimeError("out of memory")
        return float(what) if len(calls) == call else float(len(calls))

    with pytest.raises(RuntimeError if what == "raises" else FloatingPointError, match=r"memory|nothing"):
        zeroth_order_step(weights, loss, rate=0.1, keep=keep)
    assert len(calls) == (call if what == "raises" else call + call % 2)
    assert same(bits(weights), before)


def test_after_a_probe_that_fails_half_way_nothing_has_changed() -> None:
    weights = [torch.randn(5), torch.zeros(1).expand(5)]  # the second cannot be written to
    before = bits(weights[:1])
    with pytest.raises(RuntimeError):
        zeroth_order_step(weights, lambda: 1.0, rate=0.1)
    assert same(bits(weights[:1]), before)


def test_parameters_of_a_model_are_moved_without_a_graph() -> None:
    model = torch.nn.Linear(3, 2)
    data = torch.randn(5, 3)
    before = model.bias.detach().clone()

    def loss() -> Tensor:
        out = model(data).square().mean()
        assert out.grad_fn is None
        return out

    zeroth_order_step({"weight": model.get_parameter("weight")}, loss, rate=0.1)
    assert model.weight.grad is None
    assert model.weight.requires_grad
    assert model.weight.is_leaf
    assert torch.equal(model.bias, before)


@pytest.mark.parametrize("keep", ["all", "each", "none"])
def test_a_small_quadratic_is_learned(keep: str) -> None:
    aim, weights = torch.linspace(-1, 1, 12), [torch.zeros(8), torch.zeros(4)]
    for seed in range(600):
        zeroth_order_step(
            weights, lambda: (torch.cat(weights) - aim).square().sum(), rate=0.02, seed=seed, keep=keep
        )
    torch.testing.assert_close(torch.cat(weights), aim, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("parameters", "options", "said"),
    [
        ([], {}, "at least one"),
        ([torch.zeros(3, dtype=torch.long)], {}, "floating-point"),
        (torch.nn.Linear(2, 2).named_parameters(), {}, "floating-point"),
        ([torch.zeros(3)], {"eps": 0.0}, "above 0"),
        ([torch.zeros(3)], {"eps": float("nan")}, "above 0"),
        ([torch.zeros(3)], {"rate": -1.0}, "at least 0"),
        ([torch.zeros(3)], {"keep": "some"}, "possible are"),
    ],
)
def test_wrong_arguments_say_what_is_needed(parameters, options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        zeroth_order_step(parameters, lambda: 0.0, **options)
