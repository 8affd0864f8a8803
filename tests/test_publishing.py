"""ArrCocTrainer and the Hub: every hub_strategy sends the adapter's own files, and never a pickle."""

import logging

import pytest
import torch
from transformers.utils import hub as transformers_hub

import tiny
from arr_coc import ArrCocModel
from arr_coc.adapters.saving import FILES
from arr_coc.training.trainer import ArrCocTrainer
from hub_stand_in import Hub, served
from training_data import SMALL, arguments, dual_collate, learned, pictures, same, trainer

OWN = {*FILES, "README.md"}
LIFE = {"trainer_state.json", "training_args.json", "rng_state.safetensors"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback; who writes a pickle fails."""

    def refused(*args, **kwargs) -> None:
        raise AssertionError("a pickle was written")

    monkeypatch.setattr(torch, "save", refused)
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # made anew, for the stand-in
    with served(monkeypatch, tmp_path) as one:
        yield one


def pushing(out, strategy: str, **changes) -> ArrCocTrainer:
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "events").write_text("of somebody else")
    said = {"push_to_hub": True, "hub_model_id": "me/life", "hub_strategy": strategy, "hub_always_push": True}
    return trainer(out, **said, save_strategy="steps", save_steps=4, **changes)


def pulled(folder: str = "", **options) -> dict:
    one = ArrCocModel.from_pretrained(tiny.dual(), "me/life", subfolder=folder, **options)
    return learned(one)


@pytest.mark.parametrize(
    ("strategy", "folders"),
    [
        ("end", []),
        ("every_save", []),
        ("checkpoint", ["last-checkpoint"]),
        ("all_checkpoints", ["checkpoint-4", "checkpoint-8"]),
    ],
)
def test_every_strategy_sends_the_adapters_files(hub: Hub, tmp_path, strategy: str, folders: list) -> None:
    one = pushing(tmp_path / "out", strategy, save_total_limit=1)
    one.train()
    checkpoints = {f"{folder}/{file}" for folder in folders for file in OWN | LIFE}
    if strategy == "end":
        assert hub.files("me/life") == {}  # nothing on the way
    else:
        assert set(hub.files("me/life")) == OWN | checkpoints
        assert same(pulled(), learned(one))
        text = hub.files("me/life")["README.md"].decode()
        assert 'ArrCocModel.from_pretrained(model, "me/life", processor)' in text
    for folder in folders:
        state = hub.files("me/life")[f"{folder}/trainer_state.json"].decode()
        assert f'"global_step": {4 if folder == "checkpoint-4" else 8}' in state
        assert same(pulled(folder), learned(one)) is (folder != "checkpoint-4")
    one.save_model()
    assert set(hub.files("me/life")) == OWN | checkpoints
    assert same(pulled(), learned(one))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_checkpoint_that_was_pushed_is_resumed_from(hub: Hub, tmp_path) -> None:
    whole = pushing(tmp_path / "whole", "all_checkpoints")
    whole.train()
    folder = tmp_path / "cut" / "checkpoint-4"
    for path, data in hub.files("me/life").items():
        if path.startswith("checkpoint-4/"):
            (folder.parent / path).parent.mkdir(parents=True, exist_ok=True)
            (folder.parent / path).write_bytes(data)
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert same(learned(whole), learned(resumed))


def test_the_end_is_pushed_by_hand_to_a_branch_with_its_own_card(hub: Hub, tmp_path) -> None:
    one = pushing(tmp_path / "out", "end", finetune="visual_projection")
    one.train()
    info = one.push_to_hub("done", revision="later", metrics={"accuracy": 0.75})
    assert info.oid == hub.branches["me/life"]["later"]
    assert hub.files("me/life") == {}
    assert set(hub.files("me/life", "later")) == {*OWN, "finetuned.safetensors"}
    assert "| accuracy | 0.75 |" in hub.files("me/life", "later")["README.md"].decode()
    later = one.push_to_hub(blocking=False).result()
    assert later.oid == hub.branches["me/life"]["main"]
    with pytest.raises(TypeError, match="unexpected keyword argument 'tasks'"):
        one.push_to_hub(tasks="vqa")


def test_without_push_to_hub_a_repo_is_named_for_the_folder(hub: Hub, tmp_path) -> None:
    one = trainer(tmp_path / "stream")
    one.push_to_hub()
    assert set(hub.files("me/stream")) == OWN


def test_a_push_that_fails_is_said_and_the_training_goes_on(hub: Hub, tmp_path, caplog, monkeypatch) -> None:
    one = pushing(tmp_path / "out", "every_save")
    del hub.branches["me/life"]
    monkeypatch.setattr(hub, "create", lambda *_: hub.branches.clear())
    with caplog.at_level(logging.WARNING):
        one.train()
    assert "a push to the Hub failed" in caplog.text
    assert one.state.global_step == 8


def test_a_repo_that_cannot_be_made_is_an_error_before_anything_changed(hub: Hub, tmp_path) -> None:
    hub.close()
    model = tiny.dual()
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="me/life")
    with pytest.raises(Exception, match=r"refused|connect"):
        ArrCocTrainer(model, args, dual_collate, pictures(4), adapter=SMALL)
    ArrCocTrainer(model, arguments(tmp_path), dual_collate, pictures(4), adapter=SMALL)
