"""What happens between two steps of a training: a merge, a checkpoint when it is time for one, or the end
when somebody wants it."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from arr_coc.training.checkpoint import tidy


class Between(TrainerCallback):
    """Added by an ArrCocTrainer to itself.

    Args:
        minutes: after which a checkpoint is saved, counted from the last one; None: the clock has no say.
    """

    def __init__(self, trainer: Any, minutes: float | None = None) -> None:
        self.trainer, self.minutes, self._saved = trainer, minutes, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            tidy(Path(args.output_dir))
        self._saved = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        trainer = self.trainer
        if trainer.tuned:
            trainer.tuned.moved()
        if trainer._merge_steps and state.global_step % trainer._merge_steps == 0:
            trainer.merge()
        if self.minutes is not None:
            due = time.monotonic() - self._saved >= 60 * self.minutes
            if trainer.merging.largest([int(due)])[0]:  # the ranks' clocks differ, and all of them save
                control.should_save = True
        if args.world_size == 1:
            trainer._stopping = trainer._interruption.asked
        if trainer._stopping:
            control.should_save = control.should_log = control.should_training_stop = True
        return control
