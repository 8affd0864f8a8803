"""A dual encoder learns from a data set that is streamed: rows are read as they are met, and none is kept.

    python -m arr_coc.training.learn_streaming --output_dir runs/streaming
    python -m arr_coc.training.learn_streaming --dataset NAME --hub --samples 50000 --output_dir runs/mine
    accelerate launch --num_processes 2 --cpu -m arr_coc.training.learn_streaming --output_dir runs/two

The classes are those of the label column, or the lines of a file (--classes) where labels are texts. Without
a data set, the garments that come with the package are streamed from their file. In several processes each
reads its own part. Every argument of transformers' TrainingArguments is one of this script.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from arr_coc.training import script, sources
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.items import DATA, FASHION_CLASSES
from arr_coc.training.scores import accuracy
from arr_coc.training.streams import PROMPT
from arr_coc.training.trainer import ArrCocTrainer


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    dataset: str | None = field(default=None, metadata={"help": "a folder, or with --hub a name"})
    split: str = field(default="train", metadata={"help": "to learn"})
    test_split: str = field(default="test", metadata={"help": "held out"})
    image: str = field(default="image", metadata={"help": "column of the pictures"})
    label: str = field(default="label", metadata={"help": "column of the labels"})
    classes: str | None = field(default=None, metadata={"help": "a file with a class name per line"})
    prompt: str = field(default=PROMPT, metadata={"help": "how a class is said, with {}"})
    samples: int = field(default=2000, metadata={"help": "of the stream, at most"})
    n_test: int = field(default=500, metadata={"help": "held-out samples, at most"})
    shuffle_buffer: int = field(default=0, metadata={"help": "rows to draw the next one from; 0: in order"})


def garments(split: str) -> datasets.IterableDataset:
    """The shipped garments, streamed from their file."""
    file = str(DATA / f"fashion_mnist_{split}.parquet")
    rows = datasets.load_dataset("parquet", data_files=file, split="train", streaming=True)

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        grey = Image.frombytes("L", (28, 28), row["pixels"])
        return {"image": grey.resize((96, 96), Image.Resampling.BICUBIC).convert("RGB")}

    kinds = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list(FASHION_CLASSES)))
    return rows.map(shown, remove_columns=["pixels"], features=kinds)


def class_names(data: datasets.IterableDataset, chosen: Arguments) -> list[str]:
    """The names of the classes, in the order of the labels.

    Raises:
        ValueError: where neither the data set nor a file names them.
    """
    if chosen.classes is not None:
        return Path(chosen.classes).read_text(encoding="utf-8").splitlines()
    names = getattr((data.features or {}).get(chosen.label), "names", None)
    if names is None:
        raise ValueError(
            f"column {chosen.label!r} does not name its classes: give --classes, a file of names"
        )
    return list(names)


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    chosen, args = script.parse((Arguments, script.OnlineArguments), argv)

    # -- data ------------------------------------------------------------------------------------------------
    splits = (chosen.split, chosen.test_split)
    if chosen.dataset is None:
        stream, held_out = (garments(s) for s in splits)
    else:
        stream, held_out = (sources.opened(chosen.dataset, s, chosen.hub, streaming=True) for s in splits)
        sources.check_columns(stream, (chosen.image, chosen.label))
    names = class_names(stream, chosen)
    if chosen.shuffle_buffer:
        stream = stream.shuffle(seed=args.seed, buffer_size=chosen.shuffle_buffer)
    stream, examined = stream.take(chosen.samples), list(held_out.take(chosen.n_test))
    if args.max_steps < 0:  # a stream does not know its length
        args.max_steps = math.ceil(chosen.samples / (args.per_device_train_batch_size * args.world_size))

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("dual")
    if args.process_index == 0:
        print(attached.inspect())
    texts = [chosen.prompt.format(name) for name in names]
    said = dict(zip(names, texts, strict=True))

    # -- training --------------------------------------------------------------------------------------------
    trainer = ArrCocTrainer(
        attached,
        args,
        data_collator=ChoiceCollator(processor, attached, texts, chosen.image, chosen.label, said=said),
        train_dataset=stream,
        eval_dataset=examined,
        compute_metrics=accuracy,
        processing_class=processor,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train(resume_from_checkpoint=script.resumed(args))
    after = trainer.evaluate()["eval_accuracy"]

    # -- result ----------------------------------------------------------------------------------------------
    trainer.save_model()
    if trainer.is_world_process_zero():
        learned = int(attached.learner.step)
        print(f"accuracy on {len(examined)} held-out samples: {before:.3f} before,", end=" ")
        print(f"{after:.3f} after {learned} streamed ones; the adapter is in {args.output_dir}")


if __name__ == "__main__":
    script.ended(run)
