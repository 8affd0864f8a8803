"""Questions to a generative model in the grid: what is stored says what greedy decoding would say."""

import json

import pytest
import torch

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval import run
from arr_coc.eval.methods_plugin import Plugin
from arr_coc.eval.percepts_words import perceive_words, said
from arr_coc.eval.world_words import held_out_questions, word_world
from arr_coc.training.questions import PROMPT


@pytest.fixture(scope="module")
def generative():
    return embedded.load("generative")


@pytest.fixture(scope="module")
def samples():
    return held_out_questions(12)


@pytest.fixture(scope="module")
def store(generative, samples):
    model, processor = generative
    attached = attach(model, processor=processor)
    try:
        names = list(dict.fromkeys(s["label"] for s in samples))
        return perceive_words(attached, processor, [("held", samples)], names, batch=5, keep_images=True)
    finally:
        attached.detach()


def test_right_is_what_greedy_decoding_gives(generative, samples, store) -> None:
    model, processor = generative
    right = store.right(store.own, torch.arange(len(store)))
    for hit, sample in zip(right.tolist(), samples, strict=True):
        prompt = PROMPT.format(question=sample["context"])
        inputs = processor(images=sample["image"], text=prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            written = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, length:]
        text = processor.tokenizer.decode(written, skip_special_tokens=True)
        wanted = processor.tokenizer(sample["label"])["input_ids"]
        assert bool(hit) == (text == processor.tokenizer.decode(wanted)), (sample["context"], text)


def test_the_grid_sees_how_tokens_match_the_questions_words(generative) -> None:
    model, processor = generative
    world = word_world((model, processor), held=4)
    assert float(world.held.match.std()) > 0
    assert torch.equal(world.held.batch(torch.tensor([1])).percept.own[0], world.held.match[1])


def test_one_wrong_token_makes_an_answer_wrong(store) -> None:
    rows = torch.tensor([3, 1])
    entries, whose = store.entries(rows)
    scores = torch.nn.functional.one_hot(store.key[entries], store.own.shape[1]).float()
    assert store.right(scores, rows).tolist() == [1.0, 1.0]
    scores[(whose == 1).nonzero()[-1]] = 0.0  # its end is not said: token 0 scores as well as any
    assert store.right(scores, rows).tolist() == [1.0, 0.0]
    assert store.right(torch.full_like(scores, -torch.inf), rows).tolist() == [0.0, 0.0]


def test_a_stored_lesson_is_the_lesson_itself(generative, samples, store) -> None:
    model, processor = generative
    config = ArrCocConfig(expansion=16)
    stored = Plugin(store, config)
    stored.observe(store.batch(torch.arange(4)))
    attached = attach(model, config, processor=processor)
    try:
        some = samples[:4]
        asked = [s["image"] for s in some], [s["context"] for s in some], [s["label"] for s in some]
        inputs, labels = said(processor, *asked)
        attached.learn(labels=labels, **inputs)
        assert attached.learner.classes == stored.learner.classes
        live = attached.learner.readout.weight
        assert (
            float((live - stored.learner.readout.weight).abs().max()) < 2e-3 * float(live.abs().max()) + 1e-4
        )
    finally:
        attached.detach()


def test_only_allowed_tokens_are_those_of_the_answers(generative, store) -> None:
    _, processor = generative
    allowed = store.allowed([store.classes[0]])
    wanted = {*processor.tokenizer(store.classes[0])["input_ids"], processor.tokenizer.eos_token_id}
    assert set(allowed.nonzero().flatten().tolist()) == wanted


def test_the_grid_runs_questions_and_goes_on_where_it_stopped(tmp_path) -> None:
    grid = run.Grid("scene-qa", batch=6, n_train=48, n_test=24, lora_train=12, tune_train=12)
    wanted = ["zero-shot", "plugin", "plugin-fixed", "ridge-state", "ranpac", "joint"]
    out = tmp_path / "runs.jsonl"
    found = run.run(grid, wanted, seeds=[1], orders=[0], out=out, held=6)
    assert [r["method"] for r in found] == wanted
    by_name = {r["method"]: r for r in found}
    assert len(by_name["plugin"]["R"]) == 7
    assert by_name["zero-shot"]["R"][0] == by_name["zero-shot"]["R"][-1] == by_name["plugin"]["R"][0]
    assert by_name["plugin"]["zero_shot_before"] == by_name["zero-shot"]["zero_shot_after"]
    lines = out.read_text().splitlines()
    assert run.run(grid, wanted, seeds=[1], orders=[0], out=out, held=6) == [json.loads(x) for x in lines]
    assert out.read_text().splitlines() == lines


@pytest.mark.slow
def test_lora_learns_words_too(tmp_path) -> None:
    grid = run.Grid("scene-qa", batch=8, n_train=48, n_test=24, lora_train=24, tune_train=12)
    found = run.run(grid, ["lora"], seeds=[1], orders=[0], held=4)
    assert found[0]["n_learned"] == 24
    assert found[0]["settings"]["rate"] in (1e-4, 3e-4, 1e-3, 3e-3)


def test_a_method_for_another_kind_of_model_is_refused() -> None:
    with pytest.raises(ValueError, match="generative"):
        run.run(run.Grid("scene-qa"), ["mean-context"])
