"""Checkpoints as the Hub has them: loaded by the Auto classes, asked through their processors, attached,
taught, saved and detached, in full and in half precision."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from arr_coc import ArrCocConfig, ArrCocModel, attach
from arr_coc.adapters.offloaded import weights
from local_folders import KINDS, NAMES, bare, hooks, lesson, load, logits, questions, said, save, values

SMALL = ArrCocConfig(width=16, expansion=8)
EVERY = list(KINDS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", EVERY)
def test_a_folder_goes_the_whole_way(kind: str, folders, tmp_path) -> None:
    model, processor = load(kind, folders[kind], dtype=torch.float32, device_map="cpu")
    asked = questions(kind, processor)
    before, kept, hung = bare(model, asked), values(model), hooks(model)
    attached = attach(model, SMALL, processor)
    assert torch.equal(logits(attached(**asked)), before)
    assert said(kind, processor, attached, asked) != list(NAMES)
    taught = lesson(kind, processor, asked)
    for _ in range(8):
        attached.learn(**taught)
    assert said(kind, processor, attached, asked) == list(NAMES)
    with attached.disable():
        assert torch.equal(logits(attached(**asked)), before)
    learned = logits(attached(**asked))
    attached.save_pretrained(tmp_path / "adapter")
    assert torch.equal(bare(attached.detach(), asked), before)
    assert hooks(model) == hung
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(model))

    fresh, processor = load(kind, folders[kind])
    again = ArrCocModel.from_pretrained(fresh, tmp_path / "adapter", processor)
    assert torch.equal(logits(again(**questions(kind, processor))), learned)
    again.detach()


@pytest.mark.parametrize("kind", [kind for kind in EVERY if KINDS[kind].task == "generative"])
def test_relevance_has_an_entry_for_every_place_that_the_processor_made(kind: str, folders) -> None:
    model, processor = load(kind, folders[kind])
    asked = questions(kind, processor)
    image = processor.tokenizer.convert_tokens_to_ids(KINDS[kind].image)
    places = (asked["input_ids"] == image).sum(1)
    attached = attach(model, SMALL, processor)
    attached.learn(**lesson(kind, processor, asked))
    relevance = attached(**asked).relevance
    assert places.tolist() == [relevance.shape[1]] * len(NAMES)
    torch.testing.assert_close(relevance.sum(1), torch.ones(len(NAMES)), atol=1e-5, rtol=0)
    attached.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", EVERY)
def test_half_precision_placed_by_accelerate(kind: str, dtype: torch.dtype, folders) -> None:
    model, processor = load(kind, folders[kind], dtype=dtype, device_map="auto")
    asked = {n: v.to(dtype) if v.is_floating_point() else v for n, v in questions(kind, processor).items()}
    before = bare(model, asked)
    assert before.dtype == dtype
    attached = attach(model, SMALL, processor)
    assert torch.equal(logits(attached(**asked)), before)
    for _ in range(8):
        attached.learn(**lesson(kind, processor, asked))
    assert logits(attached(**asked)).dtype == dtype
    assert said(kind, processor, attached, asked) == list(NAMES)
    assert torch.equal(bare(attached.detach(), asked), before)


def test_the_class_that_makes_least_of_a_folder_is_taken_where_it_answers(folders) -> None:
    """AutoModel is a whole dual encoder, and of a model that writes the part without its head."""
    attach(AutoModel.from_pretrained(folders["clip"]), SMALL).detach()
    with pytest.raises(TypeError, match="LlavaForConditionalGeneration rather than LlavaModel"):
        attach(AutoModel.from_pretrained(folders["llava"]), SMALL)
