"""Forecasts of relevance: closed forms, a likelihood by hand and its gradient, planted motion, bounds."""

import math

import pytest
import torch
from torch import Tensor

from arr_coc.relevance import RelevancePredictor
from arr_coc.relevance.predict import Moment, centred, concentrated, displaced, divergence

GRID = (4, 5)


def drawn(
    seed: int, radius: int = 1, grid: tuple[int, int] | None = GRID
) -> tuple[RelevancePredictor, Moment]:
    """A predictor that has counted something, and a belief, both at random."""
    draw = torch.Generator().manual_seed(seed)
    predictor = RelevancePredictor(3, radius)
    predictor.transitions += torch.rand(predictor.transitions.shape, generator=draw, dtype=torch.float64)
    predictor.jumps += torch.tensor([5.0, 1.0], dtype=torch.float64)
    belief = torch.rand(20, len(predictor.transitions), generator=draw, dtype=torch.float64)
    return predictor, Moment(belief / belief.sum(), torch.zeros(20, 3), grid)


def by_hand(predictor: RelevancePredictor, moment: Moment, alive: Tensor, t: Tensor, u: Tensor) -> Tensor:
    """r^ by walking over every token and displacement; t are the counts of T, u the share that jumps."""
    rows, columns = GRID
    side = range(-predictor.radius, predictor.radius + 1)
    steps = [(y, x) for y in side for x in side]
    found = [torch.zeros((), dtype=torch.float64) for _ in range(rows * columns)]
    lost = torch.zeros((), dtype=torch.float64)
    for n in range(rows * columns):
        ends = []
        for e, (y, x) in enumerate(steps):
            row, column = n // columns + y, n % columns + x
            if 0 <= row < rows and 0 <= column < columns and alive[row * columns + column]:
                ends.append((e, row * columns + column))
        for d in range(len(steps)):
            total = sum((t[d, e] for e, _ in ends), start=torch.zeros((), dtype=torch.float64))
            if not ends:
                lost = lost + moment.belief[n, d]
            for e, m in ends:
                found[m] = found[m] + moment.belief[n, d] * t[d, e] / total
    jumped = (1 - (1 - u) * (1 - lost)) / alive.sum()
    return (1 - u) * torch.stack(found) + jumped * alive


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("radius", [1, 2])
def test_a_forecast_is_what_walking_over_every_step_gives(radius: int, masked: bool) -> None:
    predictor, moment = drawn(0, radius)
    mask = torch.ones(20, dtype=torch.bool)
    if masked:  # the last is an island that radius 1 cannot leave, and that is gone itself
        mask[[2, 7, 12, 13, 14, 17, 18, 19]] = False
    share = predictor.jumps[1] / predictor.jumps.sum()
    expected = by_hand(predictor, moment, mask.double(), predictor.transitions, share)
    said = predictor.forecast(moment, GRID, 20, mask if masked else None)
    torch.testing.assert_close(said, expected, rtol=1e-12, atol=1e-15)
    assert float(said.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((said[~mask] == 0).all())
    assert bool((said[mask] > 0).all())


def test_what_is_counted_is_the_gradient_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Baum & Eagon: T dL/dT, L = sum r log r^; without borders, where T needs no renormalising."""
    predictor, moment = drawn(1)
    inner = torch.zeros(GRID, dtype=torch.float64)
    inner[1:3, 1:4] = 1  # nothing can leave the grid from here
    belief = moment.belief * inner.reshape(-1, 1)
    moment = Moment(belief / belief.sum(), moment.features, GRID)
    follows = (predictor.transitions / predictor.transitions.sum(1, keepdim=True)).requires_grad_()
    kept = (predictor.jumps[0] / predictor.jumps.sum()).clone().requires_grad_()
    relevance = torch.rand(20, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).softmax(0)
    flow = torch.stack([moment.belief[n] @ follows for n in range(20)])
    index, there = displaced(GRID, 20, 1)
    arrived = sum(
        torch.zeros(20, dtype=torch.float64).index_add(0, index[:, e], flow[:, e] * there[:, e])
        for e in range(9)
    )
    likelihood = (relevance * (kept * arrived + (1 - kept) / 20).log()).sum()
    by_follows, by_kept = torch.autograd.grad(likelihood, [follows, kept])
    before, jumps = predictor.transitions.clone(), predictor.jumps.clone()
    # the likelihood above is that of places alone, whatever looks moved
    monkeypatch.setattr(predictor, "_moved", lambda *_: torch.zeros(20, 9, dtype=torch.float64))
    predictor.advance(moment, relevance, torch.zeros(20, 3), GRID, None, relevance)
    weight = concentrated(relevance, torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(
        predictor.transitions - before, weight * follows * by_follows, rtol=1e-10, atol=1e-14
    )
    # for u: responsibility of what stayed on course = kept dL/dkept + (share of r that any course explains)
    went = (predictor.jumps - jumps) / weight
    assert float(went.sum()) == pytest.approx(1, abs=1e-12)
    assert float(went[0] - (kept * (1 - kept) * by_kept + kept).detach()) == pytest.approx(0, abs=1e-12)


def test_the_error_of_a_token_weighs_by_its_precision() -> None:
    """KL(r || r^) is to second order half of sum Pi epsilon^2, Pi = 1 / r^."""
    forecast = torch.rand(30, dtype=torch.float64).softmax(0)
    direction = torch.randn(30, dtype=torch.float64)
    direction = forecast * (direction - (forecast * direction).sum())
    for small in (1e-3, 1e-4):
        error = small * direction
        half = 0.5 * (error**2 / forecast).sum()
        assert float(divergence(forecast + error, forecast) / half) == pytest.approx(1, abs=10 * small)
    assert float(divergence(forecast, forecast)) == 0


def test_two_beliefs_come_closer_by_the_share_that_goes_anywhere() -> None:
    predictor, one = drawn(3)
    _, two = drawn(4)
    share = float(predictor.jumps[1] / predictor.jumps.sum())
    before = (one.belief - two.belief).abs().sum()
    after = (predictor.forecast(one, GRID, 20) - predictor.forecast(two, GRID, 20)).abs().sum()
    assert float(after) <= (1 - share) * float(before)
    # with nothing seen a forecast of forecasts forgets where it came from, however it moved
    for _ in range(200):
        beliefs = [
            predictor._arrive(m, *predictor._steps(GRID, torch.ones(20).double()), torch.ones(20).double())[2]
            for m in (one, two)
        ]
        one, two = (Moment(b, m.features, GRID) for b, m in zip(beliefs, (one, two), strict=True))
    assert float((one.belief - two.belief).abs().sum()) < 1e-12


def moving(seed: int, count: int, shuffled: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A spot that keeps its velocity for four frames on a 9 x 9 grid, then another: its place (count,),
    relevance that is blurred about it, and features that say nothing."""
    draw = torch.Generator().manual_seed(seed)
    place, velocity, found = torch.tensor([4, 4]), torch.tensor([0, 1]), []
    for t in range(count):
        if t % 4 == 0:
            place = torch.randint(2, 7, (2,), generator=draw)
            velocity = torch.randint(-1, 2, (2,), generator=draw)
        found.append(int(place[0] * 9 + place[1]))
        place = (place + velocity).clamp(0, 8)
    order = torch.randperm(count, generator=draw) if shuffled else torch.arange(count)
    at = torch.tensor(found)[order]
    grid = torch.stack([torch.arange(81) // 9, torch.arange(81) % 9], 1).double()
    distance = (grid[at].unsqueeze(1) - grid).abs().sum(2)
    return at, (-1.5 * distance).softmax(1), torch.zeros(81, 3)


def likelihood(seed: int, radius: int, shuffled: bool = False, count: int = 400) -> float:
    """Nats that forecasts miss the true place by, mean over the second half, scene cuts left out."""
    at, relevance, features = moving(seed, count, shuffled)
    predictor, moment, lost = RelevancePredictor(3, radius), None, []
    for t in range(count):
        said = predictor.forecast(moment, (9, 9), 81)
        if t >= count // 2 and t % 4 >= 2:
            lost.append(-math.log(float(said[at[t]])))
        moment = predictor.advance(moment, relevance[t], features, (9, 9), None, relevance[t])
    return sum(lost) / len(lost)


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_motion_is_predicted_and_the_same_frames_shuffled_are_not(seed: int) -> None:
    uniform, same, predicted = math.log(81), likelihood(seed, 0), likelihood(seed, 1)
    assert predicted < same - 0.2
    assert same < uniform
    shuffled = likelihood(seed, 1, shuffled=True)
    assert predicted < shuffled - 0.8
    assert shuffled > uniform - 0.5  # where spots are at all is all that is left to know


def test_the_features_tell_which_of_two_ways_an_item_went() -> None:
    """Relevance that is even over two tokens; the frame after shows the item's features to the right."""
    predictor = RelevancePredictor(4, 1)
    grid, item = (3, 7), torch.tensor([3.0, 0.0, 0.0, 0.0])

    def frame(column: int) -> Tensor:
        features = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat(21, 1)
        features[7 + column] = item
        return features

    flat = torch.zeros(21)
    flat[8:13] = 1 / 5
    moment = predictor.advance(None, flat, frame(3), grid)
    moment = predictor.advance(moment, flat, frame(4), grid)
    came = moment.belief[7 + 4]
    right, left = 4 + 1, 4 - 1  # (0, 1) and (0, -1) among the nine
    assert float(came[right]) > 20 * float(came[left])


def test_a_belief_is_the_relevance_that_was_settled_on_and_a_frame_of_other_tokens_starts_anew() -> None:
    predictor, moment = drawn(5)
    relevance = torch.rand(20).softmax(0)
    moment = predictor.advance(moment, relevance, torch.randn(20, 3), GRID, None, relevance)
    torch.testing.assert_close(moment.belief.sum(1), relevance.double(), rtol=1e-12, atol=1e-15)
    for grid, count in (((5, 4), 20), (None, 20), ((3, 3), 9), (None, 7)):
        said = predictor.forecast(moment, grid, count)
        torch.testing.assert_close(said, torch.full((count,), 1 / count, dtype=torch.float64))
        counted = predictor.transitions.clone()
        again = predictor.advance(moment, torch.ones(count) / count, torch.randn(count, 3), grid)
        assert float(again.belief.sum()) == pytest.approx(1)
        assert torch.equal(predictor.transitions, counted)


def test_without_a_grid_relevance_stays_or_turns_up_anywhere() -> None:
    predictor, moment = drawn(6, grid=None)
    share = predictor.jumps[1] / predictor.jumps.sum()
    expected = (1 - share) * moment.belief.sum(1) + share / 20
    torch.testing.assert_close(predictor.forecast(moment, None, 20), expected, rtol=1e-12, atol=1e-15)


def test_an_even_frame_teaches_nothing_and_a_masked_token_has_no_part() -> None:
    predictor, moment = drawn(7)
    before = [predictor.get_buffer(n).clone() for n in ("transitions", "jumps", "log_precision")]
    mask = torch.ones(20, dtype=torch.bool)
    mask[3] = False
    even = mask / mask.sum()
    features = torch.randn(20, 3)
    after = predictor.advance(moment, even, features, GRID, mask, even)
    for name, was in zip(("transitions", "jumps", "log_precision"), before, strict=True):
        torch.testing.assert_close(predictor.get_buffer(name), was, rtol=0, atol=1e-12)
    features[3] += 100.0
    other = predictor.advance(moment, even, features, GRID, mask, even)
    torch.testing.assert_close(other.belief, after.belief)
    assert float(after.belief[3].sum()) == 0
    assert float(centred(features, mask)[3].abs().sum()) == 0


def test_the_log_precision_comes_to_stand_where_the_errors_are() -> None:
    """Its fixed point is Pi = 1 / (2 E[KL]), and F is then 1/2 + 1/2 log(2 KL)."""
    predictor = RelevancePredictor(3, 1, eta=0.05)
    one, two = torch.zeros(9), torch.zeros(9)
    one[0] = two[8] = 1.0
    features = torch.zeros(9, 3)
    for _ in range(400):  # never the same place twice: every frame is a jump
        start = predictor.advance(None, one, features, (3, 3))
        predictor.transitions.fill_(1.0)
        predictor.jumps.copy_(torch.tensor([1.0, 1.0]))
        said = predictor.forecast(start, (3, 3), 9)
        predictor.advance(start, two, features, (3, 3), None, two)
    kl = -math.log(float(said[8]))
    assert float(predictor.log_precision) == pytest.approx(-math.log(2 * kl), abs=1e-3)
    assert float(predictor.surprise(two, said)) == pytest.approx(0.5 + 0.5 * math.log(2 * kl), abs=1e-3)
