"""Measure looks at any training, tells what it saw, and changes nothing."""

import numpy as np
import pytest
import torch
from transformers import Trainer

import tiny
from arr_coc.eval import metrics, relevance_metrics
from arr_coc.eval.measure import Measure
from training_data import BODIES, arguments, dual_collate, learned, pictures, same, trainer

HELD = pictures(9, seed=21)
PROBES = {"first": pictures(10, seed=11), "second": pictures(7, seed=12)}


class Wrapped(torch.nn.Module):
    """How somebody fine-tunes a CLIP in their own way."""

    def __init__(self, clip) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixel_values, input_ids, attention_mask=None, labels=None, context_ids=None):
        scores = self.clip(input_ids, pixel_values, attention_mask).logits_per_image
        return {"loss": torch.nn.functional.cross_entropy(scores, labels), "logits": scores}


def plain(out, **changes) -> Trainer:
    return Trainer(
        Wrapped(tiny.dual()),
        arguments(out, remove_unused_columns=False, learning_rate=1e-2, **changes),
        dual_collate,
        pictures(30),
    )


def told(one: Trainer) -> list[dict]:
    return [line for line in one.state.log_history if "probe_accuracy" in line]


def by_hand(model, samples: list) -> float:
    batch = dual_collate(samples)
    labels, _ = batch.pop("labels"), batch.pop("context_ids")
    with torch.no_grad():
        return float((model(**batch).logits_per_image.argmax(1) == labels).double().mean())


def test_any_trainer_is_measured_at_start_on_the_way_and_at_the_end(tmp_path) -> None:
    bare, watched = plain(tmp_path), plain(tmp_path)
    before = [by_hand(bare.model.clip.eval(), samples) for samples in PROBES.values()]
    at_first = by_hand(bare.model.clip, HELD)
    bare.train()
    look = Measure(watched, PROBES, dual_collate, 3, held_out=HELD, batch=4, model=watched.model.clip)
    watched.add_callback(look)
    watched.train()
    assert same(bare.model.state_dict(), watched.model.state_dict())  # it only looked
    lines = told(watched)
    assert [line["step"] for line in lines] == [0, 3, 6, 8]
    after = [by_hand(bare.model.clip.eval(), samples) for samples in PROBES.values()]
    assert [lines[0][f"probe_{n}_accuracy"] for n in PROBES] == pytest.approx(before)
    assert [lines[-1][f"probe_{n}_accuracy"] for n in PROBES] == pytest.approx(after)
    assert lines[-1]["probe_accuracy"] == pytest.approx(np.mean(after))
    rows = [[line[f"probe_{n}_accuracy"] for n in PROBES] for line in lines]
    best = [max(column) for column in zip(*rows, strict=True)]
    assert lines[-1]["probe_forgetting"] == pytest.approx(np.mean(np.subtract(best, after)))
    kept = by_hand(bare.model.clip, HELD) / at_first
    assert lines[-1]["probe_zero_shot_retention"] == pytest.approx(kept)
    assert not any("pointing" in name for line in lines for name in line)


def test_forgetting_so_far_is_the_distance_from_the_best() -> None:
    assert metrics.forgetting_so_far([[0.5, 0.1], [0.9, 0.2], [0.6, 0.8]]) == pytest.approx((0.3 + 0) / 2)
    assert metrics.forgetting_so_far([[0.4]]) == 0
    with pytest.raises(ValueError, match="at least one of each"):
        metrics.forgetting_so_far([])
    with pytest.raises(metrics.Unscored):
        metrics.forgetting_so_far([[float("nan")]])


@pytest.mark.parametrize("body", BODIES)
def test_an_attached_model_points_and_its_training_is_untouched(tmp_path, body: str) -> None:
    collate = BODIES[body][1]
    mask = np.zeros((4, 4), dtype=bool)
    mask[1:3, 2] = True
    masked = [{**s, "mask": mask if k else np.zeros((4, 4))} for k, s in enumerate(PROBES["first"])]
    alone, watched = trainer(tmp_path, body), trainer(tmp_path, body)
    alone.train()
    watched.add_callback(Measure(watched, {"here": masked, "there": PROBES["second"]}, collate, every=4))
    watched.train()
    assert same(learned(alone), learned(watched))
    last = told(watched)[-1]
    batch = collate(masked)
    labels = batch.pop("labels")
    out = alone.attached(**batch)
    relevance = out.relevance[1:].numpy()  # the first one's mask is empty
    expected = np.mean([relevance_metrics.pointing(r, mask.ravel()) for r in relevance])
    assert last["probe_here_pointing"] == pytest.approx(expected)
    assert "probe_there_pointing" not in last
    if body == "dual":
        right = out.logits_per_image.argmax(1) == labels
    else:
        taught = labels[:, 1:] != -100
        right = ((out.logits[:, :-1].argmax(-1) == labels[:, 1:]) | ~taught).all(1)
    assert last["probe_here_accuracy"] == pytest.approx(float(right.double().mean()))


def test_what_was_measured_before_a_resume_still_counts(tmp_path) -> None:
    def one(out) -> Trainer:
        made = trainer(out, save_strategy="steps", save_steps=4)
        made.add_callback(Measure(made, PROBES, dual_collate, every=2, held_out=HELD))
        return made

    whole = one(tmp_path)
    whole.train()
    resumed = one(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert told(resumed) == told(whole)


def test_bad_probes_and_models_are_refused(tmp_path) -> None:
    one = trainer(tmp_path)
    for probes, named, words in [
        ({}, {}, "no probe"),
        ({"a": []}, {}, r"empty probes: \['a'\]"),
        (PROBES, {"every": 0}, "every=0"),
        ({"held_out": HELD}, {"held_out": HELD}, "named 'held_out'"),
    ]:
        with pytest.raises(ValueError, match=words):
            Measure(one, probes, dual_collate, **named)
    other = Trainer(tiny.dual().vision_model, arguments(tmp_path))
    with pytest.raises(TypeError, match="dual encoder"):
        Measure(other, PROBES, dual_collate)
    wrong = [{**s, "mask": np.ones((3, 3))} for s in HELD]
    with pytest.raises(ValueError, match="same tokens"):
        Measure(one, {"a": wrong}, dual_collate).score(wrong)
