"""Percepts against the model, and the examination of a method."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel

import fakes
from arr_coc import attach
from arr_coc.eval import exam, percepts, percepts_file
from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_lora import Lora
from arr_coc.eval.percepts import TextBook
from arr_coc.training import streams
from fakes import CLASSES, FakeTexts, fake_store, small


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return fakes.tiny_clip(), fakes.FakeProcessor()


# -- the examination -----------------------------------------------------------------------------------------


def test_pointing_is_expected_under_ties() -> None:
    r = torch.tensor([[0.4, 0.4, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.25] * 4])
    mask = torch.tensor([[True, False, False, False]] * 3)
    assert exam.pointing(r, mask).tolist() == [0.5, 0.0, 0.25]


class Scripted(features.Method):
    """Knows the answers of the first `known` classes, and says the last class otherwise."""

    known = 0

    def answer(self, batch: percepts.Batch, texts: list[str]) -> features.Answered:
        scores = torch.zeros(len(batch.labels), len(texts))
        scores[:, 2] = 1
        for i, label in enumerate(batch.labels):
            if texts.index(label) < self.known:
                scores[i, texts.index(label)] = 2
        return features.Answered(scores)


def test_union_restricts_the_answers_to_what_was_taught() -> None:
    store = fake_store()
    probes = [(store.label == k).nonzero().flatten() for k in range(3)]
    met = [CLASSES[: k + 1] for k in range(3)]
    stream = streams.Stream("fake", [], [[c] for c in CLASSES], CLASSES, [])
    plan = percepts.Plan(
        torch.arange(0), [0, 0, 0], probes, [[c] for c in CLASSES], met, stream, [[]] * 3, []
    )
    plan = replace(plan, places=[list(range(len(p))) for p in probes])
    method = Scripted()
    method.known = 1
    found = exam.examine(method, plan, store, over=2)
    assert found.accuracy == [1.0, 0.0, 1.0]
    # with one class there is only one answer; with two, the second is unknown and the first wins by ties
    n = [len(p) for p in probes]
    assert found.union == [1.0, pytest.approx(n[0] / (n[0] + n[1])), None]


# -- percepts on a real (tiny) model -------------------------------------------------------------------------


def test_store_holds_what_the_model_perceives(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    stream = small()
    texts = TextBook(model, processor)
    attached = attach(model)
    try:
        store = percepts_file.of_stream(attached, texts, stream, batch=5)
        sample = stream.samples[7]
        row = store.place["train", sample["index"]]
        said = texts.tokens([sample["context"]])
        shown = processor.image_processor([sample["image"]])
        seen = attached.perceive(
            **shown,
            **texts.tokens(stream.classes),
            context_ids=said["input_ids"],
            context_attention_mask=said["attention_mask"],
        )
    finally:
        attached.detach()
    batch = store.batch(torch.tensor([row]))
    torch.testing.assert_close(batch.percept.tokens[0].float(), seen.percept.tokens[0], atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(batch.percept.own, seen.percept.own, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(batch.percept.context, seen.percept.context, atol=1e-5, rtol=1e-5)
    own = batch.own_logits(stream.classes)
    torch.testing.assert_close(own, seen.output.logits_per_image, atol=1e-4, rtol=1e-4)
    assert batch.labels == [sample["label"]]
    assert batch.contexts == [sample["context"]]
    assert batch.percept.asked == "text"
    assert torch.equal(batch.mask[0], torch.from_numpy(sample["mask"]).flatten())


def test_a_store_survives_the_disk_bit_for_bit_and_rubbish_does_not(
    tiny: tuple[Any, Any], tmp_path: Path
) -> None:
    texts, store = FakeTexts(), fake_store()
    path = tmp_path / "store.safetensors"
    percepts_file.save(store, path)
    back = percepts_file.restore(path, texts)
    assert all(torch.equal(a, b) for a, b in zip(store.tokens, back.tokens, strict=True))
    assert torch.equal(store.own, back.own)
    assert (back.place, back.classes, back.contexts) == (store.place, store.classes, store.contexts)
    assert torch.equal(store.mask, back.mask)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="no store"):
        percepts_file.restore(path, texts)


def test_cache_name_changes_with_the_weights(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    model, _ = tiny
    other = CLIPModel(model.config)
    names = {percepts_file.cache_path(tmp_path, "s", {"n": 1}, 0, m).name for m in (model, other)}
    names.add(percepts_file.cache_path(tmp_path, "s", {"n": 2}, 0, model).name)
    assert len(names) == 3
    assert percepts_file.fingerprint(model) == percepts_file.fingerprint(model)


@pytest.mark.parametrize("name", ["cued-clutter", "cued-clutter-classes", "split-fashion"])
def test_orders_share_a_store_and_plans_say_what_the_stream_says(name: str, tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    options = {"n_train": 60, "n_test": 60}
    store = percepts_file.of_stream(
        attached := attach(model), TextBook(model, processor), small(name, **options)
    )
    attached.detach()
    for order in range(2):
        stream = small(name, order=order, **options)
        plan = percepts.plan(stream, store, probe_limit=3)
        batch = store.batch(plan.train)
        samples = list(stream.samples)
        assert batch.labels == [s["label"] for s in samples]
        assert batch.contexts == [s["context"] for s in samples]
        assert plan.ends[-1] == len(samples)
        assert [samples[e - 1]["experience"] for e in plan.ends] == list(range(len(plan.ends)))
        for probe, rows, places in zip(stream.probes, plan.probes, plan.places, strict=True):
            assert len(rows) <= 3
            assert store.batch(rows).labels == [probe[i]["label"] for i in places]


def test_lora_starts_as_the_frozen_model_and_moves_nothing_of_it(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    stream = small()
    texts = TextBook(model, processor)
    store = percepts_file.of_stream(attached := attach(model), texts, stream)
    attached.detach()
    method = Lora(model, texts, stream.classes, rate=1e-2)
    rows = torch.arange(4)
    batch = store.batch(rows, [stream.samples[i]["image"] for i in range(4)])
    rows = torch.tensor([store.place["train", stream.samples[i]["index"]] for i in range(4)])
    batch = replace(store.batch(rows), images=batch.images)
    frozen = features.ZeroShot(joined=True).answer(batch, stream.classes).scores
    torch.testing.assert_close(method.answer(batch, stream.classes).scores, frozen, atol=1e-4, rtol=1e-4)
    before = {n: p.detach().clone() for n, p in method.model.named_parameters()}
    for _ in range(2):
        method.observe(batch)
    moved = {n for n, p in method.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all("lora_" in n and "vision_model" in n for n in moved)
    assert not torch.equal(method.answer(batch, stream.classes).scores, frozen)
    with pytest.raises(ValueError, match="images"):
        method.answer(store.batch(rows), stream.classes)
