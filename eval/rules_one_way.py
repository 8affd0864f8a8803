"""Weights that are others on the way down than on the way up: how an audit sees what is transported."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_BACKWARD_ONLY = (
    "einsum",
    "tensordot",
    "bilinear",
)  # which way these contract cannot be told: counted as down
_FLIPS = ("T", "mT", "t", "transpose", "swapaxes", "permute", "adjoint")


class OneWay(Tensor):
    """A weight matrix that is what it is on the way up and another one on the way down.

    Contracted over its inputs (x @ W.T) it is itself; contracted over its outputs (g @ W) it is `down`.
    Elementwise results stay one-way.
    """

    down: Tensor
    flipped: bool

    @staticmethod
    def of(up: Tensor, down: Tensor, flipped: bool = False) -> "OneWay":
        made: OneWay = up.detach().as_subclass(OneWay)
        made.down, made.flipped = down.detach(), flipped
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property: T, mT, shape, dtype
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if name in ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "linear", "addmm"):
                args = list(args)
                if name == "__rmatmul__":
                    args = args[::-1]
                left = 1 if name == "addmm" else 0
                for place, given in enumerate(args):
                    if not isinstance(given, OneWay):
                        continue
                    last = place == left or name == "linear"  # which of its dimensions is summed over
                    args[place] = plain(given) if last != given.flipped else given.down
                function = torch.matmul if name in ("__matmul__", "__rmatmul__") else func
                return function(*args, **kwargs)
            up = func(*_map(args, plain), **_map(kwargs, plain))
            if not isinstance(up, Tensor) or name in ("shape", "dtype", "device"):
                return up
            down = func(*_map(args, _down), **_map(kwargs, _down))
            if name in _BACKWARD_ONLY:
                return down
            if up.dim() < 2:
                return up
            flipped = any(isinstance(a, OneWay) and a.flipped for a in args)
            return OneWay.of(up, down, flipped != (name in _FLIPS))


def plain(given: Any) -> Any:
    """What it is on the way up."""
    return given.as_subclass(Tensor) if isinstance(given, OneWay) else given


def _down(given: Any) -> Any:
    return given.down if isinstance(given, OneWay) else given


def _map(given: Any, what: Callable[[Any], Any]) -> Any:
    if isinstance(given, dict):
        return {k: _map(v, what) for k, v in given.items()}
    if isinstance(given, list | tuple):
        return type(given)(_map(v, what) for v in given)
    return what(given)
