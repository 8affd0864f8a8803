"""The language side on whole models: read in the same frozen pass, off without a trace, saved with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, attach, state
from arr_coc.adapters import embedded
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.text_tokens import pooled_place

OFF = ArrCocConfig(width=8, expansion=4)
ON = ArrCocConfig(width=8, expansion=4, sequence=True)
SHARED = ("relevance", "surprise")


def made(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    if kind == "generative":
        return tiny.generative(), tiny.generative_inputs()
    return tiny.dual(kind), tiny.dual_inputs()


def labels(kind: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if kind == "generative":
        return tiny.answered(inputs, torch.tensor([[7, 2], [9, 2]]))
    return {**inputs, "labels": torch.tensor([0, 2, 1])}


KINDS = pytest.mark.parametrize("kind", ["clip", "siglip", "generative"])


@KINDS
def test_every_text_has_relevance_and_surprise_of_its_own_tokens(kind: str) -> None:
    model, inputs = made(kind)
    attached = attach(model, ON)
    attached.learn(**labels(kind, inputs))
    out = attached(**inputs)
    assert out.text_relevance.shape == out.text_surprise.shape == inputs["input_ids"].shape
    torch.testing.assert_close(out.text_relevance.sum(1), torch.ones(len(inputs["input_ids"])))
    if kind == "generative":
        assert not out.text_relevance[inputs["input_ids"] == tiny.IMAGE].any()
        assert not out.text_surprise[inputs["input_ids"] == tiny.IMAGE].any()
    assert (out.text_surprise != 0).sum() > 0
    assert torch.isfinite(out.text_surprise).all()


@KINDS
def test_with_it_everything_else_is_as_without_bit_for_bit(kind: str) -> None:
    left: list[Any] = []
    for config in (OFF, ON):
        model, inputs = made(kind)
        attached = attach(model, config)
        attached.learn(**labels(kind, inputs))
        left.append((attached(**inputs), state.tensors(attached.learner)))
    (plain, saved), (read, more) = left
    for name in (*SHARED, "logits" if kind == "generative" else "logits_per_image"):
        assert torch.equal(getattr(plain, name), getattr(read, name))
    assert not hasattr(plain, "text_relevance")
    assert not any(name.startswith("sequence.") for name in saved)
    assert all(torch.equal(saved[name], more[name]) for name in saved)


@KINDS
def test_no_second_pass_and_nothing_left_behind(kind: str) -> None:
    model, inputs = made(kind)
    before = {k: getattr(m, "config", None) for k, m in model.named_modules()}
    plain = model(**inputs)  # transformers makes hooks of its own at the first pass
    hooks = {k: len(m._forward_hooks) + len(m._forward_pre_hooks) for k, m in model.named_modules()}
    attached = attach(model, ON)
    passes: list[int] = []
    text = model.get_decoder() if kind == "generative" else model.text_model
    counter = text.register_forward_hook(lambda *_: passes.append(1))
    attached(**inputs)
    attached.learn(**labels(kind, inputs))
    counter.remove()
    assert len(passes) == 2
    assert attached._capture.tokens == {}
    assert all(tap.rows is None and tap.result is None for tap in attached._capture._every_tap())
    attached.detach()
    assert {k: len(m._forward_hooks) + len(m._forward_pre_hooks) for k, m in model.named_modules()} == hooks
    assert all(getattr(m, "config", None) is before[k] for k, m in model.named_modules())
    name = "logits" if kind == "generative" else "logits_per_image"
    assert torch.equal(getattr(plain, name), getattr(model(**inputs), name))


def test_an_error_inside_the_model_leaves_nothing_that_listens() -> None:
    model, inputs = made("clip")
    attached = attach(model, ON)
    attached(**inputs)
    with pytest.raises(ValueError, match=r"NaN|finite"):
        attached.learn(**labels("clip", {**inputs, "pixel_values": inputs["pixel_values"] * torch.nan}))
    assert attached._capture.tokens == {}
    assert attached._capture.text_tap is not None
    assert attached._capture.text_tap.rows is None


@pytest.mark.parametrize("kind", ["clip", "generative"])  # SigLIP reads its padding like words
def test_padding_changes_no_text(kind: str) -> None:
    model, inputs = made(kind)
    attached = attach(model, ON)
    attached.learn(**labels(kind, inputs))
    out = attached(**inputs)
    pad = {n: torch.zeros_like(inputs[n][:, :2]) for n in ("input_ids", "attention_mask")}
    left = kind == "generative"  # as such models pad
    more = {n: torch.cat([p, inputs[n]] if left else [inputs[n], p], 1) for n, p in pad.items()}
    padded = attached(**{**inputs, **more})
    here, there = (slice(2, None), slice(2)) if left else (slice(-2), slice(-2, None))
    for name in ("text_relevance", "text_surprise"):
        found = getattr(padded, name)
        torch.testing.assert_close(found[:, here], getattr(out, name), atol=1e-4, rtol=1e-3)
        assert not found[:, there].any()


def test_the_row_is_the_end_tokens_in_clip_and_the_last_one_in_siglip() -> None:
    model, inputs = made("clip")
    ids = inputs["input_ids"].clone()
    ids[0, 3] = 49
    assert pooled_place(model, ids).tolist() == [3, 5, 5, 5, 5]
    attached = attach(model, ON)
    out = attached(**{**inputs, "input_ids": ids})
    attached.detach()
    model.set_attn_implementation("eager")
    asked = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    heard = model.text_model(**asked, output_attentions=True, output_hidden_states=True)
    place = pooled_place(model, ids)
    row = heard.attentions[-1].mean(1)[torch.arange(5), place]
    made_of = attached.learner.sequence
    assert made_of is not None
    z = made_of.features(heard.hidden_states[-1])
    gamma = row.log() + torch.nn.functional.cosine_similarity(z, z[torch.arange(5), place][:, None], dim=-1)
    words = (ids != 49) & (ids != 48)  # in CLIP what stands behind the end is not seen from there
    wanted = gamma.masked_fill(~words, -torch.inf).softmax(1).float()
    torch.testing.assert_close(out.text_relevance, wanted, atol=1e-5, rtol=1e-4)
    assert not out.text_relevance[0, 3:].any()
    other, given = made("siglip")
    assert pooled_place(other, given["input_ids"]).tolist() == [5] * 5


def test_only_the_right_candidate_is_learned_from() -> None:
    model, inputs = made("clip")
    attached = attach(model, ON)
    attached.learn(**labels("clip", inputs))
    sequence = attached.learner.sequence
    assert sequence is not None
    assert int(sequence.count) == 3 * 6  # three pictures, one text of six tokens each


@KINDS
def test_saved_and_gone_on_with_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model, inputs = made(kind)
    attached = attach(model, ON)
    attached.learn(**labels(kind, inputs))
    attached.save_pretrained(tmp_path / "a")
    attached.learn(**labels(kind, inputs))
    one = {k: t.clone() for k, t in state.tensors(attached.learner).items()}
    attached.detach()
    again = ArrCocModel.from_pretrained(model, tmp_path / "a")
    again.learn(**labels(kind, inputs))
    two = state.tensors(again.learner)
    assert any(name.startswith("sequence.") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_one_adapter_may_read_texts_and_another_not() -> None:
    model, inputs = made("clip")
    attached = attach(model, OFF)
    assert not hasattr(attached(**inputs), "text_relevance")
    attached.add_adapter("reads", ON)
    attached.set_active(["default", "reads"])
    assert hasattr(attached(**inputs), "text_relevance")
    attached.set_active(["default"])
    assert not hasattr(attached(**inputs), "text_relevance")


@pytest.mark.parametrize("kind", ["dual", "generative"])
def test_on_the_built_in_models(kind: str) -> None:
    model, processor = embedded.load(kind)
    attached = attach(model, ArrCocConfig(expansion=0, sequence=True), processor)
    if kind == "dual":
        said = processor.tokenizer(["a coat", "a small red bag"], padding=True, return_tensors="pt")
        inputs = {k: said[k] for k in ("input_ids", "attention_mask")}
    else:
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
        text = processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = dict(processor.tokenizer([text.replace("<image>", "<image>" * 144)], return_tensors="pt"))
        inputs.pop("token_type_ids", None)
    side = model.config.vision_config.image_size
    out = attached(pixel_values=torch.zeros(1, 3, side, side), **inputs)
    assert out.text_relevance.shape == inputs["input_ids"].shape
    torch.testing.assert_close(out.text_relevance.sum(1), torch.ones(len(inputs["input_ids"])))
    assert not out.text_relevance[inputs["input_ids"] == model.config.text_config.eos_token_id].any()


def test_generate_goes_on_as_without() -> None:
    model, inputs = made("generative")
    plain = attach(model, OFF)
    one = plain.generate(**inputs, max_new_tokens=3, do_sample=False)
    plain.detach()
    two = attach(model, ON).generate(**inputs, max_new_tokens=3, do_sample=False)
    assert torch.equal(one, two)
