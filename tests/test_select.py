"""Select takes exactly k tokens: closed forms, brute force on small sizes, and a mix learned from rewards."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from arr_coc.relevance.asked import SHRINK, asked, word_evidence
from arr_coc.relevance.mixture import GRID, Mixture
from arr_coc.relevance.select import RIDGE, budget, select


def drawn(count: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw), torch.rand(count, generator=draw)


def objective(unit: torch.Tensor, relevance: torch.Tensor, chosen: list[int], mix: float) -> float:
    """(1 - mix) sum log r + mix log det S, by a determinant of its own."""
    gram = unit[chosen] @ unit[chosen].T + RIDGE * torch.eye(len(chosen), dtype=torch.float64)
    logs = (relevance / relevance.max()).double().log()[chosen].sum()
    return float((1 - mix) * logs + mix * torch.linalg.slogdet(gram).logabsdet)


@pytest.mark.parametrize("mix", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("k", [1, 2, 5, 9, 12])
def test_exactly_k_different_tokens_in_order(mix: float, k: int) -> None:
    tokens, relevance = drawn(12, 4)  # more tokens than dimensions
    chosen = select(tokens, None, k, mix, relevance).tolist()
    assert len(chosen) == len(set(chosen)) == k
    assert chosen == sorted(chosen)


def test_no_diversity_takes_the_most_relevant() -> None:
    tokens, relevance = drawn(20, 5)
    assert select(tokens, None, 6, 0.0, relevance).tolist() == sorted(relevance.topk(6).indices.tolist())


@pytest.mark.parametrize("mix", [0.2, 0.5, 1.0])
def test_every_step_takes_what_adds_most_to_the_objective(mix: float) -> None:
    tokens, relevance = drawn(9, 6, seed=3)
    unit = normalize(tokens.double(), dim=1)
    taken: list[int] = []
    for k in range(1, 6):
        gains = {n: objective(unit, relevance, [*taken, n], mix) for n in range(9) if n not in taken}
        taken.append(max(gains, key=lambda n: gains[n]))
        assert select(tokens, None, k, mix, relevance).tolist() == sorted(taken)


def test_greedy_is_near_the_best_of_all_sets() -> None:
    """Submodular: what greedy gains over the worst start is at least 1 - 1/e of what the best set does."""
    for seed in range(5):
        tokens, relevance = drawn(8, 8, seed)
        unit = normalize(tokens.double(), dim=1)
        mine = objective(unit, relevance, select(tokens, None, 3, 0.5, relevance).tolist(), 0.5)
        every = [objective(unit, relevance, list(c), 0.5) for c in itertools.combinations(range(8), 3)]
        assert mine >= min(every) + (1 - 1 / math.e) * (max(every) - min(every))


def test_diversity_leaves_copies_out() -> None:
    tokens = torch.eye(3).repeat(4, 1)  # three kinds, each four times
    relevance = torch.ones(12)
    chosen = select(tokens, None, 3, 0.5, relevance)
    assert sorted((chosen % 3).tolist()) == [0, 1, 2]
    assert chosen.tolist() == [0, 1, 2]  # of equals the first


def test_a_query_is_a_cosine() -> None:
    tokens, _ = drawn(10, 4)
    query = tokens[7] * 3
    assert select(tokens, query, 1, 0.0).tolist() == [7]
    same = (20 * normalize(tokens.double(), dim=1) @ normalize(query.double(), dim=0)).softmax(0)
    assert torch.equal(select(tokens, query, 4, 0.4), select(tokens, None, 4, 0.4, same))


def test_scale_of_relevance_and_order_of_calls_do_not_matter() -> None:
    tokens, relevance = drawn(15, 4)
    first = select(tokens, None, 5, 0.3, relevance)
    assert torch.equal(first, select(tokens, None, 5, 0.3, 1000 * relevance))
    assert torch.equal(first, select(tokens, None, 5, 0.3, relevance))


def test_no_relevance_at_all_is_no_error() -> None:
    tokens, _ = drawn(6, 4)
    assert len(select(tokens, None, 3, 0.2, torch.zeros(6))) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 0}, "1 to 6"),
        ({"k": 7}, "1 to 6"),
        ({"k": 2.0}, "whole number"),
        ({"k": True}, "whole number"),
        ({"mix": 1.1}, "mix"),
        ({"mix": float("nan")}, "mix"),
        ({"embeddings": torch.empty(0, 4)}, "at least one"),
        ({"embeddings": torch.full((6, 4), torch.nan)}, "NaN"),
        ({"relevance": torch.full((6,), torch.inf)}, "infinity"),
        ({"relevance": -torch.ones(6)}, "negative"),
        ({"relevance": torch.ones(5)}, "shape"),
        ({"relevance": None}, "one of query and relevance"),
        ({"query": torch.ones(4)}, "one of query and relevance"),
    ],
)
def test_what_cannot_be_is_said(change: dict, said: str) -> None:
    given = {"embeddings": drawn(6, 4)[0], "query": None, "k": 2, "mix": 0.5, "relevance": torch.ones(6)}
    with pytest.raises((ValueError, TypeError), match=said):
        select(**{**given, **change})


def test_budgets() -> None:
    assert [budget(5, 9), budget(1.0, 9), budget(1 / 9, 144), budget(0.01, 9), budget(0.5, 9)] == [
        5,
        9,
        16,
        1,
        5,
    ]
    for wrong in (0, 10, 0.0, 1.5, -1, float("nan")):
        with pytest.raises(ValueError, match=r"budget|kept"):
            budget(wrong, 9)
    for other in (True, "4", None):
        with pytest.raises(TypeError):
            budget(other, 9)  # type: ignore[arg-type]


# -- relevance of a question ---------------------------------------------------------------------------------


NONE = torch.empty(0, 4)


def matched(tokens: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """m of every word, (N, W), and how much of each is accounted for, (W,), in d x d and not N x N."""
    unit = normalize(tokens.double(), dim=1)
    x, words = unit - unit.mean(0), normalize(words.double(), dim=1)
    shrunk = SHRINK * (x @ x.T / len(x)).diagonal().mean()
    covariance = x.T @ x / len(x)
    precision = torch.linalg.inv(covariance + shrunk * torch.eye(x.shape[1], dtype=torch.float64))
    match = x @ precision @ words.T
    return match - match.mean(0), (words @ covariance @ precision * words).sum(1)


def test_word_evidence_is_a_precision_weighted_match() -> None:
    tokens, _ = drawn(10, 4)
    words = torch.randn(2, 4, generator=torch.Generator().manual_seed(5))
    match, _ = matched(tokens, words)
    found = word_evidence(tokens[None].double(), words[None].double(), NONE)
    torch.testing.assert_close(found[0], (match / match.std(0)).sum(1))


def test_a_word_counts_as_far_as_it_tells_more_than_words_that_name_nothing() -> None:
    tokens, _ = drawn(10, 4)
    draw = torch.Generator().manual_seed(5)
    words, plain = torch.randn(2, 4, generator=draw), 0.3 * torch.randn(3, 4, generator=draw)
    match, told = matched(tokens, words)
    gains = (1 - matched(tokens, plain)[1].mean() / told).clamp_min(0)
    assert 0 < float(gains.max()) < 1
    found = word_evidence(tokens[None].double(), words[None].double(), plain.double())
    torch.testing.assert_close(found[0], (gains * match / match.std(0)).sum(1))
    loudest = words[[int(told.argmax())]]
    silent = word_evidence(tokens[None].double(), words[None].double(), loudest.double())
    assert not silent.any()  # nobody tells more than the loudest


@pytest.mark.parametrize("grid", [None, (12, 12)])
def test_words_that_match_by_chance_have_next_to_no_say(grid: tuple[int, int] | None) -> None:
    """Of what z of a word has without the gain, a standard deviation of 1; one that is seen keeps several
    times that, however many of the tokens show it."""
    draw, kept = torch.Generator().manual_seed(0), []
    for _ in range(20):
        tokens, words = torch.randn(1, 144, 64, generator=draw), torch.randn(8, 64, generator=draw)
        plain = torch.randn(24, 64, generator=draw)
        kept += [float(word_evidence(tokens, w[None, None], plain, grid=grid).std()) for w in words]
        for many in (12, 36, 72):
            shown = tokens.clone()
            shown[:, :many] += words[0]
            z = word_evidence(shown, words[None, :1], plain, grid=grid)[0]
            assert float(z.std()) > 0.4
            assert float(z[:many].mean()) > float(z[many:].mean()) + 1
    assert sum(kept) / len(kept) < 0.1


def test_samples_and_tokens_that_are_not_there_change_nothing() -> None:
    tokens, _ = drawn(10, 4)
    draw = torch.Generator().manual_seed(5)
    words, plain = torch.randn(2, 4, generator=draw), 0.3 * torch.randn(3, 4, generator=draw)
    alone = word_evidence(tokens[None, :6], words[None, :1], plain)
    there, said = torch.ones(2, 10, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    there[1, 6:], said[1, 1:] = False, False
    both = word_evidence(tokens.expand(2, -1, -1), words.expand(2, -1, -1), plain, said, there)
    torch.testing.assert_close(both[1, :6], alone[0], rtol=1e-4, atol=1e-5)
    assert not both[1, 6:].any()
    torch.testing.assert_close(both[0], word_evidence(tokens[None], words[None], plain)[0])
    relevance = asked(torch.ones(2, 10), both, there)
    assert not relevance[1, 6:].any()
    torch.testing.assert_close(relevance[1, :6], asked(torch.ones(1, 6), alone)[0], rtol=1e-4, atol=1e-5)


def test_evidence_is_averaged_over_what_stands_around() -> None:
    tokens = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    words = torch.randn(1, 4, generator=torch.Generator().manual_seed(5))
    match = matched(tokens, words)[0][:, 0].reshape(3, 3)
    mean = torch.stack(
        [match[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].mean() for r in range(3) for c in range(3)]
    )
    found = word_evidence(tokens[None].double(), words[None].double(), NONE, grid=(3, 3))
    torch.testing.assert_close(found[0], (mean - mean.mean()) / mean.std())


def test_a_conjunction_is_where_both_words_are_seen() -> None:
    red, circle, other = torch.eye(6)[:3]
    tokens = torch.stack([red + other, circle + other, red + circle, other, other, other])[None]
    none = torch.empty(0, 6)
    assert int(asked(None, word_evidence(tokens, torch.stack([red, circle])[None], none)).argmax()) == 2
    one = asked(None, word_evidence(tokens, red[None, None], none))
    assert int(one[0].topk(2).indices.sum()) == 0 + 2


def test_attention_alone_is_itself_where_no_word_is_known() -> None:
    attention = torch.tensor([[0.5, 0.3, 0.2]])
    nothing = word_evidence(torch.randn(1, 3, 4), torch.empty(1, 0, 4), NONE)
    assert not nothing.any()
    torch.testing.assert_close(asked(attention, nothing), (attention.double() + 0.01 / 3) / 1.01)


def test_tokens_that_do_not_differ_say_nothing() -> None:
    nothing = word_evidence(torch.ones(1, 4, 3), torch.ones(1, 2, 3), torch.ones(1, 3))
    torch.testing.assert_close(asked(None, nothing), torch.full((1, 4), 0.25).double())


# -- the mix, learned ----------------------------------------------------------------------------------------


def test_one_step_in_closed_form() -> None:
    mixture = Mixture(3, start=0.0, eta=0.1, explore=0.2)
    context = torch.tensor([1.0, 0.0, 0.0])
    before = mixture.probabilities(context)
    assert mixture.best(context) == GRID[0]
    assert len(mixture.kinds) == 0  # asking changes nothing
    mixture.learn(context, GRID[2], 1.0)
    weight = torch.tensor([0.0, -1.0, -1.0 + 0.1 * 0.5 / float(before[2]), -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(mixture.log_weight[0], weight - weight.max())
    assert mixture.used[0].tolist() == [0, 0, 1, 0, 0]


def test_each_kind_learns_its_own_mix() -> None:
    mixture = Mixture(2)
    draw = torch.Generator().manual_seed(0)
    kinds = {0: torch.tensor([1.0, 0.0]), 3: torch.tensor([0.0, 1.0])}
    for _ in range(300):
        for good, context in kinds.items():
            mix = mixture.draw(context + 0.05, draw)
            mixture.learn(context + 0.05, mix, float(mix == GRID[good]))
    assert {good: mixture.best(context) for good, context in kinds.items()} == {0: GRID[0], 3: GRID[3]}
    assert len(mixture.kinds) == 2


def test_no_more_kinds_than_there_is_room_for() -> None:
    mixture = Mixture(4, most=2)
    for context in torch.eye(4):
        mixture.learn(context, 0.0, 1.0)
    assert len(mixture.kinds) == 2
    assert int(mixture.used.sum()) == 4


def test_mixtures_add_up() -> None:
    one, other, both = Mixture(2), Mixture(2), Mixture(2)
    one.learn(torch.tensor([1.0, 0.0]), GRID[1], 1.0)
    other.learn(torch.tensor([1.0, 0.0]), GRID[2], 1.0)
    other.learn(torch.tensor([0.0, 1.0]), GRID[4], 0.0)
    both.merge(one)
    both.merge(other)
    assert both.used.tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]]
    apart = [m.log_weight[0, i] - m.log_weight[0, 0] for m, i in ((one, 1), (other, 2))]
    torch.testing.assert_close(both.log_weight[0, 1:3] - both.log_weight[0, 0], torch.stack(apart))


@pytest.mark.parametrize("wrong", [(0.3, 1.0), (0.0, 1.5), (0.0, float("nan"))])
def test_a_reward_that_cannot_be_changes_nothing(wrong: tuple[float, float]) -> None:
    mixture = Mixture(2)
    with pytest.raises(ValueError, match="needed"):
        mixture.learn(torch.tensor([1.0, 0.0]), *wrong)
    with pytest.raises(ValueError, match="context"):
        mixture.learn(torch.ones(3), 0.0, 1.0)
    assert len(mixture.kinds) == 0
