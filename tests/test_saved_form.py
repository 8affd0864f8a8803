"""The saved form: what it was made on is checked, and what cannot be is refused before anything changes."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state
from arr_coc.adapters import base, saving

SMALL = ArrCocConfig(width=16, expansion=8)
CONFIG, STATE, BASE = saving.FILES


@pytest.fixture
def saved(tmp_path):
    """A folder with an adapter on the tiny CLIP."""
    attached = attach(tiny.dual(), SMALL)
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]))
    attached.save_pretrained(tmp_path / "adapter")
    attached.detach()
    return tmp_path / "adapter"


def change(folder, **fields) -> None:
    """Write other fields into the config; None takes one out."""
    said = {**json.loads((folder / CONFIG).read_text()), **fields}
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in said.items() if v is not None}))


def change_tensors(folder, file: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write other tensors, with a checksum that fits them."""
    save_file(tensors, folder / file)
    sums = json.loads((folder / CONFIG).read_text())["sha256"]
    change(folder, sha256={**sums, file: saving._checksum(folder / file)})


def refused(folder, words: str, model=None, **options) -> None:
    """Loading says so, and leaves the model as it was."""
    model = tiny.dual() if model is None else model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        ArrCocModel.from_pretrained(model, folder, **options)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# -- the base ------------------------------------------------------------------------------------------------


def test_the_same_base_is_taken_without_a_word(saved) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ArrCocModel.from_pretrained(tiny.dual(), saved).detach()


def test_the_sample_is_of_the_weights_own_values(saved) -> None:
    weight = (
        tiny.dual().visual_projection.weight
    )  # (24, 32): first, last and six evenly between, rounded down
    at = [int(i * (24 * 32 - 1) / 7) for i in range(8)]
    expected = torch.stack([weight[i // 32, i % 32] for i in at])
    assert torch.equal(load_file(saved / BASE)["visual_projection.weight"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_of_the_same_base_is_known_as_such(saved, dtype: torch.dtype) -> None:
    words = rf"made on the same weights in another dtype \(torch.float32, here {dtype}\)"
    refused(saved, words, tiny.dual().to(dtype))
    with pytest.warns(UserWarning, match=words):
        attached = ArrCocModel.from_pretrained(tiny.dual().to(dtype), saved, strict=False)
    assert int(attached.learner.step) == 3
    attached.detach()


def test_half_precisions_of_one_base_are_told_from_two_bases() -> None:
    """Rounded to 11 bits and to 8 they differ by up to a unit in the last of 8 places."""
    half, brain = tiny.dual().half(), tiny.dual().bfloat16()
    made_on, values = base.describe(half), base.sample(half)
    assert base.weight_difference(made_on, values, brain).startswith("the same weights in another dtype")
    with torch.no_grad():
        brain.text_projection.weight.mul_(1.05)
    assert base.weight_difference(made_on, values, brain).startswith("other weights: 1 of")


def test_other_weights_are_an_error_or_a_warning(saved) -> None:
    model = tiny.dual()
    with torch.no_grad():  # the smallest change of one value that is sampled
        weight = model.text_projection.weight.view(-1)
        weight[-1] = torch.nextafter(weight[-1], torch.tensor(9.0))
    refused(saved, r"other weights: 1 of \d+ tensors differ, the first text_projection.weight", model)
    with pytest.warns(UserWarning, match="other weights"):
        ArrCocModel.from_pretrained(model, saved, strict=False).detach()


@pytest.mark.parametrize("strict", [True, False])
def test_another_structure_is_always_an_error_that_names_what_differs(saved, strict: bool) -> None:
    refused(
        saved, r"CLIPModel \(clip\), and this is SiglipModel \(siglip\)", tiny.dual("siglip"), strict=strict
    )
    deeper = CLIPConfig(
        text_config={**tiny.TEXT, "vocab_size": 60},
        vision_config={**tiny.VISION, "num_hidden_layers": 5},
        projection_dim=24,
    )
    words = "vision_config.num_hidden_layers 4, here 5; text_config.vocab_size 50, here 60"
    refused(saved, words, CLIPModel(deeper).eval(), strict=strict)


def test_a_lora_that_was_not_there_is_another_base_and_one_at_rest_is_not(saved) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(tiny.dual(), peft.LoraConfig(target_modules=["q_proj"]))
    made_on, values = base.describe(tiny.dual()), load_file(saved / BASE)
    assert base.structural_difference(made_on, wrapped) == ""
    told = base.weight_difference(made_on, values, wrapped)
    assert "on one side only" in told
    assert "lora" in told
    assert base.weight_difference(made_on, values, wrapped.unload()) == ""


def test_where_a_base_lies_on_disk_is_not_told(tmp_path) -> None:
    tiny.dual().save_pretrained(tmp_path / "mine")
    model = CLIPModel.from_pretrained(tmp_path / "mine")
    assert base.describe(model).name == "mine"
    model.config._name_or_path = "openai/clip-vit-base-patch32"
    assert base.describe(model).name == "openai/clip-vit-base-patch32"


# -- fields and versions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"format": saving.FORMAT + 1, "arr_coc_version": "9.1"},
            rf"format {saving.FORMAT + 1}, written by arr-coc 9\.1.*newer release is needed",
        ),
        ({"format": 4}, "format 4, written by .*load it with that release"),
        ({"format": 3}, "format 3, written by .*load it with that release"),
        ({"format": 2}, "format 2, written by .*load it with that release"),
        ({"format": None}, "format 1, written by .*load it with that release"),
        ({"lerner": {}}, "unknown field 'lerner'; the nearest known is 'learner'"),
        ({"learner": None}, "damaged: KeyError"),
        ({"learner": []}, "damaged: learner is"),
        ({"base": {"architecture": "CLIPModel"}}, "base model is damaged"),
        ({"active": ["other"]}, "there is no adapter 'other'"),
        ({"adapters": []}, "damaged"),
        ({"adapters": ["default", "../up"]}, "'../up'"),
        ({"adapters": ["default", "there"]}, "holds no arr_coc_config.json"),
        ({"sha256": {}}, "damaged"),
    ],
)
def test_a_config_that_cannot_be_is_refused(saved, fields: dict, words: str) -> None:
    change(saved, **fields)
    refused(saved, words)


def test_fields_of_the_adapter_are_checked_by_name_and_version(saved) -> None:
    said = json.loads((saved / CONFIG).read_text())["adapter"]
    change(saved, adapter={**said, "widht": 3})
    refused(saved, "unknown field 'widht' in the config; the nearest is 'width'")
    change(saved, adapter={**said, "config_version": 99})
    refused(saved, "this release reads")
    change(saved, adapter={**said, "rule": "hebian"})
    refused(saved, "did you mean 'hebbian'")


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, reads="top"), replace(SMALL, predict_gain=1.0)])
@pytest.mark.parametrize("make", [tiny.dual, tiny.generative])
@pytest.mark.parametrize("huge", [{"width": 10**12}, {"expansion": 10**12}, {"predict_radius": 10**12}])
def test_a_size_that_the_state_has_not_is_refused_before_anything_is_allocated(
    config, make, huge, tmp_path, monkeypatch
) -> None:
    """It was the allocator's RuntimeError, or a TypeError about a long long."""
    attached = attach(make(), config)
    folder = attached.save_pretrained(tmp_path / "adapter")
    attached.detach()
    ArrCocModel.from_pretrained(make(), folder).detach()
    said = json.loads((folder / CONFIG).read_text())["adapter"]
    change(folder, adapter={**said, **huge})
    (name,) = huge
    unused = {"expansion": config.reads == "top", "predict_radius": config.predict_gain is None}
    if unused.get(name, False):  # then it has no size
        ArrCocModel.from_pretrained(make(), folder).detach()
        return

    def made(*_, **__) -> None:
        raise AssertionError("a learner was made")

    monkeypatch.setattr("arr_coc.adapters.adapter_set.Learner", made)
    refused(folder, f"{name}=1000000000000, which needs tensors of", make())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"further": 1}, "more than is known: further"),
        ({"classes": ["1", "1"]}, "none of them twice"),
        ({"classes": [1, 2]}, "texts are needed"),
        ({"next_action": -1}, "next action is -1"),
        ({"pending": [{"action": 3, "groups": []}], "next_action": 2}, "next action is 2"),
    ],
)
def test_what_is_said_of_a_state_is_checked_too(saved, changes: dict, words: str) -> None:
    """Unknown entries were passed over, and two rows of one class were loaded as they stood."""
    said = json.loads((saved / CONFIG).read_text())["learner"]
    change(saved, learner={**said, **changes})
    refused(saved, words)


def test_answers_that_are_no_tokens_are_refused_when_they_are_loaded(tmp_path) -> None:
    """They were an error about `int` in the middle of the next forward pass."""
    attached = attach(tiny.generative(), SMALL)
    attached.learn(**tiny.answered(tiny.generative_inputs(), torch.tensor([[7, 2], [8, 2]])))
    folder = attached.save_pretrained(tmp_path / "words")
    said = json.loads((folder / CONFIG).read_text())["learner"]
    for wrong in ("cat", "60", "-1"):
        change(folder, learner={**said, "classes": [wrong, *said["classes"][1:]]})
        refused(folder, f"'{wrong}'.* are no token ids, 0 to 59", tiny.generative())
    change(folder, learner=said)
    ArrCocModel.from_pretrained(tiny.generative(), folder).detach()
    attached.detach()


# -- tensors -------------------------------------------------------------------------------------------------

_WRONG = {
    "missing": (lambda t: t.pop("readout.cross"), "lacks readout.cross"),
    "extra": (lambda t: t.update(readuot=torch.zeros(1)), "unexpected tensor 'readuot'"),
    "nan": (lambda t: t["readout.weight"][0].fill_(torch.nan), "readout.weight holds NaN"),
    "infinite": (lambda t: t["scenes.gram"][0].fill_(torch.inf), "scenes.gram holds NaN or infinity"),
    "shape": (
        lambda t: t.update(relevance_weight=torch.zeros(3, 4)),
        r"relevance_weight is .* shape \(3, 4\)",
    ),
    "step": (lambda t: t["step"].fill_(-5), "step is -5"),
    "dtype": (lambda t: t.update({"readout.cross": t["readout.cross"].float()}), "is torch.float32"),
}


@pytest.mark.parametrize("kind", _WRONG)
def test_tensors_that_do_not_fit_are_refused(saved, kind: str) -> None:
    spoil, words = _WRONG[kind]
    tensors = load_file(saved / STATE)
    spoil(tensors)
    change_tensors(saved, STATE, tensors)
    refused(saved, words)


@pytest.mark.parametrize("file", saving.FILES)
def test_a_missing_file_is_named(saved, file: str) -> None:
    (saved / file).unlink()
    refused(saved, f"holds no {file}")


def test_an_adapter_for_other_sites_does_not_load_into_a_set(saved) -> None:
    attached = attach(tiny.dual(), replace(SMALL, sites=(0,)))
    before = state.tensors(attached.learner)
    with pytest.raises(ValueError, match=r"reads the sites \(2,\).* are \(0,\)"):
        attached.load_adapter(saved, "more")
    assert attached.adapters == ["default"]
    assert all(torch.equal(before[k], v) for k, v in state.tensors(attached.learner).items())
    attached.detach()


# -- folders -------------------------------------------------------------------------------------------------


def test_saving_again_keeps_what_is_not_its_own_and_drops_adapters_that_are_gone(tmp_path) -> None:
    attached = attach(tiny.dual(), SMALL)
    attached.add_adapter("b")
    attached.save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine too")
    attached.delete_adapter("b")
    attached.save_pretrained(tmp_path / "a")
    left = {p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file()}
    assert left == {*saving.FILES, "README.md", "notes.txt", "b/notes.txt"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    attached.detach()


def test_a_save_that_fails_leaves_the_old_one(tmp_path, monkeypatch) -> None:
    attached = attach(tiny.dual(), SMALL)
    attached.save_pretrained(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]))
    with pytest.raises(FileNotFoundError, match="no PNG"):
        attached.save_pretrained(tmp_path / "a", picture=tmp_path / "none.png")

    def full(*_) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(saving.card, "write", full)
    with pytest.raises(OSError, match="no space"):
        attached.save_pretrained(tmp_path / "a")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        attached.save_pretrained(tmp_path / "file")
    attached.detach()


def test_a_card_without_a_repo_name_or_with_wrong_metrics(tmp_path) -> None:
    attached = attach(tiny.dual(), SMALL)
    folder = attached.save_pretrained(tmp_path / "a", metrics={"accuracy": 0.5})
    text = (folder / "README.md").read_text()
    assert "| accuracy | 0.5 |" in text
    assert "base_model" not in text
    with pytest.raises(TypeError, match="EvalResult"):
        attached.save_pretrained(tmp_path / "b", metrics=["accuracy"])
    assert not (tmp_path / "b").exists()
    attached.detach()
