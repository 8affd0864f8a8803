"""A dual encoder learns from being told right or wrong, never the label; one pass, examined before and after.

    python -m arr_coc.training.learn_from_rewards --output_dir runs/rewards
    python -m arr_coc.training.learn_from_rewards --late 50 --output_dir runs/rewards

The loop is written out: `act` chooses and remembers what a reward will need, `reward` tells how good that
was, later and in any order. Put your own judge where `judge` stands. Ctrl-C saves, and
--resume_from_checkpoint true goes on. It is written for one process: of several, each would do the same, and
the first alone speaks and saves.
"""

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from arr_coc.adapters.attached import ArrCocModel
from arr_coc.training import script, streams
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.interruption import Interruption
from arr_coc.training.scores import choice_accuracy


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    output_dir: str = field(default="runs/rewards", metadata={"help": "where the adapter is saved"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "a folder with an adapter to go on with; true: output_dir"}
    )
    stream: str = field(default="split-fashion", metadata={"help": f"one of {', '.join(streams.STREAMS)}"})
    order: int = field(default=0, metadata={"help": "of the experiences: 0, 1, 2, ..."})
    n_train: int = field(default=2000, metadata={"help": "samples in the stream"})
    n_test: int = field(default=500, metadata={"help": "held-out samples"})
    batch: int = field(default=10, metadata={"help": "samples per step"})
    late: int = field(default=0, metadata={"help": "steps before a reward is known"})
    seed: int = field(default=0, metadata={"help": "of the samples"})


def judge(choice: Tensor, labels: Tensor) -> Tensor:
    """The reward of every choice, (B,) in [0, 1]: here 1 for the right one."""
    return (choice == labels).float()


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    (chosen,) = script.parse((Arguments,), argv)
    first = PartialState().is_main_process

    # -- data ------------------------------------------------------------------------------------------------
    made = {"seed": chosen.seed, "order": chosen.order, "n_train": chosen.n_train, "n_test": chosen.n_test}
    stream = streams.load(chosen.stream, batch=chosen.batch, **made)
    held_out = streams.load(chosen.stream, split="test", **made).samples
    asked = "context" if stream.samples[0]["context"] is not None else None

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("dual")
    if (saved := script.resumed(chosen)) is not None:
        folder = chosen.output_dir if saved is True else str(saved)
        attached = ArrCocModel.from_pretrained(attached.detach(), Path(folder), processor)
    if first:
        print(attached.inspect())
    collate = ChoiceCollator(processor, attached, stream.classes, context=asked)
    before = choice_accuracy(attached, collate, held_out)

    # -- training --------------------------------------------------------------------------------------------
    waiting: deque[tuple[Any, Tensor]] = deque()
    done, heard = int(attached.learner.step) // chosen.batch, 0.0
    stopping = Interruption()
    bar = functools.partial(tqdm, total=len(stream), disable=not first)
    with stopping.watch(), bar(stream.batches(), desc="acting") as steps:
        for number, samples in enumerate(steps):
            if number < done:
                continue
            inputs = collate(samples)
            labels = inputs.pop("labels")
            handle = attached.act(**inputs)
            waiting.append((handle, judge(handle.choice.cpu(), labels)))
            heard += float(waiting[-1][1].mean())
            if len(waiting) > chosen.late:
                attached.reward(*waiting.popleft())
            if stopping.asked:
                break
    for acted in waiting:
        attached.reward(*acted)
    after = choice_accuracy(attached, collate, held_out)

    # -- result ----------------------------------------------------------------------------------------------
    if first:
        attached.save_pretrained(Path(chosen.output_dir))
    if stopping.asked:
        raise KeyboardInterrupt(f"stopped after step {number + 1}; the adapter is in {chosen.output_dir}")
    if first:
        met = max(len(stream) - done, 1)
        print(f"accuracy on {len(held_out)} held-out samples: {before:.3f} before, {after:.3f} after")
        print(f"mean reward on the way: {heard / met:.3f}; the adapter is in {chosen.output_dir}")


if __name__ == "__main__":
    script.ended(run)
