"""Where a model's weights are, in place or offloaded.

accelerate keeps offloaded ones in a map and moves each in for its module's own pass, so that between passes
the model holds tensors without values (on the meta device).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every parameter and persistent buffer, as `state_dict` names them.

    An offloaded one is read from where it is kept, one at a time; one that nobody keeps stays on the meta
    device. `state_dict` itself is not asked: modules may change themselves for it (bitsandbytes unpacks its
    4-bit weights, not quite to what they were).
    """
    for path, module in model.named_modules(remove_duplicate=False):
        buffers = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None:
                full = f"{path}.{name}" if path else name
                yield full, tensor if tensor.device.type != "meta" else _kept(model, full, tensor)


def weight_of(model: nn.Module, name: str) -> Tensor | None:
    """The value of a tensor of the model itself, wherever it is kept; None if there is none of that name."""
    tensor = getattr(model, name, None)
    if not isinstance(tensor, Tensor):
        return None
    return tensor if tensor.device.type != "meta" else _kept(model, name, tensor)


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes: where its first weight is, or is moved to for its pass."""
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            if tensor.device.type != "meta":
                return tensor.device
            for hook in _hooks(module):
                if getattr(hook, "execution_device", None) is not None:
                    return torch.device(hook.execution_device)
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _hooks(module: nn.Module) -> list[Any]:
    """What accelerate has hung on a module."""
    hook: Any = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _kept(model: nn.Module, name: str, empty: Tensor) -> Tensor:
    """The tensor from the map of the nearest module that has one; `empty` where none knows it."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        for hook in _hooks(model.get_submodule(".".join(parts[:cut]))):
            kept = getattr(hook, "weights_map", None)
            if kept is not None:
                try:
                    return kept[".".join(parts[cut:])]
                except KeyError:
                    continue
    return empty
