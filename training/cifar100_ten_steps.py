"""CIFAR-100, ten classes after another, by CLIP ViT-B/16: one pass, no replay, beside published figures.

    python -m arr_coc.training.cifar100_ten_steps --output_dir runs/cifar100        # downloads data and model

The candidates are always all hundred class names; nobody says which ten are being taught. After every step
the classes so far are examined among all hundred candidates; the last line stands beside
what is published for the same model and ten steps (RanPAC, McDonnell et al. 2023, its table for CLIP).
Stopped with Ctrl-C or killed, it goes on at the step it was in when it is started again.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from arr_coc.adapters.attached import ArrCocModel
from arr_coc.training import checkpoint, script, sources
from arr_coc.training.collate import ChoiceCollator
from arr_coc.training.scores import accuracy
from arr_coc.training.stream_sets import HUB, PUBLISHED, divided
from arr_coc.training.streams import PROMPT
from arr_coc.training.trainer import ArrCocTrainer


@dataclass
class Arguments(script.ModelArguments):
    """What is learned by what."""

    model: str = field(default="openai/clip-vit-base-patch16", metadata={"help": "a folder, or a name"})
    hub: bool = field(default=True, metadata={"help": "allow downloads by name"})
    dataset: str = field(default=HUB["cifar-100"], metadata={"help": "a folder, or a name"})
    image: str = field(default="img", metadata={"help": "column of the pictures"})
    label: str = field(default="fine_label", metadata={"help": "column of the labels"})
    steps: int = field(default=10, metadata={"help": "that the classes are divided into"})
    prompt: str = field(default=PROMPT, metadata={"help": "how a class is said, with {}"})


def of_classes(rows: Any, labels: np.ndarray, classes: Sequence[int]) -> Any:
    """The rows of some classes, in their own order."""
    return rows.select(np.flatnonzero(np.isin(labels, classes)).tolist())


def examined(folder: Path) -> float | None:
    """The accuracy that a step ended with, where it has ended."""
    file = folder / "eval_results.json"
    return json.loads(file.read_text())["eval_accuracy"] if file.is_file() else None


def begun(folder: Path) -> str | None:
    """The last checkpoint of a step that was stopped on its way, if there is one."""
    try:
        return str(checkpoint.last_complete(folder))
    except FileNotFoundError:
        return None


def run(argv: Sequence[str]) -> None:
    """The whole of it."""
    chosen, args = script.parse((Arguments, script.OnlineArguments), argv)

    # -- data ------------------------------------------------------------------------------------------------
    train, test = (sources.opened(chosen.dataset, split, chosen.hub) for split in ("train", "test"))
    sources.check_columns(train, (chosen.image, chosen.label))
    names = [name.replace("_", " ") for name in train.features[chosen.label].names]
    taught = divided(len(names), chosen.steps, args.seed)
    train = train.shuffle(seed=args.seed)
    labels, truth = np.array(train[chosen.label]), np.array(test[chosen.label])

    # -- model -----------------------------------------------------------------------------------------------
    attached, processor = chosen.load("dual")
    if args.process_index == 0:
        print(attached.inspect())
    texts = [chosen.prompt.format(name) for name in names]
    collate = ChoiceCollator(processor, attached, texts, chosen.image, chosen.label)

    # -- training --------------------------------------------------------------------------------------------
    found: list[float] = []
    for number, classes in enumerate(taught, 1):
        folder = Path(str(args.output_dir)) / f"step-{number:02d}"
        if examined(folder) is not None:  # of a run before
            attached = ArrCocModel.from_pretrained(attached.detach(), folder, processor)
        else:
            here = copy.copy(args)
            here.output_dir = str(folder)
            so_far = [c for step in taught[:number] for c in step]
            trainer = ArrCocTrainer(
                attached,
                here,
                data_collator=collate,
                train_dataset=of_classes(train, labels, classes),
                eval_dataset=of_classes(test, truth, so_far),
                compute_metrics=accuracy,
            )
            trainer.train(resume_from_checkpoint=begun(folder))
            trainer.save_model()
            trainer.save_metrics("eval", trainer.evaluate())
            args.distributed_state.wait_for_everyone()
        found.append(float(examined(folder) or 0))
        if args.process_index == 0:
            print(f"step {number}: {100 * found[-1]:.1f} % on the {number * len(classes)} classes so far")

    # -- result ----------------------------------------------------------------------------------------------
    if args.process_index == 0:
        print(f"mean over the steps {100 * float(np.mean(found)):.1f} %, at the end {100 * found[-1]:.1f} %")
        comparable = (len(names), chosen.steps) == (100, 10)
        for method, figure in PUBLISHED["cifar-100"].items() if comparable else ():
            print(f"  published, CIFAR-100 in ten steps: {method} {figure:.1f} %")


if __name__ == "__main__":
    script.ended(run)
