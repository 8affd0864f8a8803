"""A generative model learns to answer questions online, one pass, and is examined before and after.

    python -m arr_coc.training.learn_answers --output_dir runs/answers
    python -m arr_coc.training.learn_answers --dataset my-questions --output_dir runs/mine
    python -m arr_coc.training.learn_answers --model NAME --dataset NAME --hub --output_dir runs/vqa

A data set is whatever `datasets.load_dataset` reads (a folder, or a name with --hub) with a picture, a
question and a short answer in every row. Without one, the built-in model is taught on which shelf somebody
keeps each of ten kinds of garment, none of which it has ever seen. Every argument of transformers'
TrainingArguments is one of this script.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from arr_coc.training import garments, script, sources
from arr_coc.training.collate import AnswerCollator
from arr_coc.training.items import DIGITS
from arr_coc.training.scores import exact_match
from arr_coc.training.streams import Rendered
from arr_coc.training.trainer import ArrCocTrainer


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    model: str = field(default="generative", metadata={"help": "generative, a folder or a name on the Hub"})
    prompt: str | None = field(default=None, metadata={"help": "with {question}; default: the chat template"})
    dataset: str | None = field(default=None, metadata={"help": "a folder, or with --hub a name"})
    split: str = field(default="train", metadata={"help": "to learn"})
    test_split: str = field(default="test", metadata={"help": "held out"})
    image: str = field(default="image", metadata={"help": "column of the pictures"})
    question: str = field(default="question", metadata={"help": "column of the questions"})
    answer: str = field(default="answer", metadata={"help": "column of the answers"})
    n_train: int = field(default=1000, metadata={"help": "rows to learn, at most"})
    n_test: int = field(default=300, metadata={"help": "held-out rows, at most"})
    max_new_tokens: int = field(default=16, metadata={"help": "of an answer that is examined"})


def shelves(split: str, count: int, seed: int) -> Rendered:
    """Garments, each asked for its shelf."""
    drawn = garments.rows(split, count, seed)

    def render(place: int) -> dict[str, Any]:
        row = drawn[place]
        answer = DIGITS[row["label"]]
        return {"image": row["image"], "question": "on which shelf is the item?", "answer": answer}

    return Rendered(range(len(drawn)), render)


def data(chosen: Arguments, seed: int) -> tuple[Any, Any]:
    """Rows to learn and held-out rows."""
    if chosen.dataset is None:
        return shelves("train", chosen.n_train, seed), shelves("test", chosen.n_test, seed)
    train, test = (sources.opened(chosen.dataset, s, chosen.hub) for s in (chosen.split, chosen.test_split))
    for rows in (train, test):
        sources.check_columns(rows, (chosen.image, chosen.question, chosen.answer))
    return (
        train.select(range(min(chosen.n_train, len(train)))),
        test.select(range(min(chosen.n_test, len(test)))),
    )


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    chosen, args = script.parse((Arguments, script.OnlineArguments), argv)

    # -- data ------------------------------------------------------------------------------------------------
    train, test = data(chosen, args.seed)

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("generative")
    if args.process_index == 0:
        print(attached.inspect())
    columns = {"image": chosen.image, "question": chosen.question, "answer": chosen.answer}
    collate = AnswerCollator(processor, attached, chosen.prompt, **columns)

    # -- training --------------------------------------------------------------------------------------------
    trainer = ArrCocTrainer(
        attached, args, data_collator=collate, train_dataset=train, processing_class=processor
    )
    examined = {"batch": args.per_device_eval_batch_size, "max_new_tokens": chosen.max_new_tokens}
    before = exact_match(attached, collate, test, **examined)
    trainer.train(resume_from_checkpoint=script.resumed(args))
    after = exact_match(attached, collate, test, **examined)

    # -- result ----------------------------------------------------------------------------------------------
    trainer.save_model()
    if trainer.is_world_process_zero():
        print(f"answers to {len(test)} held-out questions that are right to the letter: {before:.3f} before,")
        print(f"{after:.3f} after one pass over {len(train)}; the adapter is in {args.output_dir}")


if __name__ == "__main__":
    script.ended(run)
