"""Models that accelerate offloads: they learn what the same model learns in memory, bit for bit."""

from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from arr_coc.adapters.offloaded import device_of, weight_of, weights
from local_folders import KINDS, NAMES, bare, hooks, lesson, load, logits, picture, questions, said, save

SMALL = ArrCocConfig(width=16, expansion=8)

PARTS = {  # of each, what sees and what reads first
    "clip": ("vision_model", "text_model", "visual_projection", "text_projection", "logit_scale"),
    "llava": ("model.vision_tower", "model.language_model", "model.multi_modal_projector", "lm_head"),
    "qwen2_5_vl": ("model.visual", "model.language_model", "lm_head"),
}


def offloaded(kind: str, how: str, folder: Path, room: Path) -> tuple[Any, Any]:
    """A checkpoint some or all of whose weights lie on disk, or in a map in memory, between passes."""
    if how == "cpu":
        model, processor = load(kind, folder)
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu")), processor
    where = {"": "disk"}
    if how != "disk":
        away = PARTS[kind][0 if how == "tower" else 1]
        where = {part: "disk" if part == away else "cpu" for part in PARTS[kind]}
    return load(kind, folder, device_map=where, offload_folder=room)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in PARTS}


@pytest.mark.parametrize("how", ["disk", "cpu", "tower", "words"])
@pytest.mark.parametrize("kind", list(PARTS))
def test_an_offloaded_model_learns_what_the_whole_one_does(kind: str, how: str, folders, tmp_path) -> None:
    whole, processor = load(kind, folders[kind])
    model, _ = offloaded(kind, how, folders[kind], tmp_path / "room")
    away = {name for name, p in model.named_parameters() if p.device.type == "meta"}
    assert away
    asked = questions(kind, processor)
    before = bare(whole, asked)
    assert torch.equal(bare(model, asked), before)
    hung = hooks(model)  # LLaVA has hung some of its own by now
    attached, beside = attach(model, SMALL, processor), attach(whole, SMALL, processor)
    assert str(attached.inspect()) == str(beside.inspect())
    taught = lesson(kind, processor, asked)
    for _ in range(4):
        attached.learn(**taught)
        beside.learn(**taught)
    mine, its = state.tensors(attached.learner), state.tensors(beside.learner)
    assert all(torch.equal(mine[name], its[name]) for name in its)
    assert torch.equal(logits(attached(**asked)), logits(beside(**asked)))
    if KINDS[kind].task == "generative":
        assert said(kind, processor, attached, asked) == said(kind, processor, beside, asked)
    with attached.disable():
        assert torch.equal(logits(attached(**asked)), before)
    attached.save_pretrained(tmp_path / "adapter")
    assert torch.equal(bare(attached.detach(), asked), before)
    assert hooks(model) == hung
    assert {name for name, p in model.named_parameters() if p.device.type == "meta"} == away
    # what was learned here fits the model that is all in memory, and the other way round
    beside.save_pretrained(tmp_path / "beside")
    beside.detach()
    for base, made in ((whole, "adapter"), (model, "beside")):
        again = ArrCocModel.from_pretrained(base, tmp_path / made, processor)
        assert len(again.learner.classes) == len(its["readout.class_count"])
        again.detach()


def test_an_adapter_of_other_weights_is_told_from_an_offloaded_model(folders, tmp_path) -> None:
    other, processor = load("clip", save("clip", tmp_path / "other", seed=1))
    attached = attach(other, SMALL, processor)
    attached.save_pretrained(tmp_path / "adapter")
    attached.detach()
    model, _ = offloaded("clip", "disk", folders["clip"], tmp_path / "room")
    with pytest.raises(ValueError, match="other weights"):
        ArrCocModel.from_pretrained(model, tmp_path / "adapter")
    attach(model, SMALL).detach()  # nothing was left behind


def test_plain_python_reaches_an_offloaded_model(folders, tmp_path) -> None:
    whole, processor = load("clip", folders["clip"])
    model, _ = offloaded("clip", "disk", folders["clip"], tmp_path)
    attached, beside = attach(model, SMALL, processor), attach(whole, SMALL, processor)
    asked = ([picture("red")], list(NAMES), "red")
    assert attached.predict(*asked)[0].probabilities == beside.predict(*asked)[0].probabilities
    assert device_of(model) == torch.device("cpu")
    for one in (attached, beside):
        one.detach()


class Nested(nn.Module):
    """Parameters, buffers, a module under two names, and a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.same = self.inner[0]
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left", torch.ones(2), persistent=False)


def test_weights_are_named_as_state_dict_names_them_and_read_where_they_are_kept() -> None:
    model = Nested()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=True)
    assert model.inner[0].weight.device.type == "meta"
    found = dict(weights(model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert float(weight_of(model, "scale")) == 2.0
    assert weight_of(model, "nothing") is None
    assert weight_of(model, "inner") is None
    assert device_of(model) == torch.device("cpu")


def test_a_model_laid_out_without_memory_has_shapes_and_no_values() -> None:
    with torch.device("meta"):
        model = Nested()
    assert {tensor.device.type for _, tensor in weights(model)} == {"meta"}
    assert device_of(model).type == "meta"


def test_a_model_without_its_weights_is_inspected_and_says_that_it_cannot_answer(folders) -> None:
    whole, processor = load("clip", folders["clip"])
    with torch.device("meta"):
        model = type(whole)(whole.config)
    attached = attach(model, SMALL, processor)
    beside = attach(whole, SMALL, processor)
    assert str(attached.inspect()) == str(beside.inspect())
    beside.detach()
    asked = questions("clip", processor)
    for call in (attached, lambda **asked: attached.learn(**lesson("clip", processor, asked))):
        with pytest.raises(RuntimeError, match="without its weights"):
            call(**asked)
    attached.detach()
