"""ArrCocTrainer: a transformers Trainer whose step is one local update.

What transformers' Trainer does for a script (arguments, callbacks, logs, evaluation, checkpoints, several
processes, mixed precision) it does here too. What is different:

- A step is one `learn` on one batch: no backward pass, no optimizer. With `gradient_accumulation_steps=n`
  there is nothing to accumulate: n batches are n local updates, counted as one step and logged as their mean.
- `loss`, `accuracy` and `surprise` are prequential: each sample's, before the first plastic adapter learned
  it, averaged over the samples since the last log; `classes` is how many were met. Evaluation never learns.
- Checkpoints are the adapter's own files and JSON; no pickle is written or read. A run that was stopped and
  resumed ends in the same state, bit for bit, as one that never stopped (random augmentation in worker
  processes excepted: their generators start anew).
- An iterable dataset is passed through `num_train_epochs` times at the most, whatever `max_steps` is.
- Ctrl-C ends after the step that runs, with a checkpoint; a second one ends at once, without.
- In several processes every rank learns from its own part, each sample once (see `feeding`); what they
  learned is merged (see `distributed`) before an evaluation or a checkpoint, every `merge_steps`, and at the
  end.
"""

import inspect
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from arr_coc import state
from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.teach import fused_scores, own_scores, teach
from arr_coc.config import ArrCocConfig
from arr_coc.training import checkpoint, sharding
from arr_coc.training.arguments import bounds, kept, refuse, special_tokens
from arr_coc.training.between import Between
from arr_coc.training.distributed import Merging
from arr_coc.training.feeding import Feed, feed
from arr_coc.training.finetune import Tuned
from arr_coc.training.interruption import Interruption
from arr_coc.training.prequential import Prequential, log_loss, means
from arr_coc.training.publishing import Publishing

logger = logging.getLogger(__name__)


class ArrCocTrainer(Trainer):
    """Trains an attached model online; arguments are those of `transformers.Trainer`, and

    Args:
        model: an attached model, or a bare one, which is attached.
        adapter: the config to attach a bare model with; None for the default.
        finetune: a regular expression; the parameters of the backbone whose names it finds take an ordinary
            gradient step (`args.optim`, `args.learning_rate`) on the model's own loss after every local
            update. None: no tensor of the backbone ever requires a gradient.
        merge_steps: in several processes, merge this often besides.
        save_minutes: save a checkpoint whenever the last one is this old, whatever `save_strategy` says.

    Raises:
        ValueError, TypeError: for a model that cannot be attached to, and for arguments that have no meaning
            here; the model is left as it was.
    """

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *more: Any,
        adapter: ArrCocConfig | None = None,
        finetune: str | None = None,
        merge_steps: int | None = None,
        save_minutes: float | None = None,
        **named: Any,
    ) -> None:
        if named.get("model_init") is not None:
            raise ValueError("model_init makes a model per trial; attach and train each in your own loop")
        if isinstance(model, ArrCocModel) and adapter is not None:
            raise ValueError("the model has an adapter already: its config is fixed; give a bare model")
        bounds(merge_steps, save_minutes)
        refuse(args)
        sharding.check(model)
        own = not isinstance(model, ArrCocModel)
        attached = attach(model, adapter, named.get("processing_class")) if own else model
        self.attached, self._merge_steps = attached, merge_steps
        try:
            self.tuned = Tuned(attached, finetune)
            with kept(attached.model.config, "use_cache"):  # no graph is kept here: it is in nobody's way
                super().__init__(attached, args, *more, **named)
            if self.tuned and self.args.world_size > 1:
                raise ValueError("finetune works in one process: gradients are not shared between ranks")
        except BaseException:
            if own:
                attached.detach()
            raise
        # there is nothing to wrap: no gradient to share, and autocast is for the backbone alone
        attached._is_accelerate_prepared = True
        self.label_names = self.args.label_names or ["labels"]
        self.model_accepts_loss_kwargs = False
        self.args._n_gpu = min(self.args.n_gpu, 1)  # one process reads one model's activations
        self._train_batch_size = self.args.train_batch_size
        self.merging = Merging(self.args.device, self.args.ddp_timeout)
        self.publishing, self._in_step = Publishing(self, self._write), sharding.InStep(attached)
        self._window, self._life = Prequential(), torch.zeros(4, dtype=torch.float64)
        self._told: dict[str, float] | None = None
        self._resume: str | None = None
        self._generators_at: str | None = None
        self._interruption, self._stopping = Interruption(), False
        self.add_callback(Between(self, save_minutes))

    # -- setting up ------------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # candidates have no batch dimension: a batch is read by the rank that learns it, never cut up
        self.accelerator.dataloader_config.dispatch_batches = False
        if not self.tuned:
            self.accelerator.scaler = None  # there is no gradient to scale

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        super()._move_model_to_device(self.attached.model, device)
        for name in self.attached.adapters:
            state.place(self.attached.adapter(name), device)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            takes = inspect.signature(self.attached.model.forward).parameters
            names = [*takes, "context_ids", "context_attention_mask"]
            self._signature_columns: Any = [*names, "label", "label_ids", *self.label_names]

    def get_train_dataloader(self) -> Feed:
        """This rank's part of the training set, each sample once."""
        args, dataset = self.args, self.train_dataset
        if dataset is None:
            raise ValueError("training needs a train_dataset")
        collate = self.data_collator
        if isinstance(dataset, datasets.Dataset):
            dataset = self._remove_unused_columns(dataset, description="training")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="training")
        sampler = None if isinstance(dataset, IterableDataset) else self._get_train_sampler(dataset)
        return feed(dataset, sampler, collate, args, self._train_batch_size)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        sets: Any = self.eval_dataset
        chosen = sets if eval_dataset is None else eval_dataset
        chosen = sets[chosen] if isinstance(chosen, str) else chosen
        if self.args.world_size > 1 and isinstance(chosen, IterableDataset):
            raise ValueError("in several processes an evaluation set must have a length and be indexed")
        return super().get_eval_dataloader(eval_dataset)

    # -- a life ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *more: Any, **named: Any) -> Any:
        """Learn from the training set, from its start or from where a checkpoint of it stopped.

        Raises:
            KeyboardInterrupt: after a Ctrl-C, when the checkpoint is written.
            FileNotFoundError, ValueError: for a checkpoint that is missing, cut short or of another adapter.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(checkpoint.last_complete(str(self.args.output_dir)))
        elif resume_from_checkpoint and not checkpoint.complete(Path(resume_from_checkpoint)):
            raise FileNotFoundError(f"{resume_from_checkpoint} holds no complete checkpoint of this trainer")
        self.attached._check_plastic()
        self._resume = str(resume_from_checkpoint) if resume_from_checkpoint else None
        self._generators_at, self._stopping = None, False
        self._life.zero_()
        with (
            self._interruption.watch(),
            self.tuned.alone(),
            special_tokens(self.attached.model) as self._realign,
        ):
            output = super().train(self._resume, *more, **named)
        if self._interruption.asked:
            raise KeyboardInterrupt(f"stopped after step {self.state.global_step}")
        loss = output.metrics.get("train_loss", output.training_loss)
        return output._replace(training_loss=loss)

    def _prepare_for_training(self, *args: Any, **named: Any) -> Any:
        self._realign()
        prepared = super()._prepare_for_training(*args, **named)
        self.merging.begin([self.attached.adapter(name) for name in self.attached.adapters])
        return prepared

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The next batches of this rank; {} where another one still has some. All ranks agree to stop."""
        self._load_rng_state(self._resume)  # before they are made, and what is random in that
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        starved = int(self._in_step.starved(batches))
        asked = int(self._interruption.asked)
        most, stop, starved = self.merging.largest([len(batches), asked, starved])
        if most and starved:
            raise ValueError("a backbone that is split needs at least one sample per process to begin with")
        self._stopping = bool(stop)
        endless = not has_length(self.train_dataset)
        if most == 0:
            self.control.should_epoch_stop, self.control.should_training_stop = True, endless
            self.control.should_log = endless
            self.control.should_save = endless and self.args.save_strategy == "steps"
        elif endless:
            most = num_batches  # a step that the data ends in counts as one
        return batches + [{}] * (most - len(batches)), None

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> None:
        return None  # means are taken over samples here

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One local update; returns the cross-entropy of what was answered before it."""
        if not inputs:
            self._forget()
            self._in_step.look_along(self.accelerator.autocast())
            return torch.zeros((), device=self.args.device)
        inputs = dict(self._prepare_inputs(inputs))
        inputs.pop("return_loss", None)
        labels = inputs.pop(self.label_names[0], None)
        if labels is None:
            raise ValueError(f"the batch has no {self.label_names[0]!r}: it has {', '.join(inputs)}")
        if self.attached.training:
            self.attached.eval()
        self._forget()
        self._in_step.saw(labels, inputs)
        with self.accelerator.autocast():
            lesson = teach(self.attached, labels, inputs)
        scores, right = fused_scores(self.attached, lesson.seen, lesson.answer, lesson.labels)
        loss = self._window.add(scores, right, lesson.answer.surprise)
        if self.tuned:
            self._gradient(labels, inputs)
        return loss.float().to(self.args.device) / self.current_gradient_accumulation_steps

    def _forget(self) -> None:
        """Context texts are embedded with every batch anew: what is learned from one does not depend, by the
        last bits of a matrix product of another height, on which ones an evaluation or a resume has met."""
        if isinstance(self.attached.body, DualEncoderBody):
            self.attached.body.forget_texts()

    def _gradient(self, labels: Tensor, inputs: dict[str, Any]) -> None:
        self.attached.train()
        with self.accelerator.autocast():
            loss = self.tuned.loss(labels, inputs)
        self.accelerator.backward(loss / self.current_gradient_accumulation_steps)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return super()._clip_grad_norm(model) if self.tuned else None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        return super()._get_grad_norm(model, grad_norm) if self.tuned else None

    def floating_point_ops(self, inputs: Any) -> int:
        """A forward pass, a third of what transformers counts for a step; three more with `finetune`."""
        return super().floating_point_ops(inputs) * (4 if self.tuned else 1) // 3 if inputs else 0

    def _track_num_input_tokens(self, inputs: Any) -> None:
        none = {name: torch.zeros(0) for name in (self.attached.main_input_name, "attention_mask")}
        super()._track_num_input_tokens(inputs or none)

    def merge(self) -> None:
        """Sum up what all ranks have learned since the last merge; a collective call."""
        self.merging.merge()

    def _finalize_training(self, *args: Any, **named: Any) -> Any:
        self.merge()
        self._close_window()
        self._told = means(self._life, "train_")
        return super()._finalize_training(*args, **named)

    # -- what is told ----------------------------------------------------------------------------------------

    def _close_window(self) -> dict[str, float]:
        sums = self.merging.summed(self._window.take())
        self._life += sums
        return means(sums)

    def _maybe_log_save_evaluate(self, *args: Any, **named: Any) -> None:
        if self.control.should_log and self.state.global_step > self._globalstep_last_logged:
            self._told = self._close_window()
        super()._maybe_log_save_evaluate(*args, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        told, self._told = self._told, None
        if told is not None:
            if not self.tuned:
                for name in ("learning_rate", "grad_norm"):
                    logs.pop(name, None)
            learner = self.attached.adapter(self.attached.plastic[0])
            logs.update(told, classes=len(learner.classes))
        super().log(logs, start_time)

    # -- evaluation ------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, **named: Any) -> dict[str, float]:
        self.merge()
        return super().evaluate(*args, **named)

    def predict(self, *args: Any, **named: Any) -> Any:
        self.merge()
        return super().predict(*args, **named)

    def prediction_step(
        self, model: nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Loss, scores and labels: (B, C) over the candidates, or a generative model's logits (B, T, V)."""
        inputs = dict(self._prepare_inputs(inputs))
        inputs.pop("return_loss", None)
        labels, body = inputs.pop(self.label_names[0], None), self.attached.body
        if labels is not None and isinstance(body, GenerativeBody):
            inputs = body.with_answers(inputs, labels)
        self._forget()
        with self.accelerator.autocast():
            output = model(**inputs)
        with torch.no_grad():
            scores = output.logits if isinstance(body, GenerativeBody) else body.own_logits(output)
            loss = None
            if labels is not None:
                loss = log_loss(*own_scores(body, output, labels)).mean().float()
        return (loss, None, None) if prediction_loss_only else (loss, scores.float().clone(), labels)

    # -- checkpoints -----------------------------------------------------------------------------------------

    def _save_checkpoint(self, *args: Any, **named: Any) -> None:
        self.merge()
        folder = Path(self._get_output_dir(None)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        with checkpoint.whole_or_gone(folder) if self.args.should_save else nullcontext():
            super()._save_checkpoint(*args, **named)
        if self._stopping:
            logger.warning(
                "stopped after step %d, which is saved in %s; go on with train(resume_from_checkpoint=True)",
                self.state.global_step,
                self.args.output_dir,
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter, the fine-tuned part if there is one, the processor and the arguments."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            self._write(folder)
            (folder / checkpoint.ARGS).write_text(self.args.to_json_string())
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _write(self, folder: Path, **card: Any) -> None:
        self.attached.save_pretrained(folder, **card)
        if self.tuned:
            self.tuned.save(folder)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(folder)

    def push_to_hub(self, *args: Any, **named: Any) -> Any:
        """Save, and upload the adapter (never the model) with its card; see `Publishing.end`."""
        return self.publishing.end(*args, **named)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self.publishing.save(Path(checkpoint_folder))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = checkpoint.read_adapters(folder := Path(resume_from_checkpoint), self.attached)
        self.tuned.load(folder)
        for name, one in saved.items():
            state.load(self.attached.adapter(name), one.tensors, one.header.about)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
        self.merging.begin([self.attached.adapter(name) for name in self.attached.adapters])

    def _owners(self) -> dict[str, Any]:
        found = {"optimizer": self.optimizer, "scheduler": self.lr_scheduler}
        return found | ({} if self.accelerator.scaler is None else {"scaler": self.accelerator.scaler})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.tuned:
            owners = self._owners().items()
            checkpoint.save_nested(Path(output_dir) / "optimizer", {n: o.state_dict() for n, o in owners})

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        if self.tuned and checkpoint_folder is not None:
            states = checkpoint.load_nested(Path(checkpoint_folder) / "optimizer")
            for name in self._owners().keys() & states.keys():
                self._owners()[name].load_state_dict(states[name])

    def _save_scaler(self, output_dir: str) -> None:
        """It lies with the optimizer."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It lies with the optimizer."""

    def _save_rng_state(self, output_dir: str) -> None:
        mine = checkpoint.random_file(self.args.process_index, self.args.world_size)
        checkpoint.save_random(Path(output_dir, mine))

    def _load_rng_state(self, checkpoint_folder: str | None) -> None:
        if checkpoint_folder is None or checkpoint_folder == self._generators_at:
            return
        self._generators_at = checkpoint_folder  # once: the Trainer asks again when a batch has been read
        checkpoint.restore_random(Path(checkpoint_folder), self.args.process_index, self.args.world_size)
