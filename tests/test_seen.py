"""What is shown is what the model finds relevant: pictures by exact pixels, and a page that is operated."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from arr_coc import ArrCocConfig, attach
from arr_coc.adapters import embedded
from arr_coc.eval.cli import app
from arr_coc.eval.overlay import data_uri, fitted, heat, overlay
from arr_coc.eval.seen import Beside, Seen, as_shown, see
from arr_coc.eval.seen_page import compared
from browser import opened


def tiny() -> Seen:
    """A 2 x 2 grid, two words; the first looks at one patch alone."""
    image = Image.new("RGB", (4, 4), (200, 100, 0))
    first = np.array([[1.0, 0.0], [0.0, 0.0]])
    second = np.array([[0.1, 0.2], [0.3, 0.4]])
    whole = np.array([[0.25, 0.25], [0.1, 0.4]])
    beside = [Beside("even", np.full((2, 2), 0.25), "chance")]
    return Seen(
        image,
        "red <b>hat</b>",
        "",
        ["red", "hat"],
        np.stack([first, second]),
        whole,
        np.array([3, 0, 1, 2]),
        beside,
    )


def test_a_picture_is_the_image_under_the_colour_scale_pixel_by_pixel() -> None:
    shown = np.asarray(tiny().picture(0, side=4))
    # 4 times an even spread is the top of the scale, 0 its bottom; 0.6 of the colour over 0.4 of the image
    top, bottom = heat(np.array([[4.0, 0.0, 0.0, 0.0]]) / 4)[0, :2]
    for corner, colour in (((0, 0), top), ((3, 3), bottom)):
        expected = np.round(0.4 * np.array([200, 100, 0]) + 0.6 * colour)
        assert shown[corner].tolist() == expected.tolist()
    assert (shown[:2, :2] == shown[0, 0]).all()
    assert (shown[2:] == shown[3, 3]).all()


def test_kept_patches_are_shown_and_the_others_go_dark() -> None:
    shown = np.asarray(tiny().picture(keep=2, side=4))
    assert (shown[2:, 2:] == (200, 100, 0)).all()  # 3, then 0: the order that was given
    assert (shown[:2, :2] == (200, 100, 0)).all()
    assert (shown[:2, 2:] == (32, 32, 36)).all()
    assert (np.asarray(tiny().picture(1, keep=1, side=4))[2:, 2:] == (200, 100, 0)).all()
    for wrong in ({"keep": 0}, {"keep": 5}, {"word": 2}, {"word": -1}):
        with pytest.raises(ValueError, match=r"there are 2|1 to 4"):
            tiny().picture(**wrong)


def test_pictures_have_the_shape_of_the_grid() -> None:
    assert fitted((2, 4), 100) == (100, 50)
    assert overlay(Image.new("RGB", (9, 9)), np.full((2, 4), 1 / 8), side=100).size == (100, 50)


def test_the_image_is_shown_as_the_model_saw_it() -> None:
    _, processor = embedded.load("dual")
    wide = Image.new("RGB", (200, 100), (10, 250, 30))
    pixels = processor(images=[wide], return_tensors="pt")["pixel_values"]
    shown = as_shown(wide, pixels, processor)
    assert shown.size == (96, 96)
    assert abs(np.asarray(shown).astype(int) - (10, 250, 30)).max() <= 1
    assert as_shown(wide, pixels.flatten(1), processor).size == (200, 100)


@pytest.fixture(scope="module")
def dual():
    model, processor = embedded.load("dual")
    return attach(model, ArrCocConfig(), processor)


def scene() -> Image.Image:
    image = Image.new("RGB", (96, 96), (230, 230, 230))
    image.paste((210, 20, 20), (8, 8, 40, 40))
    image.paste((20, 20, 210), (56, 56, 88, 88))
    return image


def test_a_word_s_map_is_the_relevance_with_that_word_as_context(dual) -> None:
    seen = see(dual, scene(), "red and blue")
    assert seen.words == ["red", "and", "blue"]
    assert seen.maps.shape == (3, 12, 12)
    processor = dual.processor
    one = processor(text=["red"], return_tensors="pt")
    said = processor(text=["red and blue"], images=[scene()], return_tensors="pt")
    alone = dual(**said, context_ids=one["input_ids"]).relevance[0].double().numpy()
    np.testing.assert_allclose(seen.maps[0].ravel(), alone, atol=1e-6)
    np.testing.assert_allclose(seen.maps.sum((1, 2)), 1, atol=1e-5)
    red, blue = seen.maps[0], seen.maps[2]
    assert red[:6, :6].sum() > 0.6 > 0.3 > blue[:6, :6].sum()
    assert seen.kept[0] == seen.whole.argmax()
    assert int(dual.learner.step) == 0


def test_a_generative_models_answer_has_a_map_for_each_token() -> None:
    model, processor = embedded.load("generative")
    attached = attach(model, ArrCocConfig(), processor)
    seen = see(attached, scene(), "what colour is the rectangle?", max_new_tokens=4)
    assert seen.words[-1] == "(end)"
    assert " ".join(seen.words[:-1]) == seen.answer
    assert seen.maps.shape == (len(seen.words), 12, 12)
    np.testing.assert_allclose(seen.whole, seen.maps.mean(0))
    asked = "USER: <image>\nwhat colour is the rectangle? ASSISTANT:"
    prompt = processor(text=[asked], images=[scene()], return_tensors="pt")
    first = attached(**prompt).relevance[0].double().numpy()
    np.testing.assert_allclose(seen.maps[0].ravel(), first, atol=1e-5)


def test_nothing_asked_and_no_processor_are_said(dual) -> None:
    with pytest.raises(ValueError, match="the text is empty"):
        see(dual, scene(), "  ")
    bare = attach(embedded.load("dual")[0])
    with pytest.raises(ValueError, match="a processor is needed"):
        see(bare, scene(), "red")
    bare.set_active([])
    with pytest.raises(ValueError, match="no adapter is active"):
        see(bare, scene(), "red", dual.processor)


def test_a_picture_of_one_colour_has_finite_maps(dual) -> None:
    seen = see(dual, Image.new("RGB", (50, 70), (9, 9, 9)), "red")
    assert np.isfinite(seen.maps).all()
    np.testing.assert_allclose(seen.maps.sum((1, 2)), 1, atol=1e-5)


def test_the_page_holds_all_it_needs_and_escapes_what_it_is_given() -> None:
    page = tiny().page()
    assert "<b>hat</b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert data_uri(overlay(tiny().image, np.full((2, 2), 0.25))) in page
    frame = tiny()._repr_html_()
    assert frame.startswith("<iframe srcdoc=")
    assert "<script>" not in frame  # escaped: it runs in the frame alone


def drawn(driver) -> np.ndarray:
    """What the canvas shows, (h, w, 4)."""
    uri = driver.execute_script("return document.querySelector('canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_the_page_is_operated_in_a_browser(tmp_path) -> None:
    page = tmp_path / "seen.html"
    page.write_text(tiny().page())
    with opened(page, tmp_path / "profile") as driver:
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.by import By

        words = driver.find_elements(By.CSS_SELECTOR, "[data-word]")
        assert [w.text for w in words] == ["everything", "red", "hat"]
        before = drawn(driver)
        ActionChains(driver).move_to_element(words[1]).perform()
        hovered = drawn(driver)
        assert (hovered[0, 0] != before[0, 0]).any()
        top = heat(np.array([[4.0, 0, 0, 0]]) / 4)[0, 0]
        assert abs(hovered[0, 0, :3].astype(int) - top).max() <= 2  # a canvas keeps premultiplied colours
        words[2].click()
        assert words[2].get_attribute("aria-pressed") == "true"
        slider = driver.find_element(By.ID, "keep")
        driver.execute_script(
            "arguments[0].value = 1; arguments[0].dispatchEvent(new Event('input'))", slider
        )
        assert driver.find_element(By.ID, "kept").text == "1 of 4"
        alpha = drawn(driver)[..., 3]
        assert alpha.tolist() == [[255, 255], [255, 0]]  # the last patch is what "hat" finds most relevant
        assert driver.find_element(By.TAG_NAME, "figcaption").text.startswith("even")


def test_a_picture_on_the_command_line_becomes_a_page_with_scored_maps_beside(tmp_path) -> None:
    scene().save(tmp_path / "scene.png")
    said = ["relevance", str(tmp_path / "scene.png"), "a red rectangle", "--out", str(tmp_path / "page.html")]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    for name in ("arr-coc", "drawn anew", "rollout", "Chefer", "LeGrad", "centre"):
        assert name in page
    gaps = [float(g) for g in re.findall(r"faithfulness gap ([+-][\d.]+)", page)]
    assert len(gaps) == 8
    assert gaps[0] > 0.2  # red is found, so what is dropped last is what matters


def test_comparing_leaves_the_model_and_what_it_has_learned_as_they_were(dual) -> None:
    before = {k: v.clone() for k, v in dual.model.state_dict().items()}
    seen = see(dual, scene(), "blue")
    beside = compared(dual, scene(), "blue", seen)
    assert all(torch.equal(v, before[k]) for k, v in dual.model.state_dict().items())
    np.testing.assert_allclose(see(dual, scene(), "blue").whole, seen.whole, atol=1e-6)
    for one in beside:
        assert one.relevance.sum() == pytest.approx(1, abs=1e-4)
    drawn_anew = beside[-1].relevance
    assert abs(drawn_anew - seen.whole).max() > 0.01


@pytest.mark.parametrize(
    ("image", "text", "words"),
    [
        ("none.png", "red", "no file"),
        ("text.png", "red", "no picture that can be read"),
        ("ok.png", "", "empty"),
    ],
)
def test_what_cannot_be_shown_is_one_line_and_no_page(tmp_path, image: str, text: str, words: str) -> None:
    (tmp_path / "text.png").write_text("no picture")
    scene().save(tmp_path / "ok.png")
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["relevance", str(tmp_path / image), text, "--out", str(out)])
    assert done.exit_code == 2
    assert words in done.output
    assert not out.exists()


def test_learning_moves_what_is_shown(dual) -> None:
    """Of one label at a time: the map shown is the learner's of that moment."""
    before = see(dual, scene(), "dax").maps[0]
    one = dual.processor(text=["square", "hole"], images=[scene()], return_tensors="pt", padding=True)
    cue = dual.processor(text=["dax"], return_tensors="pt")["input_ids"]
    for label in (0, 1, 0, 1):
        dual.learn(**one, labels=torch.tensor([label]), context_ids=cue)
    assert abs(see(dual, scene(), "dax").maps[0] - before).max() > 1e-5
