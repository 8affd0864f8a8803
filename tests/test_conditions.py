"""Under the conditions that people run models in: dtypes, PEFT, checkpointing, compilation, padding, several
pictures, sizes, videos. The answers are those of the plain model, and learning goes on."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from arr_coc import ArrCocConfig, attach
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import tiny_model

SMALL = ArrCocConfig(width=16, expansion=8)
ANSWERS = torch.tensor([[7], [8]])


def taught(inputs: dict[str, Any], answers: torch.Tensor = ANSWERS) -> dict[str, Any]:
    """The inputs with the answers behind them, every input that has a value per position as long."""
    ids = inputs["input_ids"]
    longer = dict(inputs)
    for name, value in inputs.items():
        if value.shape == ids.shape:
            fill = torch.ones_like(answers) if name == "attention_mask" else torch.zeros_like(answers)
            longer[name] = torch.cat([value, answers if name == "input_ids" else fill], 1)
    return {**longer, "labels": torch.cat([torch.full_like(ids, -100), answers], 1)}


def last(attached: Any, inputs: dict[str, Any]) -> list[int]:
    return attached(**inputs).logits[:, -1].argmax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_backbone_learns_and_statistics_stay_wide(dtype: torch.dtype) -> None:
    model, inputs = tiny.dual().to(dtype), tiny.dual_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with torch.no_grad():
        bare = model(**inputs).logits_per_image
    attached = attach(model, SMALL)
    assert torch.equal(attached(**inputs).logits_per_image, bare)
    for _ in range(5):
        attached.learn(**inputs, labels=torch.tensor([2, 0, 1]))
    out = attached(**inputs)
    assert out.logits_per_image.argmax(1).tolist() == [2, 0, 1]
    assert out.logits_per_image.dtype == dtype
    assert attached.learner.readout.weight.dtype == torch.float64
    assert attached.learner.relevance_weight.dtype == torch.float32
    attached.detach()
    writer, prompt = tiny.generative().to(dtype), tiny.generative_inputs()
    prompt["pixel_values"] = prompt["pixel_values"].to(dtype)
    attached = attach(writer, SMALL)
    for _ in range(5):
        attached.learn(**taught(prompt))
    assert last(attached, prompt) == [7, 8]


@pytest.mark.parametrize("merged", [False, True])
def test_over_a_peft_model_active_or_merged(merged: bool) -> None:
    tuned = get_peft_model(
        tiny.dual(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    tuned.eval()
    if merged:
        tuned = tuned.merge_and_unload()
    inputs = tiny.dual_inputs()
    with torch.no_grad():
        bare = tuned(**inputs).logits_per_image
        assert not torch.equal(bare, tiny.dual()(**inputs).logits_per_image)  # the LoRA counts
    kept = {k: v.clone() for k, v in tuned.state_dict().items()}
    attached = attach(tuned, SMALL)
    assert torch.equal(attached(**inputs).logits_per_image, bare)
    for _ in range(5):
        attached.learn(**inputs, labels=torch.tensor([2, 0, 1]))
    assert attached(**inputs).logits_per_image.argmax(1).tolist() == [2, 0, 1]
    assert attached.detach() is tuned
    with torch.no_grad():
        assert torch.equal(tuned(**inputs).logits_per_image, bare)
    assert all(torch.equal(v, kept[k]) for k, v in tuned.state_dict().items())


def test_gradient_checkpointing_changes_no_answer() -> None:
    inputs, answers = tiny.generative_inputs(), []
    for checkpointing in (False, True):
        model = tiny.generative()
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.train()
        attached = attach(model, SMALL)
        for _ in range(3):
            attached.learn(**taught(inputs))
        answers.append(attached(**inputs).logits)
        attached.detach()
    assert torch.equal(*answers)


def test_a_compiled_model_gives_the_same_answers() -> None:
    inputs, answers = tiny.dual_inputs(), []
    for compiled in (False, True):
        model = tiny.dual()
        if compiled:
            model.compile(backend="eager")  # traced and cut at the hooks; no compiler is needed
        attached = attach(model, SMALL)
        for _ in range(3):
            attached.learn(**inputs, labels=torch.tensor([2, 0, 1]))
        answers.append(attached(**inputs).logits_per_image)
        attached.detach()
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_neither_relevance_nor_answer(side: str) -> None:
    model, inputs = tiny.generative(), tiny.generative_inputs()
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    alone = attached(**inputs)
    pad = torch.zeros(2, 3, dtype=torch.long)
    order = (lambda a, b: [a, b]) if side == "left" else (lambda a, b: [b, a])
    padded = {
        "pixel_values": inputs["pixel_values"],
        "input_ids": torch.cat(order(pad, inputs["input_ids"]), 1),
        "attention_mask": torch.cat(order(pad, inputs["attention_mask"]), 1),
    }
    place = -1 if side == "left" else -4
    out = attached(**padded)
    torch.testing.assert_close(out.logits[:, place], alone.logits[:, -1], atol=1e-4, rtol=1e-4)
    if side == "left":
        torch.testing.assert_close(out.relevance, alone.relevance, atol=1e-5, rtol=1e-4)
        written = attached.generate(**padded, max_new_tokens=1, do_sample=False)
        assert written[:, -1].tolist() == [7, 8]


def test_several_pictures_a_sample_are_all_looked_at() -> None:
    model, one = tiny.generative(), tiny.generative_inputs()
    images = torch.full((2, 16), tiny.IMAGE)
    inputs = {
        "pixel_values": torch.cat([one["pixel_values"], one["pixel_values"].flip(0)]),
        "input_ids": torch.cat([one["input_ids"], images, one["input_ids"][:, -2:]], 1),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    out = attached(**inputs)
    assert out.relevance.shape == (2, 32)
    assert last(attached, inputs) == [7, 8]


def test_pictures_of_different_sizes_in_one_batch() -> None:
    model, inputs = tiny_model("qwen2_5_vl", "generative"), example(tiny_model("qwen2_5_vl", "generative"))
    ids = inputs["input_ids"]
    image = model.config.image_token_id
    first = int((ids[0] == image).nonzero()[0])
    wide = torch.cat([ids[1:, :first], torch.full((1, 8), image), ids[1:, first + 4 :]], 1)
    narrow = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids[:1]], 1)
    both = torch.cat([narrow, wide])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    draw = torch.Generator().manual_seed(3)
    inputs = {
        "input_ids": both,
        "attention_mask": mask,
        "mm_token_type_ids": (both == image).long(),
        "pixel_values": torch.randn(16 + 32, inputs["pixel_values"].shape[1], generator=draw),
        "image_grid_thw": torch.tensor([[1, 4, 4], [1, 4, 8]]),
    }
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    out = attached(**inputs)
    assert out.relevance.shape == (2, 8)
    assert torch.equal(out.relevance[0, 4:], torch.zeros(4))  # the smaller picture has four tokens
    torch.testing.assert_close(out.relevance.sum(1), torch.ones(2))
    assert last(attached, inputs) == [7, 8]


def test_a_clip_model_looks_at_larger_pictures_too() -> None:
    model, inputs = tiny.dual(), tiny.dual_inputs()
    inputs["pixel_values"] = torch.randn(3, 3, 48, 32, generator=torch.Generator().manual_seed(4))
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**inputs, interpolate_pos_encoding=True, labels=torch.tensor([2, 0, 1]))
    out = attached(**inputs, interpolate_pos_encoding=True)
    assert out.relevance.shape == (3, 24)
    assert out.logits_per_image.argmax(1).tolist() == [2, 0, 1]
    seen = attached.perceive(**inputs, interpolate_pos_encoding=True).percept
    assert seen.grid == (6, 4)


def test_frames_of_a_video_are_visual_tokens() -> None:
    model = tiny_model("qwen2_vl", "generative")
    inputs = example(model)
    film = inputs["input_ids"].masked_fill(
        inputs["input_ids"] == model.config.image_token_id, model.config.video_token_id
    )
    first = int((film[0] == model.config.video_token_id).nonzero()[0])
    more = torch.full((2, 4), model.config.video_token_id)  # two frames give twice a picture's tokens
    draw = torch.Generator().manual_seed(5)
    inputs = {
        "input_ids": torch.cat([film[:, :first], more, film[:, first:]], 1),
        "pixel_values_videos": torch.randn(2 * 32, inputs["pixel_values"].shape[1], generator=draw),
        "video_grid_thw": torch.tensor([[2, 4, 4]] * 2),
    }
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == model.config.video_token_id).long()
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    assert attached(**inputs).relevance.shape == (2, 8)
    assert last(attached, inputs) == [7, 8]


def test_a_pass_without_a_picture_is_the_models_own_and_nothing_is_kept_of_one() -> None:
    model, inputs = tiny.generative(), tiny.generative_inputs()
    text = {"input_ids": inputs["input_ids"][:, -4:], "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    with torch.no_grad():
        bare = model(**text).logits
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    assert attached.body.now.asked == {}
    assert attached.body.now.seen is None
    attached(**inputs)
    assert attached.body.now.asked == {}
    assert torch.equal(attached(**text).logits, bare)


def test_decoding_by_hand_goes_on_from_its_cache() -> None:
    model, inputs = tiny.generative(), tiny.generative_inputs()
    attached = attach(model, SMALL)
    answers = torch.tensor([[7, 9], [8, 9]])
    for _ in range(10):
        attached.learn(**taught(inputs, answers))
    first = attached(**inputs, use_cache=True)
    assert first.logits[:, -1].argmax(-1).tolist() == [7, 8]
    attached.learn(**taught(inputs, answers))  # what is learned meanwhile does not take the prompt away
    cache = getattr(first, "cache", None) or first.past_key_values
    mask = torch.ones(2, inputs["input_ids"].shape[1] + 1, dtype=torch.long)
    second = attached(input_ids=answers[:, :1], attention_mask=mask, past_key_values=cache)
    assert second.logits[:, -1].argmax(-1).tolist() == [9, 9]


def test_logits_kept_for_chosen_positions_are_those_of_the_whole() -> None:
    model, inputs = tiny.generative(), tiny.generative_inputs()
    attached = attach(model, SMALL)
    for _ in range(5):
        attached.learn(**taught(inputs))
    whole = attached(**inputs).logits
    for keep in (torch.tensor([20]), torch.tensor([19, 20]), torch.tensor([20, 19]), torch.tensor([17, 20])):
        torch.testing.assert_close(attached(**inputs, logits_to_keep=keep).logits, whole[:, keep])
    torch.testing.assert_close(attached(**inputs, logits_to_keep=2).logits, whole[:, -2:])


def test_two_attached_models_do_not_see_each_other() -> None:
    one, two = attach(tiny.dual(), SMALL), attach(tiny.dual("siglip"), SMALL)
    inputs = tiny.dual_inputs()
    before = two(**inputs).logits_per_image
    for _ in range(3):
        one.learn(**inputs, labels=torch.tensor([2, 0, 1]))
    assert torch.equal(two(**inputs).logits_per_image, before)
    one.detach()
    assert torch.equal(two(**inputs).logits_per_image, before)
    two.learn(**inputs, labels=torch.tensor([2, 0, 1]))
    two.detach()
