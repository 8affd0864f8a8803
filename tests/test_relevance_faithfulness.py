"""Faithfulness against closed forms on additive scores, and dropping tokens against a tower called by
hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from arr_coc.eval import token_dropping
from arr_coc.eval.relevance_faithfulness import FRACTIONS, FlatScore, area, curves, kept_sets

TENTHS = tuple(k / 10 for k in range(11))


def of_weights(weights: np.ndarray):
    """A score that is the sum of the kept tokens' weights."""
    return lambda sets: [3.0 + weights[np.asarray(s, dtype=int)].sum() for s in sets]


def test_one_token_that_matters() -> None:
    """Dropped first, s falls to 0 after 1/10 (area .05); dropped last, only at the end (area .95): gap .9."""
    weights = np.eye(10)[4]
    found = curves(weights, of_weights(weights), TENTHS)
    assert (found.morf, found.lerf, found.gap) == pytest.approx((0.05, 0.95, 0.9))
    assert (found.whole, found.none) == (4, 3)
    assert curves(-weights, of_weights(weights), TENTHS).gap == pytest.approx(-0.9)


def test_rising_weights_are_a_parabola() -> None:
    """w_i = i: with k of n dropped from the top, sum_{i <= n-k} i / sum_i i."""
    weights = np.arange(1.0, 21)
    found = curves(weights, of_weights(weights), tuple(k / 20 for k in range(21)))
    left = np.arange(20, -1, -1)
    assert found.most_first == pytest.approx(left * (left + 1) / (20 * 21))
    assert found.least_first == pytest.approx(1 - found.most_first[::-1])
    assert found.gap == pytest.approx(found.lerf - found.morf)
    assert found.gap > 0


def test_random_maps_have_no_gap_and_an_even_score_neither() -> None:
    draw = np.random.default_rng(0)
    weights = draw.random(144)
    gaps = [curves(draw.random(144), of_weights(weights)).gap for _ in range(200)]
    assert abs(np.mean(gaps)) < 3 * np.std(gaps, ddof=1) / 200**0.5
    assert curves(draw.random(140), of_weights(np.ones(140))).gap == pytest.approx(0, abs=1e-12)
    tied = [curves(np.ones(144), of_weights(weights), seed=s).gap for s in range(200)]
    assert abs(np.mean(tied)) < 3 * np.std(tied, ddof=1) / 200**0.5


def test_what_is_kept() -> None:
    assert FRACTIONS[:3] == (0, 0.05, 0.1)
    assert FRACTIONS[-2:] == (0.9, 1)
    most, least = kept_sets([0.1, 0.9, 0.5, 0.3], (0, 0.5, 0.75, 1))
    assert [s.tolist() for s in most] == [[0, 1, 2, 3], [0, 3], [0], []]
    assert [s.tolist() for s in least] == [[0, 1, 2, 3], [1, 2], [1], []]
    assert area([0, 0.5, 1], [1, 1, 0]) == 0.75


def test_an_answer_that_is_not_preferred_has_nothing_to_lose() -> None:
    weights = np.full(10, -0.1)
    with pytest.raises(FlatScore, match="no answer to lose"):
        curves(weights, of_weights(weights), TENTHS)
    with pytest.raises(FlatScore):
        curves(-weights, of_weights(-weights), TENTHS, least=1.5)


def test_what_has_no_curve_is_refused() -> None:
    with pytest.raises(FlatScore, match="no answer to lose"):
        curves(np.arange(4.0), lambda sets: np.ones(len(sets)))
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        curves(np.arange(4.0), lambda sets: np.ones(len(sets)), (0, 0.5))
    with pytest.raises(ValueError, match="finite"):
        curves(np.arange(4.0), lambda sets: np.full(len(sets), np.nan))
    with pytest.raises(ValueError, match="finite"):
        kept_sets([0.0, np.nan])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_dropped_tokens_are_those_of_a_tower_called_by_hand(kind: str) -> None:
    """Embeddings with all positions, then rows taken out, then blocks, norm and head, without a hook."""
    model, pixels = tiny.dual(kind), tiny.dual_inputs(2)["pixel_values"]
    keep = torch.tensor([[0, 5, 15], [1, 2, 3]])
    texts = F.normalize(torch.randn(4, 24 if kind == "clip" else 32), dim=1)
    found = token_dropping.cosines(model, pixels, texts, keep, 16)
    tower = model.vision_model
    with torch.no_grad():
        tokens = tower.embeddings(pixels)
        if kind == "clip":
            rows = torch.cat([torch.zeros(2, 1).long(), keep + 1], 1)
            hidden = tower.pre_layrnorm(torch.stack([t[r] for t, r in zip(tokens, rows, strict=True)]))
            hidden = tower.encoder(inputs_embeds=hidden).last_hidden_state
            seen = model.visual_projection(tower.post_layernorm(hidden[:, 0]))
        else:
            hidden = torch.stack([t[r] for t, r in zip(tokens, keep, strict=True)])
            seen = tower.head(tower.post_layernorm(tower.encoder(inputs_embeds=hidden).last_hidden_state))
    assert torch.allclose(found, F.normalize(seen, dim=1) @ texts.T, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_keeping_all_changes_nothing_and_no_hook_stays(kind: str) -> None:
    model, inputs = tiny.dual(kind), tiny.dual_inputs(2)
    texts = F.normalize(torch.randn(4, 24 if kind == "clip" else 32), dim=1)
    plain = token_dropping.cosines(model, inputs["pixel_values"], texts)
    everything = token_dropping.cosines(
        model, inputs["pixel_values"], texts, torch.arange(16).unsqueeze(0), 16
    )
    assert torch.equal(plain, everything)
    with (
        pytest.raises(RuntimeError, match="inside"),
        token_dropping.kept(model, torch.arange(3).unsqueeze(0), 16),
    ):
        raise RuntimeError("inside")
    assert torch.equal(plain, token_dropping.cosines(model, inputs["pixel_values"], texts))
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_target_of_a_dual_encoder(kind: str) -> None:
    model, pixels = tiny.dual(kind), tiny.dual_inputs(1)["pixel_values"]
    texts = F.normalize(torch.randn(3, 24 if kind == "clip" else 32), dim=1)
    score = token_dropping.target(model, pixels, texts, 1, 16, batch=2)
    sets = [np.arange(16), np.array([3, 4]), np.array([7, 9]), np.array([0, 1]), np.array([], dtype=int)]
    found = score(sets)
    for one, value in zip(sets[:4], found, strict=False):
        c = token_dropping.cosines(model, pixels, texts, torch.from_numpy(one).unsqueeze(0), 16)[0]
        assert value == pytest.approx(float(c[1] - (c[0] + c[2]) / 2), abs=1e-6)
    if kind == "siglip":
        assert found[4] == 0  # nothing at all is left: no text is preferred
    one = curves(np.arange(16.0), score, (0, 0.5, 1), least=-np.inf)  # random weights may prefer another text
    assert one.whole == pytest.approx(float(found[0]), abs=1e-6)


def test_what_cannot_be_dropped_is_refused() -> None:
    model, inputs = tiny.dual(), tiny.dual_inputs(2)
    with pytest.raises(ValueError, match="0 to 15"), token_dropping.kept(model, torch.tensor([[16]]), 16):
        pass
    with pytest.raises(ValueError, match="99 patches"), token_dropping.kept(model, torch.tensor([[1]]), 99):
        model.get_image_features(pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="two or more texts"):
        token_dropping.target(model, inputs["pixel_values"][:1], torch.ones(1, 24), 0, 16)
