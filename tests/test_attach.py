"""attach: what was the model's stays the model's; what is learned shows; nothing is left behind."""

import json
from dataclasses import replace

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from arr_coc.adapters.capture import _NAME, _taps

SMALL = ArrCocConfig(width=16, expansion=8)
CONTEXT = torch.tensor([1, 2, 49])
MODELS = [(kind, attention) for kind in ("clip", "siglip") for attention in ("sdpa", "eager")]


def weights(model) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits_per_image


@pytest.mark.parametrize(("kind", "attention"), MODELS)
def test_outputs_are_bit_identical_with_learning_off_and_after_detach(kind: str, attention: str) -> None:
    model, inputs = tiny.dual(kind, attention), tiny.dual_inputs()
    before, kept = logits(model, inputs), weights(model)
    attached = attach(model, SMALL)
    assert torch.equal(attached(**inputs).logits_per_image, before)  # nothing learned, nothing changed
    for _ in range(5):
        attached.learn(**inputs, labels=torch.tensor([0, 1, 2]), context_ids=CONTEXT)
    assert not torch.equal(attached(**inputs, context_ids=CONTEXT).logits_per_image, before)
    with attached.disable():
        assert torch.equal(attached(**inputs).logits_per_image, before)
    assert attached.detach() is model
    assert torch.equal(logits(model, inputs), before)
    assert same(weights(model), kept)
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not _taps
    assert _NAME not in AttentionInterface._global_mapping


def test_relevance_is_even_where_nothing_was_asked_unless_it_is_wanted() -> None:
    inputs = tiny.dual_inputs()
    even = attach(tiny.dual(), ArrCocConfig(width=16, expansion=8, spread=0))
    torch.testing.assert_close(even(**inputs).relevance, torch.full((3, 16), 1 / 16))
    asked = even(**inputs, context_ids=CONTEXT).relevance
    assert float((asked - 1 / 16).abs().max()) > 1e-3
    even.detach()
    wanted = attach(tiny.dual(), ArrCocConfig(width=16, expansion=8, unasked_gain=1.0, spread=0))
    seen = wanted.perceive(**inputs).percept
    own = (seen.own - seen.own.mean(1, keepdim=True)).softmax(1)
    torch.testing.assert_close(wanted(**inputs).relevance, own)
    wanted.detach()


@pytest.mark.parametrize(("kind", "attention"), MODELS)
def test_learning_moves_the_answer_to_the_label(kind: str, attention: str) -> None:
    attached, inputs = attach(tiny.dual(kind, attention), SMALL), tiny.dual_inputs()
    labels = torch.tensor([4, 0, 2])
    for _ in range(30):
        attached.learn(**inputs, labels=labels, context_ids=CONTEXT)
    out = attached(**inputs, context_ids=CONTEXT)
    assert out.logits_per_image.argmax(1).tolist() == labels.tolist()
    assert out.relevance.shape == (3, 16)
    torch.testing.assert_close(out.relevance.sum(1), torch.ones(3))
    assert torch.isfinite(out.surprise).all()
    order = torch.tensor([3, 1, 4, 0, 2])
    turned = {**inputs, "input_ids": inputs["input_ids"][order]}
    again = attached(**turned, context_ids=CONTEXT).logits_per_image
    torch.testing.assert_close(again, out.logits_per_image[:, order])
    attached.detach()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_recomputed_row_is_the_models_own_attention(attention: str) -> None:
    inputs = tiny.dual_inputs()
    model = tiny.dual("clip", "eager")
    with torch.no_grad():
        vision = model.vision_model(inputs["pixel_values"], output_attentions=True)
    expected = torch.stack([vision.attentions[s].mean(1)[:, 0, 1:] for s in (1, 2)]).mean(0)
    attached = attach(tiny.dual("clip", attention), ArrCocConfig(width=16, sites=(1, 2)))
    seen = attached.perceive(**inputs)
    torch.testing.assert_close(seen.percept.attention, expected, rtol=1e-4, atol=1e-6)
    attached.detach()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_learns_its_answers_with_any_cache_and_beams(attention: str) -> None:
    model, inputs = tiny.generative(attention), tiny.generative_inputs()
    with torch.no_grad():
        before = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    attached = attach(model, SMALL)
    with attached.disable():
        assert torch.equal(attached.generate(**inputs, max_new_tokens=4, do_sample=False), before)
    answers = torch.tensor([[7, 2], [8, 2]])
    for _ in range(20):
        attached.learn(**tiny.answered(inputs, answers))
    for how in ({}, {"use_cache": False}, {"num_beams": 3}):
        written = attached.generate(**inputs, max_new_tokens=4, do_sample=False, **how)
        assert torch.equal(written[:, inputs["input_ids"].shape[1] :], answers)
    handle = attached.act(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(handle.choice, answers)
    assert attached.reward(handle, torch.tensor([1.0, 0.0])).shape == (4,)
    model = attached.detach()
    with torch.no_grad():
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)


def test_rewards_come_late_once_and_out_of_order() -> None:
    attached, inputs = attach(tiny.dual(), ArrCocConfig(width=16, expansion=8, pending=3)), tiny.dual_inputs()
    first, second = (attached.act(**inputs) for _ in range(2))
    attached.reward(second, torch.tensor([1.0, 0.0, 0.5]))
    attached.reward(first, 1.0)
    with pytest.raises(KeyError, match="rewarded already"):
        attached.reward(second, 1.0)
    crowd = [attached.act(**inputs) for _ in range(4)]
    with pytest.raises(KeyError, match="limit 3"):
        attached.reward(crowd[0], 1.0)
    with pytest.raises(KeyError, match="unknown"):
        attached.reward(type(first)(99, first.choice), 1.0)
    attached.detach()


def test_a_saved_adapter_goes_on_exactly_where_it_stopped(tmp_path) -> None:
    inputs, labels = tiny.dual_inputs(), torch.tensor([0, 1, 2])
    attached = attach(tiny.dual(), replace(SMALL, error_window=8))
    for shift in range(5):
        attached.learn(**inputs, labels=labels.roll(shift), context_ids=CONTEXT)
    assert attached.learner.own_gain.weight.abs().max() > 0
    handle, asked = attached.act(**inputs), attached.act(**inputs, context_ids=CONTEXT)
    attached.reward(attached.act(**inputs), torch.tensor([0.0, 1.0, 0.3]))
    attached.save_pretrained(tmp_path / "adapter")
    resumed = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "adapter")
    for one in (attached, resumed):
        one.reward(handle, torch.tensor([1.0, 0.0, 0.5]))
        one.reward(asked, torch.tensor([0.0, 1.0, 0.5]))
        one.learn(**inputs, labels=torch.tensor([0, 0, 0]), context_ids=CONTEXT)
        one.learn(**inputs, labels=torch.tensor([0, 1, 0]), context_ids=CONTEXT)
        one.act(**inputs)
    assert same(state.tensors(attached.learner), state.tensors(resumed.learner))
    assert state.meta(attached.learner) == state.meta(resumed.learner)
    for one in (attached, resumed):
        one.detach()


def test_damaged_and_foreign_files_are_refused_and_leave_no_hook(tmp_path) -> None:
    attached = attach(tiny.dual(), SMALL)
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]))
    attached.save_pretrained(tmp_path / "a")
    attached.detach()
    tensors, config = (tmp_path / "a" / n for n in ("arr_coc_model.safetensors", "arr_coc_config.json"))
    whole, text = tensors.read_bytes(), config.read_text()
    cases = [
        (whole[:-9], text, "checksum"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), text, "checksum"),
        (whole, text[:50], "damaged"),
        (whole, text.replace('"eta"', '"etta"'), "nearest is 'eta'"),
        (whole, text.replace('"config_version": 4', '"config_version": 99'), "this release reads"),
    ]
    model = tiny.dual()
    for data, said, words in cases:
        tensors.write_bytes(data)
        config.write_text(said)
        with pytest.raises(ValueError, match=words):
            ArrCocModel.from_pretrained(model, tmp_path / "a")
    tensors.write_bytes(whole)
    meta = json.loads(text)
    meta["learner"]["classes"].append("a class that has no row")
    config.write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="needs"):
        ArrCocModel.from_pretrained(model, tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        ArrCocModel.from_pretrained(model, tmp_path / "none")
    assert not any(m._forward_hooks for m in model.modules())
    attach(model, SMALL).detach()  # it can still be attached to


def _bad() -> list[tuple[str, dict, type[Exception], str]]:
    good = tiny.dual_inputs()
    labels = torch.tensor([0, 1, 2])
    nan = good["pixel_values"].clone()
    nan[1, 0, 0, 0] = float("nan")
    return [
        ("nan", {**good, "pixel_values": nan, "labels": labels}, ValueError, r"samples \[1\]"),
        (
            "inf",
            {**good, "pixel_values": nan.nan_to_num(torch.inf), "labels": labels},
            ValueError,
            "infinity",
        ),
        ("bytes", {**good, "pixel_values": nan.nan_to_num().byte(), "labels": labels}, TypeError, "uint8"),
        ("empty", {**good, "pixel_values": nan[:0], "labels": labels[:0]}, ValueError, "B >= 1"),
        ("shape", {**good, "pixel_values": nan[0], "labels": labels}, ValueError, "B, channels, H, W"),
        ("range", {**good, "labels": torch.tensor([0, 1, 5])}, ValueError, r"\[5\] are out of range"),
        ("count", {**good, "labels": labels[:2]}, ValueError, r"\(3,\) is needed"),
        ("none", {**good, "labels": None}, TypeError, "labels is None"),
        ("kind", {**good, "labels": labels.float()}, TypeError, "whole numbers"),
        ("ids", {**good, "input_ids": good["input_ids"][0], "labels": labels}, ValueError, "one row per"),
        (
            "mask",
            {**good, "attention_mask": torch.ones(2, 6), "labels": labels},
            ValueError,
            "attention_mask",
        ),
        ("context", {**good, "labels": labels, "context_ids": torch.ones(2, 3).long()}, ValueError, "1 or 3"),
    ]


@pytest.mark.parametrize(("inputs", "error", "words"), [b[1:] for b in _bad()], ids=[b[0] for b in _bad()])
def test_bad_input_changes_nothing(inputs: dict, error: type[Exception], words: str) -> None:
    attached, good = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    attached.learn(**good, labels=torch.tensor([0, 1, 2]), context_ids=CONTEXT)
    before = {k: v.clone() for k, v in state.tensors(attached.learner).items()}
    about, answer = state.meta(attached.learner), attached(**good).logits_per_image.clone()
    with pytest.raises(error, match=words):
        attached.learn(**inputs)
    assert same(before, state.tensors(attached.learner))
    assert about == state.meta(attached.learner)
    assert torch.equal(attached(**good).logits_per_image, answer)
    attached.detach()


def test_wrong_models_sites_and_second_attachments_are_refused() -> None:
    model = tiny.dual()
    with pytest.raises(ValueError, match=r"site 9 .* nearest is 3"):
        attach(model, ArrCocConfig(sites=(9,)))
    attached = attach(model, SMALL)
    for again in (model, attached):
        with pytest.raises(ValueError, match="detach"):
            attach(again, SMALL)
    attached.detach()
    with pytest.raises(TypeError, match="dual encoder"):
        attach(model.vision_model)
    with pytest.raises(TypeError, match="no config of transformers"):
        attach(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="did you mean 'attention_gated'"):
        ArrCocConfig(rule="attention")
    with pytest.raises(RuntimeError, match="detached"):
        attached(**tiny.dual_inputs())


def test_an_error_inside_the_model_leaves_everything_as_it_was() -> None:
    attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    before = attached(**inputs).logits_per_image.clone()
    broken = attached.model.vision_model.encoder.layers[3].register_forward_hook(
        lambda *_: (_ for _ in ()).throw(RuntimeError("inside"))
    )
    with pytest.raises(RuntimeError, match="inside"):
        attached.learn(**inputs, labels=torch.tensor([0, 1, 2]))
    broken.remove()
    assert attached._capture.tokens == {}
    assert attached.learner.classes == []
    assert torch.equal(attached(**inputs).logits_per_image, before)
    attached.detach()


def test_two_attached_models_do_not_see_each_other() -> None:
    inputs = tiny.dual_inputs()
    one, two = attach(tiny.dual(), SMALL), attach(tiny.dual(), SMALL)
    untouched = two(**inputs).logits_per_image.clone()
    for _ in range(5):
        one.learn(**inputs, labels=torch.tensor([0, 1, 2]))
    one.detach()
    assert torch.equal(two(**inputs).logits_per_image, untouched)
    two.learn(**inputs, labels=torch.tensor([0, 1, 2]))
    two.detach()


def test_an_image_token_that_the_model_writes_itself_is_only_a_word() -> None:
    attached, inputs = attach(tiny.generative(), SMALL), tiny.generative_inputs()
    asked = {**inputs, "max_new_tokens": 4, "do_sample": False}
    learner = attached.learner
    for _ in range(20):
        seen = attached.perceive(**tiny.answered(inputs, torch.tensor([[7, 2], [8, 2]])))
        learner.learn(seen.percept, [str(tiny.IMAGE), "2"] * 2)
    written = attached.generate(**asked)[:, inputs["input_ids"].shape[1] :]
    assert (written[:, 0] == tiny.IMAGE).all()
    attached.detach()


@pytest.mark.parametrize(
    "said", [[0, 0.5, "text"], [7, 0.5, "text", None], [0, 0.5, "text", float("nan")], [0, None, "text", 0.1]]
)
def test_a_pending_action_that_cannot_be_is_refused_before_anything_changes(said: list) -> None:
    attached = attach(tiny.dual(), SMALL)
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]), context_ids=CONTEXT)
    attached.act(**tiny.dual_inputs(), context_ids=CONTEXT)
    saved, about = state.tensors(attached.learner), state.meta(attached.learner)
    about["pending"][0]["groups"][0][0] = said
    fresh = attach(tiny.dual(), SMALL)
    before = {k: v.clone() for k, v in state.tensors(fresh.learner).items()}
    with pytest.raises(ValueError, match="pending action"):
        state.load(fresh.learner, saved, about)
    assert same(before, state.tensors(fresh.learner))
    assert fresh.learner.classes == []
    for one in (attached, fresh):
        one.detach()
