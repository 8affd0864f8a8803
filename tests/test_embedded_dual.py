"""The built-in dual encoder: loads offline, is small, and keeps what its card claims on fresh scenes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from arr_coc.adapters import embedded
from arr_coc.eval import cards_dual, cards_tower
from arr_coc.training import dual_model, items


@pytest.fixture(scope="module")
def dual():
    return embedded.load("dual")


def test_it_is_a_clip_model_of_the_promised_shape(dual) -> None:
    model, processor = dual
    assert type(model).__name__ == "CLIPModel"
    assert type(processor).__name__ == "CLIPProcessor"
    assert not model.training
    assert (embedded.path("dual") / "model.safetensors").stat().st_size < 15e6
    inputs = processor(images=Image.new("RGB", (60, 96)), text=["red"], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    seen = cards_tower.look(model, processor, [Image.new("RGB", (96, 96))])
    assert seen["tokens"].shape == (1, 144, model.config.projection_dim)


def test_the_stored_weights_are_half_precision() -> None:
    from safetensors import safe_open

    with safe_open(embedded.path("dual") / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118


def test_pixels_are_scaled_as_in_training(dual) -> None:
    pixels = dual[1].image_processor(Image.new("RGB", (96, 96), (0, 255, 51)), return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([-1.0, 1.0, -0.6]), atol=1e-5)


@pytest.mark.parametrize("word", ["dax", "wug", "zorp", "blicket", "qxj"])
def test_an_unseen_word_is_split_not_dropped(dual, word: str) -> None:
    words = dual[1].tokenizer
    pieces = words(word)["input_ids"][1:-1]
    assert pieces
    assert not {words.unk_token_id, words.pad_token_id} & set(pieces)
    assert words.decode(pieces).replace(" ", "") == word


def test_padding_does_not_change_a_text(dual) -> None:
    model, processor = dual
    alone = cards_tower.say(model, processor, ["red"])
    padded = cards_tower.say(
        model, processor, ["red", "the purple triangle in the bottom left corner of the scene"]
    )
    assert torch.allclose(alone[0], padded[0], atol=1e-5)


def test_model_output_agrees_with_the_towers_read_by_hand(dual) -> None:
    model, processor = dual
    image = items.emoji("noto").images[500]
    picture = cards_dual.teachers.on_background(image)
    inputs = processor(images=picture, text=["a dog", "red"], return_tensors="pt", padding=True)
    with torch.no_grad():
        own = model(**inputs).logits_per_image
    seen = F.normalize(cards_tower.look(model, processor, [picture])["embed"].clone(), dim=1)
    by_hand = model.logit_scale.detach().exp() * seen @ cards_tower.say(model, processor, ["a dog", "red"]).T
    assert torch.allclose(own, by_hand, atol=1e-4)


def test_errors_name_what_is_possible(monkeypatch, tmp_path) -> None:
    with pytest.raises(ValueError, match="did you mean 'dual'"):
        embedded.load("duel")
    with pytest.raises(ValueError, match="dual, generative"):
        embedded.load("x")
    monkeypatch.setattr(embedded, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"train_dual"):
        embedded.load("dual")


def test_grounding_holds_on_fresh_scenes_and_fails_on_a_random_tower(dual) -> None:
    model, processor = dual
    rows = {r.name: r.score for r in cards_dual.grounding(model, processor, seed=77, n=24)}
    assert rows["6 colour words, garments, 2x2"] > 0.9
    assert rows["place words, garments, 2x2"] > 0.9
    assert rows["names, seen concepts, 2x2"] > 0.75
    assert rows["names, held-out concepts, 2x2"] > 0.4
    blind = {
        r.name: r.score for r in cards_dual.grounding(cards_dual.untrained(model), processor, seed=77, n=24)
    }
    assert max(blind[k] for k in blind if k.endswith("2x2") and "true cell" not in k) < 0.5


def test_ridge_is_the_closed_form() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 3))
    for columns in (5, 120):  # primal and dual form
        wide = rng.normal(size=(60, columns))
        mean, scale, w = cards_tower.ridge(wide, y)
        z = np.c_[(wide - mean) / scale, np.ones(60)]
        residual = [
            np.abs(w - sklearn.Ridge(alpha=10.0**p, fit_intercept=False).fit(z, y).coef_.T).max()
            for p in range(-1, 6)
        ]
        assert min(residual) < 1e-8
    assert x.shape == (60, 5)


def test_within_groups_ranks_only_inside_a_group() -> None:
    scores = np.array([[1.0, 0, 9, 9], [2, 1, 9, 9], [9, 9, 1, 0], [9, 9, 0, 1]])
    hit, chance = cards_dual.within_groups(scores, np.array([0, 0, 1, 1]))
    assert hit == 0.75  # row 1 prefers name 0; the nines stand in the other group
    assert chance == 0.5


def test_tokenizer_of_training_knows_every_character() -> None:
    words = dual_model.tokenizer(["red circle", "a photo of a dog"], vocabulary=1500)
    assert words.unk_token_id not in words("zebra's #7 qua!")["input_ids"][1:-1]
    assert len({words.bos_token_id, words.eos_token_id, words.pad_token_id}) == 3


def test_the_card_says_what_was_held_out_and_what_failed() -> None:
    text = embedded.card("dual")
    for part in ("held-out", "chance", "random tower", "Weaknesses", "Licen", "--seed"):
        assert part in text, part
    config = json.loads((embedded.path("dual") / "config.json").read_text())
    assert config["vision_config"]["patch_size"] == 8
