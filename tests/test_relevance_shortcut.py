"""The planted shortcut: what differs between twins is what they were told, and a blind map shows nothing of
it."""

from typing import Any

import numpy as np
import pytest
import torch

from arr_coc.eval import relevance_shortcut as rs
from arr_coc.eval.intervals import paired_bootstrap


@pytest.fixture(scope="module")
def pair() -> list[Any]:
    return [rs.twin(0, revealing, steps=150) for revealing in (True, False)]


def test_the_twins_saw_the_same_digits_and_corners() -> None:
    told, untold = (rs.digits(np.random.default_rng(1), np.arange(50), r) for r in (True, False))
    assert (told.truth == untold.truth).all()
    assert torch.equal(told.labels, untold.labels)
    assert torch.equal(told.pixels[:, :, 8:32, 8:32], untold.pixels[:, :, 8:32, 8:32])
    assert not torch.equal(told.pixels, untold.pixels)
    assert (told.truth.sum(1) == 1).all()
    # the dot lies inside its token, and its colour is the label's
    for i in range(50):
        token = told.truth[i].argmax()
        row, column = divmod(int(token), 5)
        dot = ((told.pixels[i, :, row * 8 + 3, column * 8 + 3] + 1) * 127.5).round().numpy()
        assert (dot == rs.PALETTE[told.labels[i]]).all()
    held, train = rs.held_out(0), np.random.default_rng([0, 30]).permutation(1797)[rs.HELD :]
    assert len(held.labels) + len(train) == 1797


def test_a_map_that_does_not_depend_on_the_model_scores_exactly_nothing() -> None:
    blind = ("random", "uniform", "centre", "contrast")
    twins = rs.exam([0], (*blind, "attention"), steps=3)
    for method in blind:
        found = twins.difference[method]
        assert (found.mean, found.low, found.high) == (0, 0, 0)
        assert twins.told[method] == twins.untold[method]
    assert twins.told["uniform"] == pytest.approx(1 / 25)
    assert twins.difference["attention"].mean != 0


@pytest.mark.slow
def test_the_twin_that_was_told_uses_the_dot_and_what_looks_into_it_shows_it(pair: list[Any]) -> None:
    shown = rs.held_out(0)
    right = [rs.accuracy(model, shown) for model in pair]
    assert right[0] > 0.9
    assert right[1] < right[0]
    for method in ("attention", "rollout", "gradient-attention", rs.ATTENTIVE):
        told, untold = (rs.dot_mass(model, shown, method) for model in pair)
        assert paired_bootstrap(told, untold).low > 0, method


@pytest.mark.slow
def test_told_by_the_dot_it_answers_by_the_dot(pair: list[Any]) -> None:
    model, shown = pair[0], rs.held_out(0)
    other = torch.randperm(len(shown.labels), generator=torch.Generator().manual_seed(0))
    swapped = shown.pixels.clone()
    border = torch.ones(40, 40, dtype=torch.bool)
    border[8:32, 8:32] = False
    swapped[:, :, border] = shown.pixels[other][:, :, border]  # another digit's dot
    assert rs.accuracy(model, rs.Digits(swapped, shown.labels[other], shown.truth)) > 0.8
