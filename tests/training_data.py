"""Small data sets, collators and trainers for tests of training."""

from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

import tiny
from arr_coc import ArrCocConfig, state
from arr_coc.training.trainer import ArrCocTrainer

SMALL = ArrCocConfig(width=16, expansion=8)
FIXED = ArrCocConfig(width=16, expansion=8, learn_relevance=False)  # U and W stay as they are
CLASSES = 5


def pictures(count: int, seed: int = 3) -> list[dict[str, Any]]:
    """Samples that are told apart by a shift of one colour, with ids."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=draw).tolist()
    samples = []
    for index, label in enumerate(labels):
        pixels = 0.5 * torch.randn(3, 32, 32, generator=draw)
        pixels[label % 3] += 1.0 + label // 3
        samples.append({"pixel_values": pixels, "labels": label, "id": index})
    return samples


class Noisy(Dataset):
    """A picture is never quite the same twice: what is random in the data must come back too."""

    def __init__(self, count: int) -> None:
        self.samples = pictures(count)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        return {**sample, "pixel_values": sample["pixel_values"] + 0.1 * torch.randn(3, 32, 32)}


def dual_collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pictures and labels of a batch, beside the same candidates every time."""
    given = tiny.dual_inputs(batch=1, texts=CLASSES)
    return {
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "context_ids": torch.tensor([1, 2, 49]),
        "pixel_values": torch.stack([torch.as_tensor(s["pixel_values"]) for s in samples]),
        "labels": torch.tensor([s["labels"] for s in samples]),
    }


def generative_collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The same as questions whose answer is a word and the end."""
    given = tiny.generative_inputs(batch=1)
    prompt = {k: v.repeat(len(samples), 1) for k, v in given.items() if k != "pixel_values"}
    prompt["pixel_values"] = torch.stack([s["pixel_values"] for s in samples])
    return tiny.answered(prompt, torch.tensor([[10 + s["labels"], 2] for s in samples]))


BODIES = {"dual": (tiny.dual, dual_collate), "generative": (tiny.generative, generative_collate)}


def arguments(out, **changes) -> TrainingArguments:
    said = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 1,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **changes,
    }
    return TrainingArguments(output_dir=str(out), **said)


def trainer(out, body="dual", data=None, callbacks=None, **changes) -> ArrCocTrainer:
    make, collate = BODIES[body]
    own = {
        k: changes.pop(k)
        for k in ("finetune", "eval_dataset", "compute_metrics", "save_minutes")
        if k in changes
    }
    data = pictures(30) if data is None else data
    return ArrCocTrainer(
        make(), arguments(out, **changes), collate, data, adapter=SMALL, callbacks=callbacks, **own
    )


def learned(one) -> dict[str, torch.Tensor]:
    attached = one.attached if isinstance(one, ArrCocTrainer) else one
    return {k: t.clone() for k, t in state.tensors(attached.learner).items()}


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def logged(one: ArrCocTrainer, name: str) -> list[float]:
    return [line[name] for line in one.state.log_history if name in line]


class Crash(TrainerCallback):
    """Something goes wrong at a step."""

    def __init__(self, step: int, how=None) -> None:
        self.step, self.how = step, how

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.how() if self.how else (_ for _ in ()).throw(RuntimeError("pulled the plug"))
