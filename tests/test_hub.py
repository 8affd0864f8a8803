"""The Hub: what is pushed is pulled, by huggingface_hub's own client against a stand-in on loopback."""

import json

import pytest
import torch
import yaml
from huggingface_hub import EvalResult
from PIL import Image

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from hub_stand_in import Hub, served, set_endpoint

SMALL = ArrCocConfig(width=16, expansion=8)
FILES = ("arr_coc_config.json", "arr_coc_model.safetensors", "arr_coc_base.safetensors")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path) as one:
        yield one


def learned(**config) -> ArrCocModel:
    attached = attach(tiny.dual(), ArrCocConfig(width=16, expansion=8, **config))
    for shift in range(3):
        attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]).roll(shift))
    return attached


def same_state(one: ArrCocModel, two: ArrCocModel) -> bool:
    mine, its = state.tensors(one.learner), state.tensors(two.learner)
    return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)


def test_what_is_pushed_is_pulled(hub: Hub) -> None:
    attached, inputs = learned(), tiny.dual_inputs()
    info = attached.push_to_hub("me/adapter", commit_message="first")
    assert info.oid == hub.branches["me/adapter"]["main"]
    assert set(hub.files("me/adapter")) == {*FILES, "README.md"}
    pulled = ArrCocModel.from_pretrained(tiny.dual(), "me/adapter")
    assert same_state(attached, pulled)
    assert torch.equal(attached(**inputs).logits_per_image, pulled(**inputs).logits_per_image)
    # every file is of the commit that the config came from, though another one may come in between
    fetched = [
        call.split("/resolve/")[1] for call in hub.calls if call.startswith("GET") and "/resolve/" in call
    ]
    assert fetched == ["main/arr_coc_config.json", *(f"{info.oid}/{file}" for file in FILES[1:])]
    for one in (attached, pulled):
        one.detach()


def test_a_name_of_ones_own_and_an_endpoint_that_is_given(hub: Hub, monkeypatch) -> None:
    attached = learned()
    set_endpoint(monkeypatch, "http://127.0.0.1:9")  # nobody there
    attached.push_to_hub("mine", endpoint=hub.url)
    attached.detach()
    assert "me/mine" in hub.branches
    pulled = ArrCocModel.from_pretrained(tiny.dual(), "me/mine", endpoint=hub.url)
    assert pulled.learner.classes
    pulled.detach()


def test_branches_commits_and_subfolders(hub: Hub) -> None:
    attached = learned()
    first = attached.push_to_hub("me/adapter", subfolder="runs/a")
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([4, 4, 4]))
    attached.push_to_hub("me/adapter", subfolder="runs/a", revision="later")
    steps = {}
    for revision in ("main", "later", first.oid):
        pulled = ArrCocModel.from_pretrained(tiny.dual(), "me/adapter", subfolder="runs/a", revision=revision)
        steps[revision] = int(pulled.learner.step)
        pulled.detach()
    assert steps == {"main": 9, "later": 12, first.oid: 9}
    attached.detach()


def test_several_adapters_are_pushed_together_and_fetched_by_name(hub: Hub) -> None:
    attached = learned()
    attached.add_adapter("b.2")
    attached.push_to_hub("me/set")
    attached.detach()
    assert {f"b.2/{file}" for file in FILES} < set(hub.files("me/set"))
    hub.calls.clear()
    pulled = ArrCocModel.from_pretrained(tiny.dual(), "me/set", adapters=["b.2"])
    assert pulled.adapters == ["b.2"]
    assert not any(call.endswith("main/arr_coc_model.safetensors") for call in hub.calls)
    pulled.detach()


def test_a_private_repo_needs_its_token(hub: Hub) -> None:
    attached = learned()
    attached.push_to_hub("me/secret", private=True, token=hub.token)
    attached.detach()
    with pytest.raises(FileNotFoundError, match="private one needs a token"):
        ArrCocModel.from_pretrained(tiny.dual(), "me/secret", token=False)
    ArrCocModel.from_pretrained(tiny.dual(), "me/secret", token=hub.token).detach()


def test_the_cache_serves_without_a_network(hub: Hub, tmp_path) -> None:
    attached = learned()
    attached.push_to_hub("me/adapter")
    attached.detach()
    with pytest.raises(FileNotFoundError, match="not in the cache"):
        ArrCocModel.from_pretrained(
            tiny.dual(), "me/adapter", cache_dir=tmp_path / "c", local_files_only=True
        )
    ArrCocModel.from_pretrained(tiny.dual(), "me/adapter", cache_dir=tmp_path / "c").detach()
    hub.calls.clear()
    again = ArrCocModel.from_pretrained(
        tiny.dual(), "me/adapter", cache_dir=tmp_path / "c", local_files_only=True
    )
    again.detach()
    assert hub.calls == []


def test_a_folder_never_touches_the_network(hub: Hub, tmp_path, monkeypatch) -> None:
    attached = learned()
    attached.save_pretrained(tmp_path / "owner" / "adapter")
    attached.detach()
    monkeypatch.chdir(tmp_path)
    ArrCocModel.from_pretrained(tiny.dual(), "owner/adapter").detach()
    assert hub.calls == []


@pytest.mark.parametrize(
    ("repo", "options", "words"),
    [
        ("me/none", {}, "the Hub has no such repo"),
        ("me/other", {}, "holds no arr_coc_config.json"),
        ("me/other", {"revision": "v9"}, "no revision 'v9'"),
        ("/no/such/folder", {}, "no folder, and no repo id"),
        ("./none", {}, "no folder, and no repo id"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, repo: str, options: dict, words: str) -> None:
    hub.create("me/other")
    hub.commit("me/other", "main", {"config.json": b"{}"})
    model = tiny.dual()
    with pytest.raises(FileNotFoundError, match=words):
        ArrCocModel.from_pretrained(model, repo, **options)
    attach(model, SMALL).detach()  # nothing was left behind


@pytest.mark.parametrize("folder", ["..", "../a", "/etc", "a/../../b", "a//b", "C:\\x", "."])
def test_a_subfolder_that_leads_out_is_refused_before_anything_is_asked(hub: Hub, folder: str) -> None:
    attached = learned()
    with pytest.raises(ValueError, match="subfolder"):
        attached.push_to_hub("me/adapter", subfolder=folder)
    attached.detach()
    with pytest.raises(ValueError, match="subfolder"):
        ArrCocModel.from_pretrained(tiny.dual(), "me/adapter", subfolder=folder)
    assert hub.calls == []


def test_a_repo_whose_config_names_a_path_is_refused_before_it_is_followed(hub: Hub) -> None:
    attached = learned()
    attached.push_to_hub("me/adapter")
    attached.detach()
    said = json.loads(hub.files("me/adapter")["arr_coc_config.json"])
    said["adapters"].append("../../other/repo")
    hub.commit("me/adapter", "main", {"arr_coc_config.json": json.dumps(said).encode()})
    hub.calls.clear()
    with pytest.raises(ValueError, match="cannot be called"):
        ArrCocModel.from_pretrained(tiny.dual(), "me/adapter")
    assert [call for call in hub.calls if not call.endswith("arr_coc_config.json")] == []


def test_a_changed_file_of_a_repo_is_refused(hub: Hub) -> None:
    attached = learned()
    attached.push_to_hub("me/adapter")
    attached.detach()
    whole = hub.files("me/adapter")["arr_coc_model.safetensors"]
    hub.commit("me/adapter", "main", {"arr_coc_model.safetensors": whole[:-1] + bytes([whole[-1] ^ 1])})
    with pytest.raises(ValueError, match="checksum"):
        ArrCocModel.from_pretrained(tiny.dual(), "me/adapter")


def test_the_card_says_what_the_hub_asks_and_what_a_person_wants_to_know(hub: Hub) -> None:
    model = tiny.dual()
    model.config._name_or_path = "openai/clip-tiny"
    attached = attach(
        model, ArrCocConfig(width=16, expansion=8, rule="feedback_alignment", rule_options={"mode": "fa"})
    )
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 1]))
    result = EvalResult("image-classification", "me/set", "A set", "accuracy", 0.75, metric_name="Accuracy")
    attached.push_to_hub("me/adapter", metrics=[result], picture=Image.new("RGB", (4, 4), (255, 0, 0)))
    attached.detach()
    files = hub.files("me/adapter")
    _, head, text = files["README.md"].decode().split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["base_model"] == "openai/clip-tiny"
    assert data["library_name"] == "arr-coc"
    assert data["pipeline_tag"] == "zero-shot-image-classification"
    assert "continual-learning" in data["tags"]
    assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75
    for said in (
        "| default | 3 | 2 | feedback_alignment |",
        'ArrCocModel.from_pretrained(model, "me/adapter", processor)',
        "| Accuracy (A set) | 0.75 |",
        "![Relevance](relevance.png)",
        "does not have at hand: update locking, signed errors.",
        '"rule": "feedback_alignment"',
    ):
        assert said in text, said
    assert files["relevance.png"].startswith(b"\x89PNG")
