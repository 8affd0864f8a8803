"""A dual encoder learns a folder of images, a folder per class, one pass, examined before and after.

    python -m arr_coc.training.garments photos --count 1000          # or your own: photos/cat/1.jpg ...
    python -m arr_coc.training.learn_image_folder --folder photos --output_dir runs/photos

A share of the images is held out. Images that cannot be read are passed over, and counted. Every argument of
transformers' TrainingArguments is one of this script.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import IterableDataset

from arr_coc.training import script, sources, streams
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.scores import accuracy
from arr_coc.training.trainer import ArrCocTrainer


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    folder: str | None = field(default=None, metadata={"help": "with a folder of images per class"})
    held_out: float = field(default=0.2, metadata={"help": "share of the images that is not learned"})
    prompt: str = field(default=streams.PROMPT, metadata={"help": "how a class is said, with {}"})
    in_turn: bool = field(default=False, metadata={"help": "one class after another, not shuffled"})


class Readable(IterableDataset):
    """The samples of a stream, those that cannot be read passed over and counted in `stream.skipped`."""

    def __init__(self, stream: streams.Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream.samples)

    def __iter__(self) -> Iterator[Any]:
        for group in self.stream.batches():
            yield from group


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    chosen, args = script.parse((Arguments, script.OnlineArguments), argv)
    if chosen.folder is None:
        raise ValueError("--folder is needed: a folder with a folder of images per class")
    if not 0 < chosen.held_out < 1:
        raise ValueError(f"held_out={chosen.held_out!r}: a share between 0 and 1 is needed")

    # -- data ------------------------------------------------------------------------------------------------
    images = sources.opened(chosen.folder, "train")
    sources.check_columns(images, ("image", "label"))
    parts = images.train_test_split(chosen.held_out, seed=args.seed)
    rows = parts["train"].sort("label") if chosen.in_turn else parts["train"]
    stream = streams.from_dataset(rows, prompt=chosen.prompt)
    examined = list(Readable(streams.from_dataset(parts["test"], prompt=chosen.prompt)))
    texts = [chosen.prompt.format(name) for name in images.features["label"].names]

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("dual")
    if args.process_index == 0:
        print(attached.inspect())

    # -- training --------------------------------------------------------------------------------------------
    trainer = ArrCocTrainer(
        attached,
        args,
        data_collator=ChoiceCollator(processor, attached, texts),
        train_dataset=Readable(stream),
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
        print(
            f"{len(texts)} classes; accuracy on {len(examined)} held-out images: {before:.3f} before,",
            end=" ",
        )
        print(f"{after:.3f} after {learned}; the adapter is in {args.output_dir}")
        for why, count in stream.skipped.items():
            print(f"passed over: {count} x {why}")


if __name__ == "__main__":
    script.ended(run)
