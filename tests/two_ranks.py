"""Run by `accelerate launch` or as one rank: trains and leaves behind what this rank met and what it holds.

python two_ranks.py FOLDER MODE...  Modes: a name of DATA, "learning" (U too), "die", "hang"; BODY-whole and
BODY-split: U too, a context per sample, and in the last step no sample for rank 0; BODY-starved: one sample.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import IterableDataset

from arr_coc import attach, state
from arr_coc.training import sharding
from arr_coc.training.trainer import ArrCocTrainer
from training_data import BODIES, FIXED, SMALL, Crash, arguments, dual_collate, pictures

COUNT = 23  # divides neither among two ranks nor into their batches


class Flow(IterableDataset):
    def __iter__(self):
        yield from pictures(COUNT)


def streamed(shards: int) -> datasets.IterableDataset:
    rows = [{**s, "pixel_values": s["pixel_values"].numpy()} for s in pictures(COUNT)]
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)


# data and changed arguments
DATA = {
    "indexed": (lambda: pictures(COUNT), {}),
    "merging": (lambda: pictures(COUNT), {"save_strategy": "steps", "save_steps": 2}),
    "resumed": (lambda: pictures(COUNT), {}),
    "flow": (Flow, {"max_steps": 1000}),
    "shards": (lambda: streamed(4), {"max_steps": 1000}),
    "examples": (lambda: streamed(3), {"max_steps": 1000}),
    "few": (lambda: pictures(COUNT)[:5], {}),
    "learning": (lambda: pictures(COUNT), {"eval_strategy": "steps", "eval_steps": 2}),
}


def apart(folder: Path, mode: str, rank: int) -> None:
    """A life on a backbone whose blocks are split between the ranks, or on a whole one."""
    body, how = mode.split("-")
    make, given = BODIES[body]

    def collate(samples: list) -> dict:
        words = torch.tensor([[1, 2 + sample["id"] % 3, 49] for sample in samples])
        return {**given(samples), **({"context_ids": words} if body == "dual" else {})}

    steps = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    args = arguments(folder / mode, remove_unused_columns=False, ddp_timeout=10, **steps)
    model, held = make(), [{**sample, "id": k} for k, sample in enumerate(pictures(3, seed=9))]
    found = [] if how == "whole" else sharding.shard(model)
    count = 1 if how == "starved" else 17
    trainer = ArrCocTrainer(model, args, collate, pictures(count), held, adapter=SMALL)
    if how == "starved":
        with pytest.raises(ValueError) as error:
            trainer.train()
        about = {"said": str(error.value), "steps": int(trainer.attached.learner.step)}
        (folder / f"{mode}-{rank}.json").write_text(json.dumps(about))
        return
    told = trainer.train().metrics
    parts = [p.to_local() if how == "split" and hasattr(p, "to_local") else p for p in model.parameters()]
    about = {
        "found": found,
        "held": sum(p.numel() for p in parts) / sum(p.numel() for p in model.parameters()),
        "told": {k: v for k, v in told.items() if k in ("train_loss", "train_accuracy", "train_surprise")},
        "eval_loss": [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line],
    }
    (folder / f"{mode}-{rank}.json").write_text(json.dumps(about))
    trainer.attached.detach()


def one(folder: Path, mode: str, rank: int) -> None:
    data, changes = DATA.get(mode, DATA["indexed"])
    met: list[list[int]] = []
    held = [{**sample, "id": -1} for sample in pictures(7, seed=9)]

    def collate(samples: list) -> dict:
        if samples[0]["id"] >= 0:
            met.append([s["id"] for s in samples])
        return dual_collate(samples)

    ends = {"die": lambda: os.kill(os.getpid(), signal.SIGKILL), "hang": lambda: time.sleep(600)}
    callbacks = [Crash(1, ends[mode])] if mode in ends and rank == 1 else []
    trainer = ArrCocTrainer(
        attach(BODIES["dual"][0](), SMALL if mode == "learning" else FIXED),
        arguments(folder / mode, remove_unused_columns=False, ddp_timeout=10, **changes),
        collate,
        data(),
        held,
        callbacks=callbacks,
        merge_steps=1 if mode in ("merging", "resumed") else None,
    )
    trainer.train(str(folder / "merging" / "checkpoint-2") if mode == "resumed" else None)
    told = trainer.evaluate()
    learner = trainer.attached.learner
    about = {
        "met": met,
        "eval_loss": told["eval_loss"],
        "classes": learner.classes,
        "loss": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }
    (folder / f"{mode}-{rank}.json").write_text(json.dumps(about))
    kept = {k: t.contiguous().clone() for k, t in state.tensors(learner).items()}
    save_file(kept, folder / f"{mode}-{rank}.safetensors")
    trainer.attached.detach()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[2:]:
        life = apart if "-" in name else one
        life(Path(sys.argv[1]), name, int(os.environ.get("RANK", "0")))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
