"""What each process of a training reads: its own part of the data, every sample exactly once.

accelerate evens the last batches out by repeating samples; a learner that counts samples must not meet one
twice. Here a process that has nothing left gets an empty batch, {}, and learns nothing in that step.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import datasets
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers.trainer_utils import has_length, seed_worker


class Share(Sampler[list[int]]):
    """One process's batches of an order that all processes draw alike.

    Of each `batch * ranks` samples in order, every rank takes a slice of equal length to within one; the last
    slices may be empty, so that all ranks make the same number of steps.

    Args:
        sampler: of single indices; where it draws from a generator, that is seeded by `seed` and the epoch.
        batch: samples per step and rank.
        drop_last: leave out the samples that fill no whole step of all ranks.
    """

    def __init__(
        self, sampler: Any, batch: int, rank: int = 0, ranks: int = 1, seed: int = 0, drop_last: bool = False
    ) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch, drop_last
        self.rank, self.ranks, self.seed, self.epoch = rank, ranks, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        steps = len(self.sampler) / (self.batch_size * self.ranks)
        return math.floor(steps) if self.drop_last else math.ceil(steps)

    def __iter__(self) -> Iterator[list[int]]:
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        whole = self.batch_size * self.ranks
        order = iter(self.sampler)
        while step := list(itertools.islice(order, whole)):
            if len(step) < whole and self.drop_last:
                return
            first, after = (len(step) * r // self.ranks for r in (self.rank, self.rank + 1))
            yield step[first:after]


class Part(IterableDataset):
    """One process's samples of an iterable dataset, passed through `passes` times as one long epoch.

    A `datasets.IterableDataset` is split by its shards where they divide among the ranks; of anything else
    each rank iterates the whole and keeps every `ranks`-th sample. (Worker processes within a rank are the
    dataset's own affair, as everywhere in torch; `datasets` splits its shards among them.)
    """

    def __init__(self, dataset: Any, rank: int = 0, ranks: int = 1, passes: int = 1) -> None:
        self.dataset, self.rank, self.ranks, self.passes = dataset, rank, ranks, passes
        self.own = ranks > 1 and isinstance(dataset, datasets.IterableDataset)
        self.mine = split_dataset_by_node(dataset, rank, ranks) if self.own else dataset
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.ranks)

    def __iter__(self) -> Iterator[Any]:
        for turn in range(self.passes):
            if hasattr(self.mine, "set_epoch"):
                self.mine.set_epoch(self.epoch + turn)
            samples = iter(self.mine)
            yield from samples if self.own else itertools.islice(samples, self.rank, None, self.ranks)


class Collate:
    """The collator, with {} for a batch without samples."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        return self.collate(samples) if samples else {}


class Feed(DataLoader):
    """A plain data loader that knows its epoch. It reads no batch ahead in this process, so that the state of
    the random generators at a step belongs to that step."""

    def set_epoch(self, epoch: int) -> None:
        for owner in (self.batch_sampler, self.dataset):
            if isinstance(owner, Share | Part):
                owner.set_epoch(epoch)


def feed(dataset: Any, sampler: Any, collate: Callable[[list[Any]], Any], args: Any, batch: int) -> Feed:
    """The loader of one process's part of a training set.

    Args:
        sampler: the order of an indexed set, the same for all ranks; None for an iterable one.
        args: the training's `TrainingArguments`.
        batch: samples per step and rank.
    """
    rank, ranks, workers = args.process_index, args.world_size, args.dataloader_num_workers
    named: dict[str, Any] = {
        "collate_fn": Collate(collate),
        "num_workers": workers,
        "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "worker_init_fn": partial(seed_worker, num_workers=workers, rank=rank),
    }
    if sampler is None:
        passes = 1 if has_length(dataset) else max(math.ceil(args.num_train_epochs), 1)
        part = Part(dataset, rank, ranks, passes)
        return Feed(part, batch_size=batch, drop_last=args.dataloader_drop_last, **named)
    seed = args.seed if args.data_seed is None else args.data_seed
    share = Share(sampler, batch, rank, ranks, seed, args.dataloader_drop_last)
    return Feed(dataset, batch_sampler=share, **named)
