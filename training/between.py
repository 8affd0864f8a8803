"""What happens between two steps of a training: a merge, or the end when somebody wants it."""

from typing import Any

from transformers import TrainerCallback


class Between(TrainerCallback):
    """Added by an ArrCocTrainer to itself."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        trainer = self.trainer
        if trainer.tuned:
            trainer.tuned.moved()
        if trainer._merge_steps and state.global_step % trainer._merge_steps == 0:
            trainer.merge()
        if args.world_size == 1:
            trainer._stopping = trainer._interruption.asked
        if trainer._stopping:
            control.should_save = control.should_log = control.should_training_stop = True
        return control
