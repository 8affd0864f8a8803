"""The error module with the answer at the top: closed forms, and its place in the learner."""

from dataclasses import replace

import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept, merge, state
from arr_coc.answer_error import AnswerErrors

SMALL = ArrCocConfig(width=6, expansion=4)
ANSWER = replace(SMALL, surprise="answer")


def drives(count: int = 20) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


def test_each_row_is_the_ridge_mean_of_its_class() -> None:
    made, x = AnswerErrors(5, ridge=2.0), drives()
    rows = torch.arange(20) % 3
    made.learn(x, rows, 3, 0.01)
    for row in range(3):
        mine = x[rows == row]
        torch.testing.assert_close(made.mean[row], mine.sum(0) / (2 + len(mine)))


def test_surprise_is_the_least_free_energy_over_the_classes_met() -> None:
    made, x = AnswerErrors(5), drives()
    made.learn(x, torch.arange(20) % 2, 4, 0.05)  # two more classes are known by name alone
    energy = [
        0.5 * (made.log_precision.exp() * (x - v) ** 2 - made.log_precision).mean(1) for v in made.mean[:2]
    ]
    torch.testing.assert_close(made.surprise(x), torch.minimum(*energy), atol=1e-5, rtol=1e-5)
    tokens = x.reshape(4, 5, 5)
    torch.testing.assert_close(made.surprise(tokens).flatten(), made.surprise(x))


def test_before_anything_is_learned_the_prediction_is_0() -> None:
    x = drives()
    torch.testing.assert_close(AnswerErrors(5).surprise(x), 0.5 * (x**2).mean(1))


def test_the_precision_settles_at_the_inverse_variance() -> None:
    draw = torch.Generator().manual_seed(1)
    spread = torch.tensor([0.3, 1.0, 2.0])
    x = torch.randn(6000, 3, generator=draw) * spread + torch.tensor([1.0, -2.0, 0.5])
    made = AnswerErrors(3)
    made.learn(x, torch.zeros(6000, dtype=torch.long), 1, 0.005)
    torch.testing.assert_close(made.log_precision.exp(), 1 / spread**2, rtol=0.2, atol=0)


def test_a_class_never_met_surprises_more() -> None:
    draw = torch.Generator().manual_seed(2)
    centres = 2 * torch.randn(4, 8, generator=draw)
    made = AnswerErrors(8)
    rows = torch.randint(3, (300,), generator=draw)
    made.learn(centres[rows] + torch.randn(300, 8, generator=draw), rows, 3, 0.02)
    seen, new = (centres[i] + torch.randn(100, 8, generator=draw) for i in (1, 3))
    assert made.surprise(new).median() > made.surprise(seen).quantile(0.95)


def percept(seed: int, batch: int = 1) -> Percept:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 12, 6, generator=draw) for _ in range(2))
    return Percept(tokens, torch.rand(batch, 12, generator=draw), torch.eye(4)[:batch], grid=(3, 4))


def taught(config: ArrCocConfig) -> Learner:
    made = Learner(config, [6, 6], 4)
    for t in range(6):
        made.learn(percept(t, 2), ["a", "b"] if t < 3 else ["b", "c"])
    return made


def test_in_the_learner_it_changes_surprise_and_nothing_else() -> None:
    off, on = taught(SMALL), taught(ANSWER)
    assert off.answers is None
    assert on.answers is not None
    mine, its = off.answer(percept(99, 2)), on.answer(percept(99, 2))
    torch.testing.assert_close(its.surprise, on.answers.surprise(its.climb.drives[-1]))
    for name in ("relevance", "values", "trust", "gamma"):
        assert torch.equal(getattr(mine, name), getattr(its, name))
    plain, saved = state.tensors(off), state.tensors(on)
    assert {name for name in saved if name not in plain} == {
        f"answers.{name}" for name in AnswerErrors.state_names
    }
    assert all(torch.equal(plain[name], saved[name]) for name in plain if name != "surprise_watch")


def test_saved_and_gone_on_with_bit_for_bit() -> None:
    one, two = taught(ANSWER), Learner(ANSWER, [6, 6], 4)
    state.load(two, {k: t.clone() for k, t in state.tensors(one).items()}, state.meta(one))
    for learner in (one, two):
        learner.learn(percept(50, 2), ["d", "a"])
    mine, its = state.tensors(one), state.tensors(two)
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_what_cannot_be_summed_up_is_refused() -> None:
    one, two = taught(ANSWER), taught(ANSWER)
    with pytest.raises(ValueError, match="surprise='answer'"):
        merge.check({"one": one, "two": two})


def test_without_error_modules_there_is_none() -> None:
    assert Learner(replace(ANSWER, error_module=False), [6, 6], 4).answers is None
