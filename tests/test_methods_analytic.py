"""Streaming LDA, RAIL and F-OAL against the published recursions, written out in numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arr_coc.eval import methods
from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_analytic import Rail, StreamingLDA, f_oal, fused_blocks
from fakes import CLASSES, CONFIG, every, fake_store, feed

Array = NDArray[np.float64]


def published_lda(x: Array, y: Array, classes: int, shrinkage: float) -> Array:
    """Scores of x after one pass over it, as avalanche-lib's StreamingLDA has it, in float64."""
    mean, count = np.zeros((classes, x.shape[1])), np.zeros(classes)
    sigma = np.ones((x.shape[1], x.shape[1]))
    for t, (row, k) in enumerate(zip(x, y, strict=True)):
        away = (row - mean[k])[:, None]
        sigma = (t * sigma + (away @ away.T) * t / (t + 1)) / (t + 1)
        mean[k] += (row - mean[k]) / (count[k] + 1)
        count[k] += 1
    inverse = np.linalg.pinv((1 - shrinkage) * sigma + shrinkage * np.eye(x.shape[1]))
    weight = inverse @ mean.T
    return x @ weight - 0.5 * (mean.T * weight).sum(0)


@pytest.mark.parametrize("size", [1, 7])
def test_streaming_lda_is_the_published_recursion_in_any_batch_size(size: int) -> None:
    store = fake_store()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    method = StreamingLDA(features.tower_output, 1e-3)
    feed(method, store, order.tolist(), size)
    met = method.classes.names
    labels = np.array([met.index(store.classes[i]) for i in store.label[order].tolist()])
    expected = published_lda(store.pooled[order].double().numpy(), labels, 3, 1e-3)
    found = method.answer(store.batch(order), met).scores.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def recursion(x: Array, y: Array, penalty: float, batch: int) -> Array:
    """W of the recursive least squares that RAIL and F-OAL publish; a column is added as its class is met."""
    inverse, weight = np.eye(x.shape[1]) / penalty, np.zeros((x.shape[1], 0))
    for start in range(0, len(x), batch):
        some, label = x[start : start + batch], y[start : start + batch]
        weight = np.pad(weight, ((0, 0), (0, max(0, label.max() + 1 - weight.shape[1]))))
        gain = np.linalg.pinv(np.eye(len(some)) + some @ inverse @ some.T)
        inverse = inverse - inverse @ some.T @ gain @ some @ inverse
        target = np.eye(weight.shape[1])[label]
        weight = weight + inverse @ some.T @ (target - some @ weight)
    return weight


def test_rail_is_the_published_recursion_and_fusion() -> None:
    store = fake_store()
    lifted = features.random_relu(features.tower_output, 32, 3)
    known = [i for i in range(60) if int(store.label[i]) < 2]  # the third class is out of domain
    method = Rail(lifted, 0.1, 0.7)
    feed(method, store, known, 4)
    met = method.classes.names
    assert sorted(met) == sorted(CLASSES[:2])
    labels = np.array([met.index(CLASSES[int(store.label[i])]) for i in known])
    phi = lifted(every(store)).double().numpy()
    values = phi @ recursion(phi[known], labels, 0.1, 5)
    own = (5.0 * store.image @ store.texts(CLASSES).T).double().numpy()
    chance = np.exp(own) / np.exp(own).sum(1, keepdims=True)
    expected, within = chance.copy(), 0
    for i in range(60):
        if CLASSES[own[i].argmax()] in met:
            learned = [values[i, met.index(c)] if c in met else 0.0 for c in CLASSES]
            expected[i] = 0.3 * chance[i] + 0.7 * np.array(learned)
            within += 1
    assert 0 < within < 60
    np.testing.assert_allclose(
        method.answer(every(store), CLASSES).scores.numpy(), expected, atol=1e-6
    )  # the model scores in float32


def test_rail_answers_as_the_frozen_model_before_it_has_learned() -> None:
    store = fake_store()
    frozen = features.ZeroShot().predict(every(store), CLASSES)
    assert Rail(features.tower_output).predict(every(store), CLASSES) == frozen


def test_f_oal_is_the_published_recursion_on_smooth_projections() -> None:
    store = fake_store()
    method = f_oal(store, 0.5, seed=2, width=40)
    feed(method, store, list(range(60)), 10)
    token = np.stack([t.double().numpy().mean(1) for t in store.tokens]).mean(0)
    fused = (token - token.mean(1, keepdims=True)) / np.sqrt(token.var(1, keepdims=True) + 1e-5)
    unit = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (fused, store.context.double().numpy())]
    drawn = torch.randn(8 + 6, 40, generator=torch.Generator().manual_seed(2)).double().numpy()
    phi = 1 / (1 + np.exp(-np.concatenate(unit, 1) @ drawn))
    met = method.classes.names
    labels = np.array([met.index(x) for x in every(store).labels])
    found = method.answer(every(store), met).scores.numpy()
    np.testing.assert_allclose(found, phi @ recursion(phi, labels, 0.5, 7), atol=1e-4)


def test_sites_of_different_widths_cannot_be_fused() -> None:
    store = fake_store()
    uneven = replace(store, tokens=(store.tokens[0], store.tokens[1][:, :, :4]))
    with pytest.raises(ValueError, match=r"\[4, 8\]"):
        fused_blocks(every(uneven))


@pytest.mark.parametrize("name", ["streaming-lda", "rail", "f-oal"])
def test_rows_have_at_most_five_settings_and_take_them(name: str) -> None:
    spec = methods.spec(name)
    assert 1 <= len(spec.grid) <= 5
    said = [spec.make(methods.Setup(fake_store(), CONFIG, settings=s)).__dict__ for s in spec.grid]
    told = [{k: v for k, v in d.items() if k in ("shrinkage", "penalties", "fusion")} for d in said]
    assert len({str(t) for t in told}) == len(spec.grid)
