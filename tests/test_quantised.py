"""Quantised models: attached, taught and given back as they were, and their weights never touched."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import BitsAndBytesConfig, TorchAoConfig

from arr_coc import ArrCocConfig, ArrCocModel, attach
from arr_coc.adapters import base
from local_folders import NAMES, bare, lesson, load, logits, questions, said, save

SMALL = ArrCocConfig(width=16, expansion=8)


WAYS: dict[str, tuple[str, Callable[[], Any]]] = {
    "int8 weights": ("torchao", lambda: torchao("Int8WeightOnlyConfig")),
    "int8 weights and activations": ("torchao", lambda: torchao("Int8DynamicActivationInt8WeightConfig")),
    "LLM.int8": ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_8bit=True)),
    "nf4": (
        "bitsandbytes",
        lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
    ),
}


def torchao(name: str) -> Any:
    return getattr(importlib.import_module("torchao.quantization"), name)()


def quantised(kind: str, way: str, folder: Path) -> tuple[Any, Any]:
    """A checkpoint quantised as it is loaded, or by torchao itself: transformers does not do that to CLIP."""
    package, config = WAYS[way]
    pytest.importorskip(package)
    if package == "torchao" and kind == "clip":
        model, processor = load(kind, folder)
        importlib.import_module("torchao.quantization").quantize_(model, config())
        return model, processor
    how = TorchAoConfig(config()) if package == "torchao" else config()
    return load(kind, folder, dtype=torch.float32, device_map={"": "cpu"}, quantization_config=how)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save(kind, tmp_path_factory.mktemp(kind)) for kind in ("clip", "llava")}


def inside(tensor: Any) -> list[Tensor]:
    """The plain tensors that a quantised one is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    return [plain for name in flatten()[0] for plain in inside(getattr(tensor, name))]


def held(model: nn.Module) -> dict[str, list[bytes]]:
    """The bytes of every parameter and buffer; not by `state_dict`, which changes 4-bit weights."""

    def raw(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: [raw(plain) for plain in inside(tensor.detach())] for name, tensor in named}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("kind", ["clip", "llava"])
def test_a_quantised_model_learns_and_stays_as_it_was(kind: str, way: str, folders, tmp_path) -> None:
    model, processor = quantised(kind, way, folders[kind])
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert any(type(m) is not nn.Linear or type(m.weight.data) is not Tensor for m in linear)
    asked = questions(kind, processor)
    before = bare(model, asked)
    assert torch.equal(bare(model, asked), before)
    kept = held(model)
    attached = attach(model, SMALL, processor)
    assert torch.equal(logits(attached(**asked)), before)
    assert said(kind, processor, attached, asked) != list(NAMES)
    for _ in range(8):
        attached.learn(**lesson(kind, processor, asked))
    assert said(kind, processor, attached, asked) == list(NAMES)
    with attached.disable():
        assert torch.equal(logits(attached(**asked)), before)
    learned = logits(attached(**asked))
    attached.save_pretrained(tmp_path / "adapter")
    assert held(model) == kept
    assert torch.equal(bare(attached.detach(), asked), before)

    again = ArrCocModel.from_pretrained(model, tmp_path / "adapter", processor)
    assert torch.equal(logits(again(**asked)), learned)
    again.detach()
    assert held(model) == kept
    whole, _ = load(kind, folders[kind])
    with pytest.raises(ValueError, match="quantised otherwise"):
        ArrCocModel.from_pretrained(whole, tmp_path / "adapter", processor)


def test_weights_are_sampled_without_asking_state_dict() -> None:
    """bitsandbytes unpacks 4-bit weights in `state_dict`, and what it packs again answers otherwise."""

    class Packed(nn.Linear):
        def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
            self.weight.data += 1
            super()._save_to_state_dict(*args, **kwargs)

    model = nn.Sequential(Packed(3, 3))
    kept = model[0].weight.detach().clone()
    values = base.sample(model)
    assert torch.equal(model[0].weight, kept)
    assert torch.equal(values["0.weight"], kept.flatten()[torch.linspace(0, 8, 8).long()])


def test_of_a_tensor_made_of_others_these_are_sampled() -> None:
    """torchao's weights are made of whole numbers and scales, and cannot be indexed freely."""
    one, two = torch.arange(6.0).view(2, 3), torch.arange(6).view(2, 3)
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(TwoTensor(one, one + 9), requires_grad=False))
    assert {name: value.tolist() for name, value in base.sample(model).items()} == {
        "weight.a": one.flatten().tolist(),
        "weight.b": (one + 9).flatten().tolist(),
    }
    made_on = base.describe(model)
    told = base.weight_difference(made_on, {"weight.a": two.flatten(), "weight.b": one.flatten() + 9}, model)
    assert told == "other weights: 1 of 2 tensors differ, the first weight.a"  # whole numbers are no rounding
