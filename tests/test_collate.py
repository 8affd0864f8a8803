"""Rows become inputs and labels as the processor and the packer of the training would make them."""

from types import SimpleNamespace

import pytest
import torch

import tiny
from arr_coc import attach
from arr_coc.adapters import embedded, texts
from arr_coc.eval.percepts_words import said
from arr_coc.training import garments
from arr_coc.training.collate import AnswerCollator, ChoiceCollator

QUESTIONS = ["what colour is the circle?", "where is it?", "is there a triangle?"]
ANSWERS = ["red", "top left", "no"]


def rows() -> list[dict]:
    drawn = garments.rows("test", 3)
    asked = zip(range(3), QUESTIONS, ANSWERS, strict=True)
    return [{"image": drawn[i]["image"], "question": q, "answer": a} for i, q, a in asked]


def test_answers_stand_where_the_trainings_own_packer_puts_them() -> None:
    """Row by row without the padding: the packer pads on the right, generation needs it on the left."""
    model, processor = embedded.load("generative")
    batch = AnswerCollator(processor, model)(rows())
    packed, labels = said(processor, [r["image"] for r in rows()], QUESTIONS, ANSWERS)
    assert batch["labels"].shape == batch["input_ids"].shape
    for i in range(3):
        mine = batch["attention_mask"][i].bool() & (batch["input_ids"][i] != processor.tokenizer.pad_token_id)
        theirs = packed["attention_mask"][i].bool()
        assert torch.equal(batch["input_ids"][i][mine], packed["input_ids"][i][theirs])
        assert torch.equal(batch["labels"][i][mine], labels[i][theirs])
        assert (batch["labels"][i][~mine] == -100).all()
    torch.testing.assert_close(batch["pixel_values"], packed["pixel_values"])


def test_what_is_taught_is_what_generate_then_writes() -> None:
    model, processor = embedded.load("generative")
    attached = attach(model, processor=processor)
    collate = AnswerCollator(processor, attached)
    taught = [dict(r, answer=a) for r, a in zip(rows(), ["yellow star", "seven", "yes"], strict=True)]
    for _ in range(15):
        batch = collate(taught)
        attached.learn(labels=batch.pop("labels"), **batch)
    assert collate.answers(attached, taught, max_new_tokens=6) == ["yellow star", "seven", "yes"]
    with attached.disable():
        assert collate.answers(attached, taught, max_new_tokens=6) == collate.answers(
            model, taught, max_new_tokens=6
        )


def test_an_end_that_is_also_the_padding_is_taught() -> None:
    """Many tokenizers pad with the end of the sequence; the first one is the answer's end all the same."""
    model, processor = embedded.load("generative")
    processor.tokenizer.pad_token = processor.tokenizer.eos_token
    labels = AnswerCollator(processor, model)(rows())["labels"]
    taught = [row[row != -100].tolist() for row in labels]
    end = processor.tokenizer.eos_token_id
    assert [ids[-1] for ids in taught] == [end] * 3
    assert [len(ids) for ids in taught] == [2, 3, 2]


def test_several_pictures_of_a_sample_have_a_place_each_in_the_prompt() -> None:
    model, processor = embedded.load("generative")
    two = [dict(r, image=[r["image"], r["image"]]) for r in rows()]
    batch = AnswerCollator(processor, model)(two)
    assert ((batch["input_ids"] == model.config.image_token_id).sum(1) == 2 * 144).all()
    assert len(batch["pixel_values"]) == 6


def test_without_a_chat_template_a_prompt_is_needed_and_used() -> None:
    model, processor = embedded.load("generative")
    processor.chat_template = None
    with pytest.raises(ValueError, match="has no chat template: give a prompt"):
        AnswerCollator(processor, model)
    with pytest.raises(ValueError, match="tell me' has no"):
        AnswerCollator(processor, model, "<image> tell me")
    ids = AnswerCollator(processor, model, "<image> {question} !").prompts(rows())["input_ids"]
    assert processor.decode(ids[0], skip_special_tokens=True).strip().endswith("circle?!")


def test_an_encoder_decoders_labels_stand_alone() -> None:
    _, processor = embedded.load("generative")
    whole = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True, model_type="florence2"))
    batch = AnswerCollator(processor, whole)(rows())
    assert batch["labels"].shape == (3, 3)
    prompts = AnswerCollator(processor, whole).prompts(rows())
    assert torch.equal(batch["input_ids"], prompts["input_ids"])


def test_choices_are_texts_places_or_names_and_nothing_else() -> None:
    model, processor = embedded.load("dual")
    candidates = ["a photo of a bag", "a photo of a coat"]
    collate = ChoiceCollator(processor, model, candidates, said={"bag": candidates[0], "coat": candidates[1]})
    image = rows()[0]["image"]
    batch = collate([{"image": image, "label": label} for label in ("coat", candidates[0], 1)])
    assert batch["labels"].tolist() == [1, 0, 1]
    asked = processor(text=candidates, images=[image], return_tensors="pt", padding=True)
    assert torch.equal(batch["input_ids"], asked["input_ids"])
    torch.testing.assert_close(batch["pixel_values"][:1], asked["pixel_values"])
    for wrong in ("shoe", 2, -1, True, None, 0.0):
        with pytest.raises(ValueError, match="none of the 2 candidates"):
            collate([{"image": image, "label": wrong}])
    with pytest.raises(ValueError, match="none twice"):
        ChoiceCollator(processor, model, ["a", "a"])


def test_a_context_is_every_samples_own() -> None:
    model, processor = embedded.load("dual")
    collate = ChoiceCollator(processor, model, ["x", "y"], context="asked")
    image = rows()[0]["image"]
    batch = collate([{"image": image, "label": 0, "asked": cue} for cue in ("red", "the blue one")])
    alone = processor(text=["red", "the blue one"], return_tensors="pt", padding=True)
    assert torch.equal(batch["context_ids"], alone["input_ids"])
    assert torch.equal(batch["context_attention_mask"], alone["attention_mask"])


def test_siglip_reads_texts_padded_to_their_full_length() -> None:
    """It was trained so, and attends to the padding (as transformers' own pipeline knows)."""

    class Tokenizer:
        def __call__(self, given, padding, truncation, return_tensors, max_length=None):
            self.asked = padding, max_length
            return {"input_ids": torch.zeros(len(given), max_length or 3, dtype=torch.long)}

    tokenizer = Tokenizer()
    siglip = tiny.dual("siglip")
    made = texts.tokenized(SimpleNamespace(tokenizer=tokenizer), ["a", "b"], siglip)
    assert tokenizer.asked == ("max_length", siglip.config.text_config.max_position_embeddings)
    assert set(made) == {"input_ids"}
    texts.tokenized(SimpleNamespace(tokenizer=tokenizer), ["a"], tiny.dual())
    assert tokenizer.asked == (True, None)


def test_pixels_come_in_the_dtype_of_the_model() -> None:
    model, processor = embedded.load("generative", torch.bfloat16)
    assert AnswerCollator(processor, model)(rows())["pixel_values"].dtype == torch.bfloat16
    model, processor = embedded.load("dual", torch.float16)
    batch = ChoiceCollator(processor, model, ["x"])([{"image": rows()[0]["image"], "label": 0}])
    assert batch["pixel_values"].dtype == torch.float16
    assert batch["input_ids"].dtype == torch.int64
