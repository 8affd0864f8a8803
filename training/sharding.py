"""A backbone whose blocks are split between the processes of a training, by torch's `fully_shard` (FSDP2).

Each process keeps its part of a block's weights, and gathers the rest for the time of a pass. Learning only
reads activations and calls modules, so it learns the same, bit for bit. But every pass takes all processes at
once: one that has no batch left looks along, at its last one, and learns nothing.
"""

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from arr_coc.adapters import base
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.structure import stacks, unwrapped
from arr_coc.training.distributed import ranks


def shard(model: Any) -> list[str]:
    """Split the blocks of a bare model's towers between all processes.

    To be called in all of them, when they have met (`TrainingArguments(...).device`) and before the model is
    attached. What is in no block (embeddings, the last projections) every process has whole.

    Returns:
        The paths of the lists of blocks that were split.

    Raises:
        RuntimeError: where there is one process.
        ValueError: for an attached model, one that is split already, or one without blocks.
    """
    if ranks() < 2:
        raise RuntimeError(
            "there is one process: start several (accelerate launch --num_processes 2 ...) and let them meet "
            "(TrainingArguments(...).device)"
        )
    if isinstance(model, ArrCocModel) or split(model):
        raise ValueError(f"{type(model).__name__} is attached or split already; give the bare, whole model")
    found = stacks(unwrapped(model))
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of blocks with attention to split")
    from torch.distributed.fsdp import fully_shard

    there = None if dist.get_backend() == "gloo" else torch.accelerator.current_accelerator()
    mesh = dist.init_device_mesh(there.type if there else "cpu", (ranks(),))
    for block in {id(block): block for _, blocks in found for block in blocks}.values():
        # True: a block is a root of its own, and roots would keep what they have gathered
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return [path for path, _ in found]


def split(model: Any) -> bool:
    """Whether weights of a model are split between processes."""
    return any(hasattr(p, "full_tensor") for p in model.parameters())


def check(model: Any) -> None:
    """Whether a model is whole, or split in the one way that is known to learn the same.

    Raises:
        ValueError: where it is split otherwise; says how it can be.
    """
    inner = unwrapped(model.model if isinstance(model, ArrCocModel) else model)
    if not isinstance(inner, nn.Module) or not dist.is_available():
        return
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    how = ""
    if any(isinstance(m, FullyShardedDataParallel) for m in inner.modules()):
        how = "wrapped by FullyShardedDataParallel (FSDP1)"
    elif isinstance(inner, FSDPModule):
        how = "split as a whole, and parts of it are called alone"
    else:
        covered = {id(p) for m in inner.modules() if isinstance(m, FSDPModule) for p in m.parameters()}
        if any(hasattr(p, "full_tensor") and id(p) not in covered for p in inner.parameters()):
            how = "split by tensor parallelism, which needs the same samples in every process"
    if how:
        raise ValueError(
            f"{type(inner).__name__} is {how}; give the whole model, or split its blocks by "
            "arr_coc.training.sharding.shard(model) before it is attached"
        )


class InStep:
    """The passes of one process, in step with those of the others where blocks are split."""

    def __init__(self, attached: ArrCocModel) -> None:
        self.attached, self.split = attached, split(attached.model)
        self._last: dict[str, Any] | None = None
        if self.split:
            base.remember(attached.model)  # all processes at once; one alone saves

    def saw(self, labels: Tensor, inputs: dict[str, Any]) -> None:
        """Keep a batch, to look at when there is no other."""
        if self.split:
            self._last = {**inputs, "labels": labels}

    def starved(self, batches: list[Any]) -> bool:
        """Whether this process would have to look along, and has never had a batch."""
        return self.split and self._last is None and not any(batches)

    def look_along(self, autocast: contextlib.AbstractContextManager[Any]) -> None:
        """Take part in a pass of the others, where they need this process for it."""
        if self._last is not None:
            with autocast:
                self.attached.perceive(**self._last)
