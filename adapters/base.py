"""The base: which model an adapter was made on, told apart by its structure and by a sample of its weights.

This is the one place where arr-coc reads weights: a few values of each, when an adapter is saved or loaded.
"""

import re
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.offloaded import weights
from arr_coc.adapters.structure import unwrapped

_SAMPLE = 8  # values of each tensor
# what decides whether an adapter fits: how wide, how deep, how many heads, patches and words
_FACTS = (
    *("hidden_size", "embed_dim", "d_model", "projection_dim", "num_hidden_layers", "num_layers", "depth"),
    *("encoder_layers", "decoder_layers", "num_attention_heads", "num_key_value_heads", "patch_size"),
    "vocab_size",
)
# what PEFT and torch.compile put into the names of a model's own weights
_WRAPPING = re.compile(r"^base_model\.model\.|_orig_mod\.|(?<=\.)base_layer\.")

_remembered: "weakref.WeakKeyDictionary[nn.Module, dict[str, Tensor]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Base:
    """What an adapter was made on.

    Args:
        architecture: class of the model, without what PEFT or torch.compile wrapped around it.
        model_type: of its config.
        facts: widths, depths and vocabularies of its config and of those inside, "vision_config.hidden_size"
            and the like.
        quantization: the method (or package) that its weights are quantised by, "" for none.
        name: where it came from; information only.
    """

    architecture: str
    model_type: str
    facts: dict[str, int]
    quantization: str
    name: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, said: Any) -> "Base":
        """The inverse of `to_dict`.

        Raises:
            ValueError: for anything else.
        """
        kinds = {"architecture": str, "model_type": str, "facts": dict, "quantization": str, "name": str}
        fits = isinstance(said, dict) and said.keys() == kinds.keys()
        if not fits or any(not isinstance(said[n], kind) for n, kind in kinds.items()):
            raise ValueError(f"the description of the base model is damaged: {said!r}")
        return cls(**said)


def describe(model: nn.Module) -> Base:
    """What a model is, from its class and config; no weight is read."""
    own = unwrapped(model)
    config = getattr(own, "config", None)
    facts = {name: value for name, value in _facts(config) if isinstance(value, int)}
    method = getattr(getattr(config, "quantization_config", None), "quant_method", "")
    method = str(getattr(method, "value", method)) or _made_by(own)
    name = str(getattr(config, "_name_or_path", "") or "")
    return Base(
        architecture=type(own).__name__,
        model_type=str(getattr(config, "model_type", "")),
        facts=facts,
        quantization=method,
        name=Path(name).name if Path(name).exists() else name,  # whose disk it lay on is nobody's business
    )


def _facts(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name in _FACTS:
        yield path + name, getattr(config, name, None)
    for name in getattr(config, "sub_configs", None) or {}:
        if getattr(config, name, None) is not None:
            yield from _facts(getattr(config, name), f"{path}{name}.")


def sample(model: nn.Module) -> dict[str, Tensor]:
    """Eight values of each floating tensor of the model, evenly spaced from first to last, in its own dtype.

    A fine-tuned model differs in nearly every tensor, and is told apart; one that differs in a few entries of
    a tensor alone (some words added to a vocabulary of the same size) may pass. Offloaded tensors are read
    from where they are kept; of a quantised tensor its parts are sampled (whole numbers, scales). Tensors of
    which only a shape is known (on the meta device) are left out. Of weights that are split between processes
    all of these have to ask, together.
    """
    if unwrapped(model) in _remembered:
        return dict(_remembered[unwrapped(model)])
    found = {}
    for name, tensor in _floating(model):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if tensor.numel() and tensor.device.type != "meta":
            count = min(_SAMPLE, tensor.numel())
            at = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long()
            place = torch.unravel_index(at.to(tensor.device), tensor.shape)
            values = tensor.detach()[place] if tensor.dim() else tensor.detach()
            found[_WRAPPING.sub("", name)] = values.cpu().clone()
    return found


def remember(model: nn.Module) -> None:
    """Let `sample` answer from now on what it would answer now: for weights that are frozen and split between
    processes, of which one alone will save."""
    _remembered[unwrapped(model)] = sample(model)


def _floating(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating tensors of a model by name, each quantised one as the plain tensors it is made of."""
    for name, tensor in weights(model):
        if tensor.is_floating_point():
            yield from _parts(name, tensor.detach())


def _parts(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    if not _composed(tensor):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _parts(f"{name}.{inner}", getattr(tensor, inner))


def _composed(tensor: Any) -> bool:
    """Whether a tensor is made of others; a sharded one is too, but can be indexed as a whole."""
    return hasattr(tensor, "__tensor_flatten__") and not hasattr(tensor, "full_tensor")


def _made_by(model: Any) -> str:
    """The package whose tensors hold a model's weights, "" for torch's own."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((type(p).__module__.split(".")[0] for p in parameters if _composed(p)), "")


def structural_difference(saved: Base, model: nn.Module) -> str:
    """In what a model's structure is not the saved one, in words; "" where it is."""
    here = describe(model)
    if (saved.architecture, saved.model_type) != (here.architecture, here.model_type):
        return f"{saved.architecture} ({saved.model_type}), and this is {here.architecture}" + (
            f" ({here.model_type})" if here.model_type else ""
        )
    names = [n for n in {**saved.facts, **here.facts} if saved.facts.get(n) != here.facts.get(n)]
    told = [f"{n} {saved.facts.get(n, 'none')}, here {here.facts.get(n, 'none')}" for n in names]
    return f"{saved.architecture} with {'; '.join(told)}" if told else ""


def weight_difference(saved: Base, values: dict[str, Tensor], model: nn.Module) -> str:
    """In what a model's weights are not the saved ones, in words; "" where they are, bit for bit as sampled.

    In another dtype weights are the same if they differ by no more than rounding; that too is a difference,
    and is called one of dtype.
    """
    here, method = sample(model), describe(model).quantization
    shared = [n for n in values if n in here and values[n].shape == here[n].shape]
    quantised = bool(saved.quantization or method)
    if not quantised and len(shared) < max(len(values), len(here)) and not _offloaded(model):
        apart = sorted(set(values) ^ set(here)) or [n for n in values if n not in shared]
        return f"other weights: {len(apart)} tensors are on one side only, the first {apart[0]}"
    other = [n for n in shared if not _same(values[n], here[n])]
    if other:
        return f"other weights: {len(other)} of {len(shared)} tensors differ, the first {other[0]}"
    if saved.quantization != method:
        ways = [way or "not quantised" for way in (saved.quantization, method)]
        return f"the same weights, quantised otherwise ({ways[0]}, here {ways[1]})"
    for name in shared:
        if values[name].dtype != here[name].dtype:
            return f"the same weights in another dtype ({values[name].dtype}, here {here[name].dtype})"
    return ""


def _offloaded(model: nn.Module) -> bool:
    return any(tensor.device.type == "meta" for _, tensor in weights(model))


def _same(one: Tensor, two: Tensor) -> bool:
    relative = smallest = 0.0
    if one.dtype != two.dtype:
        if not (one.is_floating_point() and two.is_floating_point()):
            return False
        kinds = [torch.finfo(t.dtype) for t in (one, two)]
        relative = max(kind.eps for kind in kinds)
        smallest = max(kind.eps * kind.smallest_normal for kind in kinds)
    return torch.allclose(one.double(), two.double(), rtol=relative, atol=smallest, equal_nan=True)
