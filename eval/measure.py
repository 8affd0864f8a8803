"""Measure: a callback for any Trainer that only looks, while people keep their own training."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.offloaded import device_of
from arr_coc.adapters.structure import kind_of
from arr_coc.adapters.teach import own_scores
from arr_coc.eval import metrics, relevance_metrics

_PREFIX = "probe_"


class Measure(TrainerCallback):
    """Evaluates probes at the start, every so many steps and at the end, and logs them through the trainer.

    Logged, as `probe_...`: the accuracy of every probe (a sample counts as right if the best candidate is, or
    each taught token of a generative model, given those before it), `accuracy` (their mean), `forgetting`
    (`metrics.forgetting_so_far`), `zero_shot_retention` of the held-out probe, and, for an attached model and
    samples with a `mask`, `pointing` of every such probe (`relevance_metrics.pointing`).

        trainer.add_callback(Measure(trainer, {"cats": cats, "dogs": dogs}, collate, every=100))

    Args:
        trainer: whose `log` is used; of an `ArrCocTrainer` or any other.
        probes: by name, samples with a length and an index.
        collate: from samples to the model's inputs, labels among them; a dual encoder's labels are rows of
            `input_ids`.
        every: steps between two evaluations.
        held_out: samples of classes that are not trained; their candidates must be the learned and the
            held-out texts together.
        batch: samples at a time.
        model: what is scored, where that is not the trainer's model itself but a part of it.

    Raises:
        ValueError, TypeError: without probes, for an empty one, or for a model that cannot be scored.
    """

    def __init__(
        self,
        trainer: Trainer,
        probes: Mapping[str, Any],
        collate: Callable[[list[Any]], Any],
        every: int = 500,
        held_out: Any = None,
        batch: int = 32,
        model: Any = None,
    ) -> None:
        if not probes:
            raise ValueError("no probe was given; a dict from names to samples is needed")
        every_probe = {**probes, **({} if held_out is None else {"held_out": held_out})}
        empty = [name for name, samples in every_probe.items() if not len(samples)]
        if empty or every < 1 or batch < 1:
            raise ValueError(f"empty probes: {empty}; every={every}, batch={batch}: at least 1 is needed")
        if held_out is not None and "held_out" in probes:
            raise ValueError("a probe is named 'held_out', which is the name of the held-out one")
        self.trainer, self.probes, self.held_out = trainer, dict(probes), held_out
        self.collate, self.every, self.batch = collate, every, batch
        self.accuracies: list[list[float]] = []
        self._retained: float | None = None
        self._at = -1
        self.model: Any = trainer.model if model is None else model
        self.body = self._body()

    def _body(self) -> DualEncoderBody | GenerativeBody:
        if isinstance(self.model, ArrCocModel):
            return self.model.body
        return (DualEncoderBody if kind_of(self.model) == "dual" else GenerativeBody)(self.model, ())

    # -- when ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.accuracies, self._retained, self._at = [], None, -1
        for line in state.log_history:  # of a run that is resumed
            if f"{_PREFIX}accuracy" in line:
                self.accuracies.append([line[f"{_PREFIX}{name}_accuracy"] for name in self.probes])
                if self._retained is None:
                    self._retained = line.get(f"{_PREFIX}held_out_accuracy")
                self._at = line["step"]
        if self._at < 0:
            self._measure(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._measure(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._at != state.global_step or args.load_best_model_at_end:
            self._measure(state)

    # -- what ------------------------------------------------------------------------------------------------

    def _measure(self, state: Any) -> None:
        merge = getattr(self.trainer, "merge", None)
        if merge is not None:
            merge()
        told, row = dict[str, float](), []
        for name, samples in self.probes.items():
            right, pointing = self.score(samples)
            row.append(right)
            told[f"{name}_accuracy"] = right
            if pointing is not None:
                told[f"{name}_pointing"] = pointing
        self.accuracies.append(row)
        told["accuracy"] = float(np.mean(row))
        told["forgetting"] = metrics.forgetting_so_far(self.accuracies)
        if self.held_out is not None:
            now, _ = self.score(self.held_out)
            self._retained = now if self._retained is None else self._retained
            told["held_out_accuracy"] = now
            if self._retained > 0:  # a model that knew nothing has nothing to retain
                told["zero_shot_retention"] = metrics.zero_shot_retention(self._retained, now)
        self._at = state.global_step
        self.trainer.log({f"{_PREFIX}{name}": value for name, value in told.items()})

    def score(self, samples: Sequence[Any]) -> tuple[float, float | None]:
        """Accuracy and mean pointing over some samples; nothing is learned and the model's mode comes back.

        Pointing is None where the model is not attached or no sample has a mask with a token in it.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        hits: list[Tensor] = []
        pointed: list[float] = []
        try:
            for start in range(0, len(samples), self.batch):
                some = [samples[i] for i in range(start, min(start + self.batch, len(samples)))]
                right, relevance = self._answer(self.collate(some))
                hits.append(right)
                pointed += [] if relevance is None else _pointed(relevance, some)
        finally:
            for module, mode in modes:
                module.training = mode
        return float(torch.cat(hits).double().mean()), float(np.mean(pointed)) if pointed else None

    def _answer(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Which samples are answered right, (B,), and the relevance of an attached model, (B, N)."""
        model, body = self.model, self.body
        device = device_of(model)
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        labels = inputs.pop("labels")
        if isinstance(body, GenerativeBody):
            inputs = body.with_answers(inputs, labels)
        attached = isinstance(model, ArrCocModel)
        if not attached:
            inputs = {k: v for k, v in inputs.items() if not k.startswith("context_")}
        with torch.no_grad():
            output = model(**inputs)
            own, right = own_scores(body, output, labels)
            hit = own.argmax(1) == right
        if isinstance(body, GenerativeBody):
            wrong, sample = ~hit, body.taught(labels)[0].to(hit.device)
            hit = torch.ones(len(labels), dtype=torch.bool, device=hit.device)
            hit[sample[wrong]] = False
        return hit.cpu(), output.relevance.float().cpu() if attached else None


def _pointed(relevance: Tensor, samples: list[Any]) -> list[float]:
    found = []
    for row, sample in zip(relevance, samples, strict=True):
        mask = sample.get("mask") if isinstance(sample, Mapping) else None
        if mask is not None and np.asarray(mask).any():
            found.append(relevance_metrics.pointing(row.numpy(), np.asarray(mask, dtype=float).ravel()))
    return found
