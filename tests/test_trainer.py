"""ArrCocTrainer: a step is a local update, what it logs is prequential, and a resumed run is the same run."""

import json
import os
import signal

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from arr_coc.training.trainer import ArrCocTrainer
from training_data import (
    BODIES,
    SMALL,
    Crash,
    Noisy,
    arguments,
    dual_collate,
    learned,
    logged,
    pictures,
    same,
    trainer,
)


@pytest.mark.parametrize("body", BODIES)
def test_a_step_is_one_learn_and_the_logs_are_prequential(tmp_path, body: str) -> None:
    """Against a loop of its own: answer with the model's forward, then learn."""
    make, collate = BODIES[body]
    samples = sorted(pictures(30), key=lambda s: s["labels"] == 4)  # one class comes late
    by_hand = attach(make(), SMALL)
    losses, hits, surprise = [], [], []
    for start in range(0, 30, 4):
        batch = collate(samples[start : start + 4])
        labels = batch.pop("labels")
        out = by_hand(**batch)
        if body == "dual":
            scores, right = out.logits_per_image, labels
        else:
            scores, right = out.logits[:, :-1][labels[:, 1:] != -100], labels[:, 1:][labels[:, 1:] != -100]
        chance = scores.softmax(1)[torch.arange(len(right)), right]
        losses += (-chance.clamp_min(2.0**-23).log()).tolist()  # as scikit-learn clips it
        hits += (scores.argmax(1) == right).tolist()
        surprise += by_hand.learn(labels=labels, **batch).surprise.tolist()
    one = trainer(tmp_path, body, samples, train_sampling_strategy="sequential", logging_steps=8)
    told = one.train()
    assert same(learned(one), learned(by_hand))
    mean = {n: sum(v) / len(v) for n, v in {"loss": losses, "accuracy": hits, "surprise": surprise}.items()}
    assert told.training_loss == pytest.approx(mean["loss"], rel=1e-4)
    for name, value in mean.items():
        assert told.metrics[f"train_{name}"] == pytest.approx(value, rel=1e-4)
        assert logged(one, name) == [pytest.approx(value, rel=1e-4)]
    assert logged(one, "classes") == [len(by_hand.learner.classes)] * 2
    assert not logged(one, "learning_rate")
    assert not logged(one, "grad_norm")


@pytest.mark.parametrize("body", BODIES)
def test_evaluation_measures_and_never_learns(tmp_path, body: str) -> None:
    held = pictures(11, seed=9)

    def right(given) -> dict[str, float]:
        answered = given.predictions.argmax(-1)
        return {"right": float((answered == given.label_ids).mean()) if body == "dual" else 0.0}

    one = trainer(tmp_path, body, eval_dataset=held, compute_metrics=right)
    one.train()
    before = learned(one)
    measured = one.evaluate()
    predicted = one.predict(held)
    assert same(before, learned(one))
    batch = BODIES[body][1](held)
    labels = batch.pop("labels")
    out = one.attached(**batch)
    if body == "dual":
        expected = torch.nn.functional.cross_entropy(out.logits_per_image, labels)
        hits = (out.logits_per_image.argmax(1) == labels).float().mean()
        assert measured["eval_right"] == pytest.approx(float(hits))
        assert predicted.predictions.shape == (11, 5)
    else:
        taught = labels[:, 1:] != -100
        expected = torch.nn.functional.cross_entropy(out.logits[:, :-1][taught], labels[:, 1:][taught])
        assert predicted.predictions.shape == (11, labels.shape[1], 60)
    assert measured["eval_loss"] == pytest.approx(float(expected), rel=1e-4)
    assert predicted.metrics["test_loss"] == pytest.approx(float(expected), rel=1e-4)


class Flow(IterableDataset):
    """A stream without a length."""

    def __init__(self, count: int) -> None:
        self.samples, self.given = pictures(count), []

    def __iter__(self):
        for sample in self.samples:
            self.given.append(sample["id"])
            yield sample


def streamed(count: int) -> datasets.IterableDataset:
    def rows():
        for sample in pictures(count):
            yield {**sample, "pixel_values": sample["pixel_values"].numpy()}

    return datasets.IterableDataset.from_generator(rows)


RUNS = {
    "shuffled": (lambda: Noisy(30), {"num_train_epochs": 2}),
    "epoch": (lambda: Noisy(20), {"num_train_epochs": 2, "save_steps": 5}),
    "accumulated": (lambda: Noisy(30), {"gradient_accumulation_steps": 2, "save_steps": 2}),
    "iterable": (lambda: Flow(30), {"max_steps": 100, "num_train_epochs": 2}),
    "streaming": (lambda: streamed(30), {"max_steps": 7}),
}


@pytest.mark.parametrize("run", RUNS)
def test_killed_and_resumed_is_never_stopped(tmp_path, run: str) -> None:
    data, changes = RUNS[run]
    changes = {"save_strategy": "steps", "save_steps": 3, **changes}
    whole = trainer(tmp_path / "whole", data=data(), **changes)
    whole.train()
    crash = Crash(changes["save_steps"] + 1)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trainer(tmp_path / "cut", data=data(), callbacks=[crash], **changes).train()
    resumed = trainer(tmp_path / "cut", data=data(), **changes)
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))
    assert state.meta(whole.attached.learner) == state.meta(resumed.attached.learner)
    assert whole.state.global_step == resumed.state.global_step


def test_an_evaluation_before_the_checkpoint_does_not_move_what_is_learned_after_it(tmp_path) -> None:
    """Its contexts were still in the cache, embedded in other batches, which may differ in the last bit."""

    def made(out, **changes) -> ArrCocTrainer:
        held = {"eval_dataset": pictures(8, seed=9), "remove_unused_columns": False}
        one = trainer(out, save_strategy="steps", save_steps=3, **held, **changes)
        one.data_collator = lambda samples: {
            **dual_collate(samples),
            "context_ids": torch.tensor([[1, 2 + sample["id"] % 11, 49] for sample in samples]),
        }
        return one

    whole, bare = made(tmp_path, eval_strategy="steps", eval_steps=3), made(tmp_path / "bare")
    whole.train()
    bare.train()
    assert same(learned(whole), learned(bare))
    resumed = made(tmp_path)
    resumed.train(str(tmp_path / "checkpoint-3"))
    assert same(learned(whole), learned(resumed))


def test_checkpoints_are_the_adapters_files_and_no_pickle(tmp_path, monkeypatch) -> None:
    def refused(*args, **kwargs) -> None:
        raise AssertionError("a pickle was written or read")

    monkeypatch.setattr(torch, "save", refused)
    monkeypatch.setattr(torch, "load", refused)
    one = trainer(tmp_path, save_strategy="steps", save_steps=2, save_total_limit=2)
    one.train()
    kept = sorted(p.name for p in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-6", "checkpoint-8"]
    names = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {".json", ".safetensors", ".md"}
    assert json.loads((tmp_path / "checkpoint-6/training_args.json").read_text())["save_steps"] == 2
    again = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "checkpoint-8")
    assert same(learned(one), learned(again))
    trainer(tmp_path, save_strategy="steps", save_steps=2).train(resume_from_checkpoint=True)


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path, **changes)
    whole.train()
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_st')
    resumed = trainer(tmp_path, **changes)
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume"):
        trainer(tmp_path / "empty").train(resume_from_checkpoint=True)
    other = ArrCocTrainer(
        tiny.dual(), arguments(tmp_path), dual_collate, pictures(30), adapter=ArrCocConfig(width=8)
    )
    with pytest.raises(ValueError, match="another config"):
        other.train(resume_from_checkpoint=True)


def test_the_best_state_comes_back_at_the_end(tmp_path) -> None:
    best = {"load_best_model_at_end": True, "metric_for_best_model": "steps_left", "greater_is_better": True}
    one = trainer(
        tmp_path,
        eval_dataset=pictures(4, seed=9),
        compute_metrics=lambda _: {"steps_left": -abs(one.state.global_step - 4)},
        **{**best, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    )
    one.train()
    assert one.state.best_model_checkpoint.endswith("checkpoint-4")
    saved = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "checkpoint-4")
    assert int(one.attached.learner.step) == 16
    assert same(learned(one), learned(saved))


def test_ctrl_c_saves_says_so_and_the_run_goes_on_from_there(tmp_path, caplog) -> None:
    whole = trainer(tmp_path / "whole")
    whole.train()
    handler = signal.getsignal(signal.SIGINT)
    press = Crash(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    one = trainer(tmp_path / "cut", callbacks=[press])
    with pytest.raises(KeyboardInterrupt, match="after step 5"):
        one.train()
    assert "resume_from_checkpoint=True" in caplog.text
    assert signal.getsignal(signal.SIGINT) is handler
    assert [p.name for p in (tmp_path / "cut").glob("*")] == ["checkpoint-5"]
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))


def test_a_second_ctrl_c_stops_at_once(tmp_path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="at once"):
        trainer(tmp_path, callbacks=[Crash(4, twice)]).train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_autocast_is_for_the_model_alone(tmp_path) -> None:
    one = trainer(tmp_path, bf16=True, train_sampling_strategy="sequential")
    assert one.train().training_loss > 0
    by_hand = attach(tiny.dual(), SMALL)
    for start in range(0, 30, 4):
        batch = dual_collate(pictures(30)[start : start + 4])
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16):
            seen = by_hand.perceive(**batch)
        by_hand.learner.learn(seen.percept, [seen.keys[int(i)] for i in labels])  # outside
    assert same(learned(one), learned(by_hand))
    batch.pop("context_ids")
    percept = by_hand.perceive(**batch).percept
    alone = by_hand.learner.answer(percept).values
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(by_hand.learner.answer(percept).values, alone)
    assert one.predict(pictures(4)).predictions.dtype == "float32"


def test_mixed_precision_of_the_launcher_is_that_of_the_arguments_and_statistics_stay_wide(
    tmp_path, monkeypatch
) -> None:
    said = trainer(tmp_path, bf16=True)
    said.train()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # accelerate launch --mixed_precision bf16
    launched, wide = trainer(tmp_path), attach(tiny.dual(), SMALL)
    launched.train()
    assert launched.accelerator.mixed_precision == "bf16"
    assert same(learned(said), learned(launched))
    assert {k: t.dtype for k, t in learned(launched).items()} == {
        k: t.dtype for k, t in learned(wide).items()
    }
    assert learned(launched)["readout.weight"].dtype == torch.float64


def test_workers_read_the_same_and_a_run_with_them_is_resumed(tmp_path) -> None:
    changes = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 5}
    alone = trainer(tmp_path / "alone", **changes)
    alone.train()
    changes |= {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}
    whole, resumed = (trainer(tmp_path / "workers", **changes) for _ in range(2))
    whole.train()
    assert same(learned(alone), learned(whole))
    resumed.train(str(tmp_path / "workers" / "checkpoint-10"))  # in the second epoch
    assert same(learned(whole), learned(resumed))


def test_no_tensor_of_the_backbone_wants_a_gradient_and_all_is_given_back(tmp_path) -> None:
    model, asked = tiny.dual(), []
    before = {k: t.clone() for k, t in model.state_dict().items()}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            asked.append(any(p.requires_grad for p in model.parameters()))

    config = model.config.to_json_string()
    one = ArrCocTrainer(
        model, arguments(tmp_path), dual_collate, pictures(12), adapter=SMALL, callbacks=[Watch()]
    )
    one.train()
    assert asked == [False] * 3
    assert all(p.requires_grad for p in model.parameters())
    assert same(before, model.state_dict())
    assert model.config.to_json_string() == config


def test_samples_that_accumulate_nothing_are_steps_of_their_own(tmp_path) -> None:
    plain = trainer(tmp_path, train_sampling_strategy="sequential")
    told = plain.train()
    gathered = trainer(tmp_path, train_sampling_strategy="sequential", gradient_accumulation_steps=3)
    assert gathered.train().training_loss == pytest.approx(told.training_loss, rel=1e-12)
    assert same(learned(plain), learned(gathered))
    assert (plain.state.global_step, gathered.state.global_step) == (8, 3)


def test_a_stream_is_passed_once_and_columns_and_workers_are_the_trainers(tmp_path) -> None:
    flow = Flow(30)
    one = trainer(tmp_path, data=flow, max_steps=10**9)
    told = one.train()
    assert flow.given == list(range(30))
    assert (one.state.global_step, int(one.attached.learner.step)) == (8, 30)
    assert told.metrics["train_accuracy"] > 0.2
    whole = trainer(tmp_path, train_sampling_strategy="sequential")
    whole.train()
    assert same(learned(whole), learned(one))
    thirds = trainer(tmp_path, data=Flow(30), max_steps=100, gradient_accumulation_steps=3)
    thirds.train()
    assert (thirds.state.global_step, int(thirds.attached.learner.step)) == (3, 30)
    rows = [{**s, "pixel_values": s["pixel_values"].numpy(), "source": "somewhere"} for s in pictures(30)]
    table = datasets.Dataset.from_list(rows)
    tabled = trainer(tmp_path, data=table, train_sampling_strategy="sequential", dataloader_num_workers=2)
    tabled.train()
    assert same(learned(whole), learned(tabled))
    chosen = tabled._signature_columns
    assert {"pixel_values", "context_ids", "labels"} <= set(chosen)
    assert "source" not in chosen


def test_of_several_adapters_the_plastic_ones_learn_and_all_are_resumed(tmp_path) -> None:
    def pair() -> ArrCocTrainer:
        attached = attach(tiny.dual(), SMALL)
        attached.add_adapter("second", SMALL)
        attached.set_plastic(["second"])
        args = arguments(tmp_path, save_strategy="steps", save_steps=3)
        return ArrCocTrainer(attached, args, dual_collate, pictures(30))

    alone, two = trainer(tmp_path / "alone"), pair()
    told = alone.train()
    assert two.train().training_loss == told.training_loss  # the one that learns is the one that is told of
    assert logged(two, "classes") == logged(alone, "classes")
    second = state.tensors(two.attached.adapter("second"))
    assert same(second, learned(alone))
    assert int(two.attached.learner.step) == 0
    resumed = pair()
    resumed.train(str(tmp_path / "checkpoint-3"))
    assert same(state.tensors(resumed.attached.adapter("second")), second)
    resumed.attached.set_plastic([])
    with pytest.raises(ValueError, match="no adapter is plastic"):
        resumed.train()


def test_callbacks_hear_what_is_logged(tmp_path) -> None:
    heard = []

    class Hear(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs) -> None:
            heard.append(dict(logs))

    one = trainer(tmp_path, callbacks=[Hear()], max_steps=4)
    one.train()
    assert [line["epoch"] for line in heard] == [0.25, 0.5, 0.5]
    assert {"loss", "accuracy", "surprise", "classes"} <= set(heard[0])
    assert "train_loss" in heard[-1]
