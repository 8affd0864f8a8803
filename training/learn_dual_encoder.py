"""A dual encoder learns a built-in stream online, one pass, and is examined before and after.

    python -m arr_coc.training.learn_dual_encoder --output_dir runs/fashion
    python -m arr_coc.training.learn_dual_encoder --stream cued-clutter --output_dir runs/cues
    python -m arr_coc.training.learn_dual_encoder --model NAME --hub --output_dir runs/other
    accelerate launch --num_processes 2 --cpu -m arr_coc.training.learn_dual_encoder --output_dir runs/two

Every argument of transformers' TrainingArguments is one of this script.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from arr_coc.training import script, streams
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.scores import accuracy
from arr_coc.training.trainer import ArrCocTrainer


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    stream: str = field(default="split-fashion", metadata={"help": f"one of {', '.join(streams.STREAMS)}"})
    order: int = field(default=0, metadata={"help": "of the experiences: 0, 1, 2, ..."})
    n_train: int = field(default=2000, metadata={"help": "samples in the stream"})
    n_test: int = field(default=500, metadata={"help": "held-out samples"})


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    chosen, args = script.parse((Arguments, script.OnlineArguments), argv)

    # -- data ------------------------------------------------------------------------------------------------
    made = {"seed": args.seed, "order": chosen.order, "n_train": chosen.n_train, "n_test": chosen.n_test}
    stream = streams.load(chosen.stream, **made)
    held_out = streams.load(chosen.stream, split="test", **made)
    asked = "context" if stream.samples[0]["context"] is not None else None

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("dual")
    if args.process_index == 0:
        print(attached.inspect())

    # -- training --------------------------------------------------------------------------------------------
    trainer = ArrCocTrainer(
        attached,
        args,
        data_collator=ChoiceCollator(processor, attached, stream.classes, context=asked),
        train_dataset=stream.samples,
        eval_dataset=held_out.samples,
        compute_metrics=accuracy,
        processing_class=processor,
    )
    before = trainer.evaluate()["eval_accuracy"]
    told = trainer.train(resume_from_checkpoint=script.resumed(args)).metrics
    after = trainer.evaluate()["eval_accuracy"]

    # -- result ----------------------------------------------------------------------------------------------
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"accuracy on {len(held_out.samples)} held-out samples: {before:.3f} before,", end=" ")
        print(f"{after:.3f} after one pass over {len(stream.samples)}")
        print(f"accuracy on each sample just before it was learned: {told['train_accuracy']:.3f}")
        print(f"the adapter is in {args.output_dir}")


if __name__ == "__main__":
    script.ended(run)
