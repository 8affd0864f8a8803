"""Checks of inputs, made before anything changes: what was given, what is possible."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def finite_inputs(inputs: Mapping[str, Any], pixels: tuple[str, ...], dims: int = 0) -> None:
    """Every floating input is finite; the pixel inputs are floating and not empty.

    Args:
        inputs: of a model, by name.
        pixels: the names of its pixel inputs.
        dims: of the first of them; 0 where a pass may come without.
    """
    given = [name for name in pixels if inputs.get(name) is not None]
    if dims and not given:
        kind = type(inputs.get(pixels[0])).__name__
        raise TypeError(f"{pixels[0]} is {kind}; a tensor (B, channels, H, W) is needed")
    for name in given:
        value = inputs[name]
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is {type(value).__name__}; a tensor (B, channels, H, W) is needed")
        if value.dim() < 2 or 0 in value.shape or value.dim() < dims:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}; (B, channels, H, W) with B >= 1 is needed"
            )
        if not value.is_floating_point():
            raise TypeError(f"{name} has dtype {value.dtype}; a floating dtype is needed (use the processor)")
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            bad = ~torch.isfinite(value).flatten(1).all(1) if value.dim() > 1 else ~torch.isfinite(value)
            if name not in pixels and "mask" in name:
                continue  # an additive mask may hold -inf
            if bad.any():
                where = bad.nonzero().flatten().tolist()
                raise ValueError(f"{name} has NaN or infinity in samples {where}")


def token_ids(ids: Any, name: str, shape: str) -> None:
    """Whole numbers in two dimensions, not empty."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} is {type(ids).__name__}; a tensor {shape} is needed")
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; {shape} is needed")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {ids.dtype}; whole numbers are needed")


def label_rows(labels: Any, batch: int, candidates: int, name: str = "labels") -> Tensor:
    """(B,) whole numbers in [0, candidates)."""
    if labels is None:
        raise TypeError(f"labels is None; ({batch},) whole numbers are needed, one candidate row per sample")
    if not isinstance(labels, Tensor):
        labels = torch.as_tensor(labels)
    if labels.shape != (batch,):
        raise ValueError(
            f"{name} has shape {tuple(labels.shape)}; ({batch},) is needed, one candidate row per sample"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {labels.dtype}; whole numbers are needed")
    wrong = [int(v) for v in labels if not 0 <= v < candidates]
    if wrong:
        raise ValueError(
            f"{name} {wrong} are out of range: there are {candidates} candidates, 0 to {candidates - 1}"
        )
    return labels


def rewards(reward: Any, batch: int) -> Tensor:
    """(B,) numbers in [0, 1]."""
    reward = torch.as_tensor(reward, dtype=torch.float64).cpu()
    if reward.dim() == 0:
        reward = reward.expand(batch)
    if reward.shape != (batch,):
        raise ValueError(f"reward has shape {tuple(reward.shape)}; ({batch},) is needed")
    if not bool(((reward >= 0) & (reward <= 1)).all()):
        raise ValueError(f"reward is {reward.tolist()}; numbers in [0, 1] are needed")
    return reward


_NAME = re.compile(r"[A-Za-z0-9_-](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9_-])?")
_FILES = ("arr_coc_config.json", "arr_coc_model.safetensors", "arr_coc_base.safetensors")
_TAKEN = (*_FILES, "README.md", "relevance.png")  # what lies beside the folders of a saved set


def adapter_name(name: Any, taken: Iterable[str] = ()) -> str:
    """An adapter's name, which is a folder's name too: at most 100 letters, digits, ".", "_" and "-", no ".."
    and no "." at either end, no file of the saved form, and not one that is taken (however it is written)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(
            f"an adapter cannot be called {name!r}: up to 100 letters, digits, '.', '_' and '-' are "
            "possible, with no '..' and no '.' in front or at the end"
        )
    if name.lower() in map(str.lower, _TAKEN):
        raise ValueError(
            f"an adapter cannot be called {name!r}: a file of that name lies beside its folder once saved"
        )
    for other in taken:
        if other.lower() == name.lower():
            raise ValueError(f"an adapter cannot be called {name!r}: there is one called {other!r}")
    return name


def known_names(names: Any, known: Sequence[str]) -> list[str]:
    """A list of names, each of them known and none twice."""
    if isinstance(names, str) or not all(isinstance(n, str) for n in names):
        raise TypeError(f"{names!r} is no list of adapters' names; there are {', '.join(known)}")
    names = list(names)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no adapter {name!r}, only {', '.join(known) or 'none'}{hint}")
    if len(set(names)) < len(names):
        raise ValueError(f"{names} names an adapter twice")
    return names


def inner_folder(path: str) -> str:
    """A folder inside another one, "" for the other itself; none that leads out of it."""
    parts = path.replace("\\", "/").split("/")
    if path and (any(part in ("", ".", "..") for part in parts) or ":" in path):
        raise ValueError(
            f"subfolder {path!r} leads out of the folder; a path inside it, such as 'a/b', is needed"
        )
    return "/".join(parts)
