"""Spread: relevance shared over a neighbourhood, and what is learned through it."""

import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept
from arr_coc.relevance import gather, relevance_direction, spread, supported, token_feedback

GRID = (4, 5)


def neighbourhood(radius: int) -> torch.Tensor:
    """K[m, n] = 1 / (neighbours of n) where m is one of them: written from the definition, token by token."""
    rows, columns = GRID
    kernel = torch.zeros(rows * columns, rows * columns, dtype=torch.float64)
    for n in range(rows * columns):
        near = [
            m
            for m in range(rows * columns)
            if abs(m // columns - n // columns) <= radius and abs(m % columns - n % columns) <= radius
        ]
        kernel[near, n] = 1 / len(near)
    return kernel


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_spread_and_gather_are_the_neighbourhood_and_its_adjoint(radius: int) -> None:
    torch.manual_seed(0)
    r, s = torch.rand(3, 20, dtype=torch.float64).softmax(1), torch.randn(3, 20, dtype=torch.float64)
    kernel = neighbourhood(radius)
    torch.testing.assert_close(spread(r, GRID, radius), r @ kernel.T, rtol=0, atol=1e-14)
    torch.testing.assert_close(gather(s, GRID, radius), s @ kernel, rtol=0, atol=1e-14)
    torch.testing.assert_close(spread(r, GRID, radius).sum(1), torch.ones(3, dtype=torch.float64))


def test_support_is_the_product_with_the_neighbourhoods_mean() -> None:
    torch.manual_seed(0)
    r = torch.randn(3, 20, dtype=torch.float64).softmax(1)
    both = r * (r @ neighbourhood(1))
    torch.testing.assert_close(supported(r, GRID, 1), both / both.sum(1, keepdim=True), rtol=0, atol=1e-14)
    even = torch.full((1, 20), 0.05, dtype=torch.float64)
    torch.testing.assert_close(supported(even, GRID, 2), even, rtol=0, atol=1e-16)
    # of two tokens as relevant, the one with a relevant neighbour wins over the stray
    two = torch.zeros(1, 20, dtype=torch.float64)
    two[0, [0, 1, 19]] = torch.tensor([0.4, 0.2, 0.4], dtype=torch.float64)
    assert supported(two, GRID, 1)[0, 0] > supported(two, GRID, 1)[0, 19]


def test_an_answer_is_shown_where_neighbours_agree_and_read_with_what_stands_around() -> None:
    torch.manual_seed(2)
    learner = Learner(ArrCocConfig(width=4, expansion=0, spread=1), [4], 3)
    learner.relevance_weight += torch.randn_like(learner.relevance_weight)
    percept = Percept((torch.randn(2, 20, 4),), torch.rand(2, 20), torch.randn(2, 3), grid=GRID)
    answer = learner.answer(percept)
    r, kernel = answer.settled.relevance.double(), neighbourhood(1)
    both = r * (r @ kernel)
    torch.testing.assert_close(answer.reading.double(), r @ kernel.T, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        answer.relevance.double(), both / both.sum(1, keepdim=True), rtol=1e-5, atol=1e-7
    )
    drives = torch.einsum("bn,bnf->bf", answer.reading, answer.features)
    torch.testing.assert_close(answer.climb.drives[0], drives, rtol=1e-5, atol=1e-6)


def test_what_is_learned_through_the_spread_is_the_gradient() -> None:
    torch.manual_seed(1)
    f = torch.randn(2, 20, 6, dtype=torch.float64)
    u, c = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    gamma = torch.einsum("bc,cf,bnf->bn", c, weight, f) / 6**0.5
    r = gamma.softmax(1)
    value = torch.einsum("bn,bnf,bf->b", r @ neighbourhood(1).T, f, u).sum()
    (expected,) = torch.autograd.grad(value, weight)
    learned = c.T @ relevance_direction(r.detach(), f, token_feedback(r.detach(), f, u, GRID, 1))
    torch.testing.assert_close(learned, expected, rtol=0, atol=1e-12)


def test_nothing_is_shared_where_tokens_are_missing() -> None:
    torch.manual_seed(2)
    learner = Learner(ArrCocConfig(width=4, expansion=0, spread=2), [4], 3)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[0, 4:] = False
    percept = Percept((torch.randn(1, 9, 4),), torch.rand(1, 9), torch.randn(1, 3), mask=mask, grid=(3, 3))
    assert torch.equal(learner.answer(percept).relevance[~mask], torch.zeros(5))


def test_a_grid_that_does_not_hold_the_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 9"):
        Percept((torch.randn(1, 9, 4),), torch.rand(1, 9), torch.randn(1, 3), grid=(2, 4))


def test_a_new_text_starts_from_the_models_own_relevance() -> None:
    """What was learned for one text does not decide for another that was never asked before."""
    torch.manual_seed(3)
    learner = Learner(ArrCocConfig(width=4, expansion=0, spread=0, context_ridge=0.1), [4], 3)
    known, novel = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.3]])).split(1)
    tokens, own = (torch.randn(1, 9, 4),), torch.randn(1, 9)

    def seen(context: torch.Tensor) -> Percept:
        return Percept(tokens, torch.ones(1, 9), context, own=own)

    for label in ("a", "b") * 20:
        learner.learn(seen(known), [label])
    learned, carried = known @ learner.relevance_weight, novel @ learner.relevance_weight
    assert carried.norm() > 0.5 * learned.norm()
    learner.three_factor.meet(learner.relevance_weight, "text", novel)
    torch.testing.assert_close(learner.answer(seen(novel)).relevance, own.softmax(1))
    # Q^-1 = rho I + 41 c c' (the text was counted when it was met, too), so c' Q n / (n' Q n) in closed form:
    overlap, n = float(known @ novel.T), 41
    share = overlap / (0.1 + n) / ((1 - overlap**2 * n / (0.1 + n)) / 0.1)
    assert share < 0.03
    torch.testing.assert_close(
        known @ learner.relevance_weight, learned - share * carried, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rule", ["attention_gated", "backprop"])
def test_a_step_along_the_key_changes_the_context_at_hand_and_spares_the_others(rule: str) -> None:
    """Of two correlated texts, what is learned for the second moves the first by c' key alone."""
    torch.manual_seed(4)
    config = ArrCocConfig(
        width=4, expansion=0, spread=0, context_ridge=0.1, context_reset=False, rule=rule, optimizer="sgd"
    )
    learner = Learner(config, [4], 3)
    one, two = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1, 0.0], [1.0, 0.0, 0.6]])).split(1)

    def seen(context: torch.Tensor) -> Percept:
        return Percept((torch.randn(1, 9, 4),), torch.ones(1, 9), context)

    for label in ("a", "b") * 10:
        learner.learn(seen(one), [label])
    before = learner.relevance_weight.clone()
    key = learner.context_key.key(two).float()  # as it is when the step is taken
    learner.learn(seen(two), ["a"])
    moved = learner.relevance_weight - before
    at_hand = two @ moved
    assert float(at_hand.norm()) > 1e-6
    torch.testing.assert_close(one @ moved, float(one @ key.T) * at_hand, rtol=1e-4, atol=1e-8)
    assert abs(float(one @ key.T)) < 0.1 < float(one @ two.T)
