"""Associations over time: pairs by hand, the traces against all pairs, planted lead and lag, shuffled."""

import math

import pytest
import torch
from torch import Tensor

from arr_coc.relevance import TemporalAssociation
from arr_coc.relevance.temporal import apart, match
from arr_coc.rules.stdp import pair_stdp


def window(s: float, tau: float, penalty: float) -> float:
    """What a pair earns whose match comes s after its feature."""
    if s == 0:
        return 0.0
    return math.exp(-s / tau) if s > 0 else -penalty * math.exp(s / tau)


@pytest.mark.parametrize(
    ("feature_at", "match_at", "expected"),
    [
        (0.0, 2.0, math.exp(-2 / 3)),  # announced
        (2.0, 0.0, -0.5 * math.exp(-2 / 3)),  # came too late
        (1.0, 1.0, 0.0),  # at the same time: no pair
        (0.0, 0.25, math.exp(-0.25 / 3)),
    ],
)
def test_one_pair_earns_what_the_window_says(feature_at: float, match_at: float, expected: float) -> None:
    one = TemporalAssociation(1, 1, tau=3.0, penalty=0.5)
    now = 0.0
    for at in sorted({feature_at, match_at}):
        pre, post = torch.tensor([float(at == feature_at)]), torch.tensor([float(at == match_at)])
        one.pair(pre, post, dt=at - now)
        now = at
    assert float(one.association) == pytest.approx(expected, abs=1e-15)


def test_three_spikes_by_hand() -> None:
    """A feature at 0 and at 3, a match at 1: one pair that earns, one that costs."""
    one = TemporalAssociation(1, 1, tau=2.0, penalty=1.5)
    zero, spike = torch.zeros(1), torch.ones(1)
    one.pair(spike, zero)
    one.pair(zero, 2 * spike, dt=1.0)
    one.pair(spike, zero, dt=2.0)
    assert float(one.association) == pytest.approx(2 * math.exp(-0.5) - 2 * 1.5 * math.exp(-1.0), abs=1e-15)


@pytest.mark.parametrize(("tau", "penalty"), [(3.0, 1.0), (1.5, 0.4), (20.0, 2.0)])
def test_the_traces_give_the_sum_over_all_pairs(tau: float, penalty: float) -> None:
    draw = torch.Generator().manual_seed(0)
    count = 40
    pre = torch.randn(count, 5, generator=draw, dtype=torch.float64)
    post = torch.randn(count, 3, generator=draw, dtype=torch.float64)
    gaps = torch.rand(count, generator=draw, dtype=torch.float64) * 2
    times = gaps.cumsum(0).tolist()
    one = TemporalAssociation(3, 5, tau, penalty)
    for x, y, dt in zip(pre, post, gaps.tolist(), strict=True):
        one.pair(x, y, dt)
    pairs = torch.zeros(3, 5, dtype=torch.float64)
    for i, before in enumerate(times):
        for j, after in enumerate(times):
            pairs += window(after - before, tau, penalty) * torch.outer(post[j], pre[i])
    torch.testing.assert_close(one.association, pairs, rtol=1e-12, atol=1e-12)


def test_on_spikes_it_is_the_rule_for_trains() -> None:
    draw = torch.Generator().manual_seed(1)
    pre, post = ((torch.rand(30, 1, n, generator=draw) < 0.2).double() for n in (4, 2))
    sides = {"nu_plus": 1.0, "nu_minus": 0.7, "tau_plus": 3.0, "tau_minus": 3.0, "tau_eligibility": None}
    expected = pair_stdp(pre, post, **sides)
    one = TemporalAssociation(2, 4, tau=3.0, penalty=0.7)
    for x, y in zip(pre[:, 0], post[:, 0], strict=True):
        one.pair(x, y)
    torch.testing.assert_close(one.association, expected, rtol=1e-12, atol=1e-12)


def test_time_the_other_way_round_is_the_opposite() -> None:
    draw = torch.Generator().manual_seed(2)
    pre, post = (torch.randn(30, n, generator=draw, dtype=torch.float64) for n in (4, 2))
    there, back = TemporalAssociation(2, 4), TemporalAssociation(2, 4)
    for t in range(30):
        there.pair(pre[t], post[t])
        back.pair(pre[29 - t], post[29 - t])
    torch.testing.assert_close(there.association, -back.association, rtol=1e-12, atol=1e-12)


def test_a_match_is_how_far_the_relevant_stands_above_the_mean() -> None:
    gamma = torch.tensor([[math.log(3.0), 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    expected = torch.tensor([0.75 * math.log(3.0), 0.0])
    torch.testing.assert_close(match(gamma.softmax(1), gamma), expected)


# -- frames --------------------------------------------------------------------------------------------------

SIGN, AFTER, OTHER = 0, 1, 2  # features of the things that are seen
LEAD = 2


def frames(seed: int, count: int, shuffled: bool = False) -> list[tuple[Tensor, float, int]]:
    """Features (6, 8) of a frame, how well what was asked for was found, and which of two things that was.

    Each of the two has a sign of its own LEAD frames before it is found, and an afterthought LEAD frames
    after; a third thing comes at any time. All tokens share a large part that says nothing.
    """
    draw = torch.Generator().manual_seed(seed)
    found = []
    for t in range(count):
        asked, beat = (t // 12) % 2, t % 12
        f = torch.randn(6, 8, generator=draw) * 0.1
        f[:, 7] += torch.randn((), generator=draw) * 3
        f[:, 6] += torch.randn(6, generator=draw) * 2  # and tokens differ in what says nothing
        for thing, at in ((SIGN, 5 - LEAD), (AFTER, 5 + LEAD)):
            if beat == at:
                f[1, 2 * thing + asked] += 2.0
        if float(torch.rand((), generator=draw)) < 0.1:
            f[4, 2 * OTHER + asked] += 2.0
        found.append((f, 3.0 if beat == 5 else 1.0, asked))
    order = torch.randperm(count, generator=draw).tolist() if shuffled else range(count)
    return [found[i] for i in order]


def announced(seed: int, count: int = 900, shuffled: bool = False) -> Tensor:
    """Nats that each thing announces under what it belongs to and under the other, (3, 2), mean over both."""
    one = TemporalAssociation(2, 8)
    eye = torch.eye(2)
    for f, found, asked in frames(seed, count, shuffled):
        one.observe(f, found, eye[asked])
    said = torch.zeros(3, 2)
    for thing in (SIGN, AFTER, OTHER):
        for asked in range(2):
            f = torch.zeros(6, 8)
            f[1, 2 * thing + asked] = 2.0
            for context in range(2):
                value = one.announced(eye[context], f)
                said[thing, int(context != asked)] += 0.5 * float(value[1] - value[0])
    return said


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_comes_before_is_associated_and_what_comes_after_is_the_opposite(seed: int) -> None:
    said = announced(seed)
    assert float(said[SIGN, 0]) > 0.1
    assert float(said[AFTER, 0]) < -0.1
    # nothing else is: the other thing's context, and what comes at any time
    rest = torch.stack([said[SIGN, 1], said[AFTER, 1], said[OTHER, 0], said[OTHER, 1]]).abs()
    assert float(rest.max()) < 0.35 * float(said[SIGN, 0])


def test_the_same_frames_shuffled_teach_nothing() -> None:
    """Over twelve seeds the mean of a sign is within three standard errors of 0; planted, it is far off."""
    planted = torch.stack([announced(seed, 360)[SIGN, 0] for seed in range(12)])
    shuffled = torch.stack([announced(seed, 360, True)[SIGN, 0] for seed in range(12)])
    error = float(shuffled.std()) / 12**0.5
    assert abs(float(shuffled.mean())) < 3 * error
    assert float(planted.mean()) > 10 * error
    assert abs(float(shuffled.mean())) < 0.2 * float(planted.mean())


def test_before_anything_was_met_nothing_is_announced_and_a_masked_token_never_says_anything() -> None:
    one, features = TemporalAssociation(2, 4), torch.randn(5, 4)
    assert torch.equal(one.announced(torch.ones(2), features), torch.zeros(5, dtype=torch.float64))
    mask = torch.tensor([True, True, False, True, True])
    two = TemporalAssociation(2, 4)
    for t in range(6):
        f = torch.randn(5, 4)
        one.observe(f, float(t % 2), torch.ones(2), mask)
        f[2] = 50.0
        two.observe(f, float(t % 2), torch.ones(2), mask)
    torch.testing.assert_close(one.association, two.association)
    said = one.announced(torch.ones(2), features, mask)
    assert float(said[2]) == 0
    torch.testing.assert_close(said, two.announced(torch.ones(2), features, mask))
    assert float(apart(features, mask).sum(0).abs().max()) < 1e-5


def test_where_nothing_is_asked_a_feature_still_leaves_its_trace() -> None:
    """A feature, a frame of nothing, a match of 4 where the mean was 0: two apart, asked between or not.

    Of three tokens one has the feature: less the mean it is 2/3 there and -1/3 at the others, which weigh as
    its square, 4 : 1 : 1, so the frame shows 2/3 x 2/3 - 1/3 x 1/3 = 1/3 of it.
    """
    for between in (torch.ones(1), None):
        one, nothing = TemporalAssociation(1, 2, tau=3.0), torch.zeros(3, 2)
        shown = nothing.clone()
        shown[0, 0] = 1.0
        one.observe(shown, 0.0, torch.ones(1))
        one.observe(nothing, 0.0 if between is not None else 7.0, between)
        one.observe(nothing, 4.0, torch.ones(1))
        expected = torch.tensor([[4 * math.exp(-2 / 3) / 3, 0.0]], dtype=torch.float64)
        torch.testing.assert_close(one.association, expected, rtol=1e-6, atol=0)
