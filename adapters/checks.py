"""Checks of inputs, made before anything changes: what was given, what is possible."""

from typing import Any

import torch
from torch import Tensor


def finite_pixels(pixels: Any) -> None:
    """(B, 3, H, W), floating, B >= 1, no NaN and no infinity."""
    if not isinstance(pixels, Tensor):
        raise TypeError(f"pixel_values is {type(pixels).__name__}; a tensor (B, channels, H, W) is needed")
    if pixels.dim() < 4 or 0 in pixels.shape:
        raise ValueError(
            f"pixel_values has shape {tuple(pixels.shape)}; (B, channels, H, W) with B >= 1 is needed"
        )
    if not pixels.is_floating_point():
        raise TypeError(
            f"pixel_values has dtype {pixels.dtype}; a floating dtype is needed (use the processor)"
        )
    bad = ~torch.isfinite(pixels).flatten(1).all(1)
    if bad.any():
        raise ValueError(f"pixel_values has NaN or infinity in samples {bad.nonzero().flatten().tolist()}")


def token_ids(ids: Any, name: str, shape: str) -> None:
    """Whole numbers in two dimensions, not empty."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name} is {type(ids).__name__}; a tensor {shape} is needed")
    if ids.dim() != 2 or 0 in ids.shape:
        raise ValueError(f"{name} has shape {tuple(ids.shape)}; {shape} is needed")
    if ids.is_floating_point() or ids.dtype == torch.bool:
        raise TypeError(f"{name} has dtype {ids.dtype}; whole numbers are needed")


def label_rows(labels: Any, batch: int, candidates: int) -> Tensor:
    """(B,) whole numbers in [0, candidates)."""
    if not isinstance(labels, Tensor):
        labels = torch.as_tensor(labels)
    if labels.shape != (batch,):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}; ({batch},) is needed, one candidate row per sample"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels.dtype}; whole numbers are needed")
    wrong = [int(v) for v in labels if not 0 <= v < candidates]
    if wrong:
        raise ValueError(
            f"labels {wrong} are out of range: there are {candidates} candidates, 0 to {candidates - 1}"
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
