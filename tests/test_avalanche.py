"""arr-coc inside Avalanche, and this harness's methods beside Avalanche's own; where that is installed."""

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import fakes
from arr_coc import ArrCocConfig, attach
from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_analytic import StreamingLDA
from arr_coc.eval.penalties import LearningWithoutForgetting

INSTALLED = importlib.util.find_spec("avalanche") is not None
needed = pytest.mark.skipif(not INSTALLED, reason="avalanche-lib is not installed")
CONFIG = ArrCocConfig(expansion=8)


@pytest.mark.skipif(INSTALLED, reason="avalanche-lib is installed")
def test_without_avalanche_the_strategy_says_what_to_install() -> None:
    with pytest.raises(ModuleNotFoundError, match="pip install avalanche-lib"):
        importlib.import_module("arr_coc.eval.avalanche_strategy")


def benchmark() -> tuple[Any, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Two experiences of two classes, twelve pictures each, that the classes' colours tell apart."""
    from avalanche.benchmarks import tensors_benchmark

    draw = torch.Generator().manual_seed(0)
    parts = []
    for turn in range(2):
        y = torch.arange(12) % 2 + 2 * turn
        x = 0.3 * torch.randn(12, 3, 96, 96, generator=draw) + (y.float() - 1.5)[:, None, None, None]
        parts.append((x, y))
    made = tensors_benchmark(parts, parts, task_labels=[0, 0])
    return made, parts


@needed
def test_a_stream_in_avalanche_is_the_stream_itself() -> None:
    """The same weights, bit for bit, as `learn` on the same minibatches; and the same accuracy."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    from arr_coc.eval.avalanche_strategy import ArrCocStrategy

    made, parts = benchmark()
    texts = fakes.FakeProcessor().tokenizer([f"a photo of a {n}" for n in ("bag", "coat", "hat", "shoe")])
    inside, beside = (attach(fakes.tiny_clip(), CONFIG) for _ in range(2))
    strategy = ArrCocStrategy(
        model=inside,
        texts=texts,
        train_mb_size=4,
        eval_mb_size=5,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
    )
    for experience in made.train_stream:
        strategy.train(experience, shuffle=False, num_workers=0)
    for x, y in parts:
        for start in range(0, 12, 4):
            beside.learn(pixel_values=x[start : start + 4], labels=y[start : start + 4], **texts)
    ours, theirs = (m.learner.state_dict() for m in (inside, beside))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert int(inside.learner.step) == 24
    found = strategy.eval(made.test_stream, num_workers=0)
    x, y = (torch.cat(t) for t in zip(*parts, strict=True))
    right = beside(pixel_values=x, **texts).logits_per_image.argmax(1) == y
    assert list(found.values()) == [pytest.approx(float(right.float().mean()))]
    assert not inside.training


@needed
def test_a_second_epoch_is_refused() -> None:
    from arr_coc.eval.avalanche_strategy import ArrCocStrategy

    with pytest.raises(ValueError, match="met once"):
        ArrCocStrategy(model=attach(fakes.tiny_clip(), CONFIG), texts={}, train_epochs=2)


@needed
def test_streaming_lda_is_avalanches() -> None:
    from avalanche.training import StreamingLDA as Theirs

    store = fakes.fake_store()
    ours = StreamingLDA(features.tower_output, 1e-2)
    fakes.feed(ours, store, list(range(60)), 7)
    names = ours.classes.names
    theirs = Theirs(
        slda_model=torch.nn.Identity(),
        criterion=torch.nn.functional.cross_entropy,
        input_size=5,
        num_classes=3,
        shrinkage_param=1e-2,
        evaluator=None,
    )
    for i in range(60):
        row = names.index(store.classes[int(store.label[i])])
        theirs.fit(store.pooled[i : i + 1], torch.tensor([row]))
    found = ours.answer(fakes.every(store), names).scores
    np.testing.assert_allclose(found.numpy(), theirs.predict(store.pooled).numpy(), rtol=1e-3, atol=1e-4)


@needed
def test_distillation_is_avalanches() -> None:
    from avalanche.training import LearningWithoutForgetting as Theirs

    now, then = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    ours = LearningWithoutForgetting(1.0, temperature=2.0)
    ours.known = torch.tensor([0, 1, 3])
    theirs = Theirs(temperature=2)._distillation_loss(now, then, {0, 1, 3})
    torch.testing.assert_close(ours.distillation(now, then), theirs)
