"""What ArrCocTrainer cannot make sense of is said before anything is attached."""

import os

import pytest
import torch

import tiny
from arr_coc import attach
from arr_coc.training.trainer import ArrCocTrainer
from training_data import SMALL, arguments, dual_collate, pictures


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"auto_find_batch_size": True}, "learned twice"),
        ({"label_smoothing_factor": 0.1}, "one-hot"),
        ({"accelerator_config": {"split_batches": True}}, "every rank reads"),
        ({"bf16_full_eval": True}, "round what was learned"),
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "run uncompiled"),
    ],
)
def test_arguments_without_a_meaning_are_refused(tmp_path, monkeypatch, changes: dict, words: str) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # TrainingArguments writes to it
    model = tiny.dual()
    with pytest.raises(ValueError, match=words):
        ArrCocTrainer(model, arguments(tmp_path, **changes), dual_collate, pictures(4), adapter=SMALL)
    attach(model, SMALL).detach()  # nothing was attached


def test_wrong_models_labels_and_names_are_refused(tmp_path) -> None:
    attached = attach(tiny.dual(), SMALL)
    with pytest.raises(ValueError, match="config is fixed"):
        ArrCocTrainer(attached, arguments(tmp_path), adapter=SMALL)
    with pytest.raises(ValueError, match="merge_steps=0"):
        ArrCocTrainer(attached, arguments(tmp_path), merge_steps=0)
    with pytest.raises(TypeError, match="no config of transformers"):
        ArrCocTrainer(torch.nn.Linear(2, 2), arguments(tmp_path))
    model = tiny.dual()
    with pytest.raises(ValueError, match=r"nearest are .*visual_projection\.weight"):
        ArrCocTrainer(model, arguments(tmp_path), adapter=SMALL, finetune="visual_projektion")
    with pytest.raises(ValueError, match="no regular expression"):
        ArrCocTrainer(model, arguments(tmp_path), adapter=SMALL, finetune="(")
    attach(model, SMALL).detach()

    def unlabelled(samples: list) -> dict:
        return {k: v for k, v in dual_collate(samples).items() if k != "labels"}

    one = ArrCocTrainer(attached, arguments(tmp_path), unlabelled, pictures(4))
    with pytest.raises(ValueError, match="no 'labels': it has input_ids"):
        one.train()
