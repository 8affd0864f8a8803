"""transformers.pipeline takes an attached model, says what it says when called itself, and learns."""

import logging

import pytest
import torch
from PIL import Image
from transformers import pipeline

from arr_coc import ArrCocConfig, attach
from arr_coc.adapters import embedded

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 180, 30)}


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (96, 96), (240, 240, 240))
    image.paste(COLOURS[colour], (24, 24, 72, 72))
    return image


@pytest.fixture
def complaints(caplog, monkeypatch):
    """What transformers logs as an error; it keeps its records to itself unless they are let through."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


def test_zero_shot_image_classification_is_the_attached_models_and_learns(complaints) -> None:
    model, processor = embedded.load("dual")
    attached = attach(model, processor=processor)
    classify = pipeline(
        "zero-shot-image-classification",
        model=attached,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
    )
    assert complaints() == []
    names, asked = ["dax", "wug", "zorp"], {"hypothesis_template": "{}"}

    def scores(image: Image.Image) -> dict[str, float]:
        found = classify(image, candidate_labels=names, **asked)
        return {one["label"]: one["score"] for one in found}

    def directly(image: Image.Image, who) -> dict[str, float]:
        inputs = processor(text=names, images=image, return_tensors="pt", padding=True)
        with torch.no_grad():
            chances = who(**inputs).logits_per_image.softmax(1)[0]
        return dict(zip(names, chances.tolist(), strict=True))

    before = {colour: scores(picture(colour)) for colour in COLOURS}
    with attached.disable():
        assert before["red"] == pytest.approx(directly(picture("red"), model), abs=1e-6)
    taught = dict(zip(COLOURS, ["wug", "zorp", "dax"], strict=True))
    inputs = processor(text=names, images=[picture(c) for c in COLOURS], return_tensors="pt", padding=True)
    for _ in range(8):
        attached.learn(**inputs, labels=torch.tensor([names.index(taught[c]) for c in COLOURS]))
    for colour, name in taught.items():
        after = scores(picture(colour))
        assert max(after, key=after.get) == name
        assert after == pytest.approx(directly(picture(colour), attached), abs=1e-6)
        assert after[name] > before[colour][name] + 0.1
    several = classify([picture(c) for c in COLOURS], candidate_labels=names, batch_size=3, **asked)
    assert [one[0]["label"] for one in several] == list(taught.values())
    with attached.disable():
        assert scores(picture("red")) == before["red"]
    attached.detach()


def test_image_text_to_text_is_the_attached_models_and_learns(complaints) -> None:
    model, processor = embedded.load("generative")
    attached = attach(model, processor=processor)
    tell = pipeline("image-text-to-text", model=attached, processor=processor)
    assert complaints() == []
    prompt = "<image>what colour is it ?"
    said = {"max_new_tokens": 3, "generate_kwargs": {"do_sample": False}, "return_full_text": False}

    def asked(image: Image.Image) -> str:
        return tell(image, text=prompt, **said)[0]["generated_text"]

    def directly(image: Image.Image, who) -> str:
        inputs = processor(images=image, text=prompt, return_tensors="pt")
        written = who.generate(**inputs, max_new_tokens=3, do_sample=False)
        return processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    before = {colour: asked(picture(colour)) for colour in COLOURS}
    with attached.disable():
        assert {c: directly(picture(c), model) for c in COLOURS} == {c: before[c].strip() for c in COLOURS}
    # an answer that it does not give of itself: two words of its vocabulary, and the end
    words = processor.tokenizer
    wrong = {"red": "circle", "blue": "star", "green": "circle"}
    for _ in range(12):
        for colour, answer in wrong.items():
            inputs = processor(images=picture(colour), text=prompt, return_tensors="pt")
            taught = torch.tensor(
                [[*words(answer, add_special_tokens=False)["input_ids"], words.eos_token_id]]
            )
            ids = torch.cat([inputs["input_ids"], taught], 1)
            labels = torch.cat([torch.full_like(inputs["input_ids"], -100), taught], 1)
            full = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            attached.learn(**full, labels=labels)
    after = {colour: asked(picture(colour)).strip() for colour in COLOURS}
    assert after == wrong
    assert after != {c: before[c].strip() for c in COLOURS}
    assert {c: directly(picture(c), attached).strip() for c in COLOURS} == after
    attached.detach()


def test_moving_or_casting_the_whole_keeps_the_statistics_precise() -> None:
    """A pipeline moves the model that it is given; `half` and `to` reach the learner with it."""
    model, _ = embedded.load("dual")
    attached = attach(model, ArrCocConfig(width=16, expansion=8))
    kinds = {name: buffer.dtype for name, buffer in attached.learner.named_buffers()}
    assert torch.float64 in kinds.values()
    for change in (lambda: attached.to("cpu"), attached.bfloat16, lambda: attached.to(torch.float16)):
        change()
        assert {name: buffer.dtype for name, buffer in attached.learner.named_buffers()} == kinds
    assert model.dtype == torch.float16
    attached.detach()
