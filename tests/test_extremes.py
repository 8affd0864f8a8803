"""Adversarial streams: nothing becomes NaN, P stays positive definite, and weights stay bounded."""

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, Learner, Percept, attach, state
from arr_coc.readout import PrecisionReadout

SMALL = {"width": 6, "expansion": 5, "spread": 0}


def sound(learner: Learner, weight: float) -> None:
    """No NaN, P positive definite, |R| within a bound."""
    for name, tensor in state.tensors(learner).items():
        assert not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()), name
    for familiar in (learner.readout.familiarity, learner.scenes):
        assert torch.linalg.eigvalsh(familiar.precision).min() > 0
    assert learner.readout.weight.abs().max() < weight


def test_equal_samples_end_at_the_closed_form() -> None:
    torch.manual_seed(0)
    readout, x = PrecisionReadout(24), 10 * torch.randn(1, 24, dtype=torch.float64)
    rows, n = readout.rows(["a", "b"], grow=True), 4000
    for i in range(n):
        readout.learn(x, rows[i % 2 : i % 2 + 1])
    # Sherman and Morrison: R = n/2 x' / (1 + n x'x), P = I - n x x' / (1 + n x'x)
    scale = n / (1 + n * float(x.square().sum()))
    torch.testing.assert_close(readout.weight, (scale / 2 * x).expand(2, 24), rtol=0, atol=1e-10)
    expected = torch.eye(24, dtype=torch.float64) - scale * x.T @ x
    torch.testing.assert_close(readout.familiarity.precision, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["collinear", "huge"])
def test_collinear_and_huge_features_keep_p_positive(kind: str) -> None:
    """The recursion alone lost it for features of a size of 1e8: eigenvalues of -2e-16, not 1e-19."""
    draw = torch.Generator().manual_seed(1)
    readout, base = PrecisionReadout(12), torch.randn(2, 12, generator=draw, dtype=torch.float64)
    rows = readout.rows(["a", "b"], grow=True)
    for i in range(1024):
        p = torch.randn(1, 2 if kind == "collinear" else 12, generator=draw, dtype=torch.float64)
        readout.learn(p @ base if kind == "collinear" else 1e8 * p, rows[i % 2 : i % 2 + 1])
    precision, weight = readout.familiarity.precision, readout.weight.clone()
    assert torch.linalg.eigvalsh(precision).min() > 0
    found = precision.clone()
    readout.solve()
    torch.testing.assert_close(found, readout.familiarity.precision, rtol=0, atol=1e-8)
    torch.testing.assert_close(weight, readout.weight, rtol=0, atol=1e-8)


def test_huge_rows_rewarded_on_their_own_stay_positive_too() -> None:
    draw = torch.Generator().manual_seed(1)
    readout = PrecisionReadout(12)
    rows = readout.rows(["a", "b"], grow=True)
    for i in range(1024):
        p = 1e8 * torch.randn(1, 12, generator=draw, dtype=torch.float64)
        if i % 2:
            readout.learn_outcomes(p, rows[:1], torch.tensor([0.5]))
        else:
            readout.learn(p, rows[1:])
    assert torch.linalg.eigvalsh(readout.partial_precision[0]).min() > 0
    found = readout.weight.clone()
    readout.solve()
    torch.testing.assert_close(found, readout.weight, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [1e-30, 1e12, 1e30, 3e38])
@pytest.mark.parametrize("learns", ["nothing", "relevance", "all"])
def test_activations_of_any_size_leave_a_sound_state(size: float, learns: str) -> None:
    """What overflows is refused; without relevance to learn, NaN had gone into the sums."""
    draw = torch.Generator().manual_seed(2)
    rungs = {"eta_ladder": 0.05, "ladder_gain": 0.5} if learns == "all" else {}
    config = ArrCocConfig(**SMALL, **rungs, learn_relevance=learns != "nothing")  # type: ignore[arg-type]
    learner = Learner(config, [6, 6], 4)
    for i in range(40):
        scale = size if i % 3 == 0 else 1.0
        tokens = tuple(scale * torch.randn(2, 9, 6, generator=draw).clamp(-0.8, 0.8) for _ in range(2))
        own = (scale * torch.randn(2, 9, generator=draw)).clamp(-1e30, 1e30)
        attention, context = torch.rand(2, 9, generator=draw), torch.randn(2, 4, generator=draw)
        percept = Percept(tokens, attention, context, own=own)
        if scale < 1e18:  # whose square float32 still holds
            assert bool(torch.isfinite(learner.learn(percept, ["a", "b"]).values).all())
            continue
        before = {k: v.clone() for k, v in state.tensors(learner).items()}
        with pytest.raises(FloatingPointError, match="nothing was changed"):
            learner.learn(percept, ["a", "c"])
        now = state.tensors(learner)
        assert all(torch.equal(before[name], now[name]) for name in now)
    sound(learner, 10.0)


@pytest.mark.parametrize("samples", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_same_sample_again_and_again(samples: int) -> None:
    draw = torch.Generator().manual_seed(3)
    learner, batch = Learner(ArrCocConfig(**SMALL), [6, 6], 4), 200  # type: ignore[arg-type]
    one = Percept(
        tuple(torch.randn(1, 9, 6, generator=draw).expand(batch, 9, 6) for _ in range(2)),
        torch.rand(1, 9, generator=draw).expand(batch, 9),
        torch.randn(1, 4, generator=draw).expand(batch, 4),
        own=torch.randn(1, 9, generator=draw).expand(batch, 9),
    )
    for _ in range(samples // batch):
        learner.learn(one, ["a"] * batch)
    sound(learner, 10.0)
    answer = learner.answer(one[0:1])
    torch.testing.assert_close(answer.values, torch.ones(1, 1, dtype=torch.float64), rtol=0, atol=0.01)
    assert float(answer.trust) == 1.0


@pytest.mark.parametrize("kind", ["dual", "generative"])
@pytest.mark.parametrize("size", [1e30, 3e38, float("nan"), float("inf")])
def test_pixels_beyond_measure_are_refused_and_change_nothing(kind: str, size: float) -> None:
    attached = attach(
        tiny.dual() if kind == "dual" else tiny.generative(), ArrCocConfig(width=16, expansion=8)
    )

    def lesson() -> dict[str, torch.Tensor]:
        if kind == "dual":
            return {**tiny.dual_inputs(), "labels": torch.tensor([0, 1, 2])}
        return tiny.answered(tiny.generative_inputs(), torch.tensor([[7, 2], [8, 2]]))

    attached.learn(**lesson())
    before = {k: t.clone() for k, t in state.tensors(attached.learner).items()}
    wrong = lesson()
    wrong["pixel_values"] = wrong["pixel_values"].clone()
    wrong["pixel_values"][0] *= size
    with pytest.raises(ValueError, match=r"not finite for entries \[0|NaN or infinity in samples \[0\]"):
        attached.learn(**wrong)
    now = state.tensors(attached.learner)
    assert all(torch.equal(before[name], now[name]) for name in now)
    attached.learn(**lesson())
    sound(attached.learner, 10.0)
    attached.detach()
