"""TrainingArguments that have no meaning for a local learner, and what the Trainer must not change."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any


def refuse(args: Any) -> None:
    """Check arguments, and what `accelerate launch` was asked for, before anything is made of them.

    Raises:
        ValueError: for one that would mean something else here than it says.
    """
    for name, meant in (("FSDP", "fsdp"), ("DEEPSPEED", "deepspeed"), ("MEGATRON_LM", "")):
        asked = os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1")
        if asked or (meant and getattr(args, meant, None)):
            raise ValueError(
                f"{name} would wrap the whole model, and on CPUs accelerate leaves it whole without a word; "
                "launch plainly (--multi_gpu), and split the backbone's blocks by "
                "arr_coc.training.sharding.shard(model)"
            )
    if args is None:
        return
    config, full = args.accelerator_config, args.fp16_full_eval or args.bf16_full_eval
    wrong = {
        "auto_find_batch_size": (args.auto_find_batch_size, "it starts over, and samples are learned twice"),
        "label_smoothing_factor": (args.label_smoothing_factor, "targets are one-hot"),
        "train_sampling_strategy": (
            args.train_sampling_strategy == "batch_rebalance",
            "batch_rebalance evens out the work of a backward pass",
        ),
        "accelerator_config": (
            config.split_batches or config.dispatch_batches,
            "every rank reads whole batches of its own",
        ),
        "torch_compile": (
            args.torch_compile,
            "activations are read between the blocks, so the model would run uncompiled",
        ),
        "fp16_full_eval/bf16_full_eval": (full, "they round what was learned; load the model in that dtype"),
    }
    for name, (given, why) in wrong.items():
        if given:
            raise ValueError(f"TrainingArguments.{name} does not fit ArrCocTrainer: {why}")


def bounds(merge_steps: int | None, save_minutes: float | None) -> None:
    """Check how often is merged and saved.

    Raises:
        ValueError: for what is no number of steps or minutes.
    """
    if merge_steps is not None and merge_steps < 1:
        raise ValueError(f"merge_steps={merge_steps}: a whole number of at least 1 is needed")
    if save_minutes is not None and not 0 < save_minutes < float("inf"):
        raise ValueError(f"save_minutes={save_minutes}: a finite number above 0 is needed")


@contextlib.contextmanager
def special_tokens(model: Any) -> Iterator[Callable[[], None]]:
    """Yields a function that gives a model its special tokens back, and calls it at the end: the Trainer sets
    them to the tokenizer's, and a model that is not trained to those must keep its own."""
    names = ("eos_token_id", "bos_token_id", "pad_token_id")
    owners = [model.config.get_text_config(), getattr(model, "generation_config", None)]
    before = [(o, n, getattr(o, n)) for o in owners if o is not None for n in names if hasattr(o, n)]

    def back() -> None:
        for owner, name, value in before:
            setattr(owner, name, value)

    try:
        yield back
    finally:
        back()


@contextlib.contextmanager
def kept(owner: Any, name: str) -> Iterator[None]:
    """An attribute is afterwards what it was before, missing ones missing."""
    had = name in vars(owner)
    before = getattr(owner, name, None)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        elif name in vars(owner):
            delattr(owner, name)
