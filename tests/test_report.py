"""The command line, the pictures and the page."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from typer.testing import CliRunner

from arr_coc.eval import demo, report
from arr_coc.eval.cli import app
from arr_coc.eval.overlay import TOP, centre_prior, colour_bar, data_uri, heat, overlay
from browser import opened

NAMES = {"plugin": "arr-coc", "lora": "LoRA <b>"}


def run(method: str) -> dict:
    return {
        "label": "cued-clutter",
        "method": method,
        "role": "method",
        "seed": 0,
        "order": 0,
        "chance": 0.1,
        "pointing_chance": 0.25,
        "experiences": [["red"], ["<script>"]],
        "settings": {},
        "R": [[0.1, 0.1], [0.5, 0.2], [0.5, 0.6]],
        "C": [[None, None], [0.6, None], [0.6, 0.55]],
        "P": [[0.9, 0.9]] * 3,
        "CP": [[None, None], [0.9, None], [0.9, 0.9]],
        "zero_shot_before": 0.2,
        "zero_shot_after": 0.2,
        "n_learned": 60,
        "n_probe": [50, 50],
        "steps": 6,
        "step_seconds": 0.002,
        "forward_seconds": 0.01,
        "step_cost": 1.2,
        "state_bytes": 10**6,
    }


def a_page() -> str:
    grey = data_uri(Image.new("RGB", (8, 8), (90, 90, 90)))
    look = report.Look("red", "bag", grey, [("before learning", grey, "shirt", False)])
    return report.page("Title", "Lead.", [run("plugin"), run("lora")], NAMES, [look], ["A note."])


def test_heat_is_the_colour_map_at_the_share_of_an_even_spread() -> None:
    even = np.full((2, 2), 0.25)
    expected = np.round(np.array(colormaps["magma"](1 / TOP)[:3]) * 255).astype(np.uint8)
    assert (heat(even) == expected).all()
    peak = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert tuple(heat(peak)[0, 0]) == tuple(np.round(np.array(colormaps["magma"](1.0)[:3]) * 255).astype(int))


def test_an_overlay_is_exact_to_the_pixel_and_frames_the_truth() -> None:
    white, peak = Image.new("RGB", (4, 4), "white"), np.array([[1.0, 0.0], [0.0, 0.0]])
    plain = np.asarray(overlay(white, peak, side=8))
    warm = heat(peak).astype(float)
    for row, column in ((0, 0), (7, 7)):
        expected = np.round(0.4 * 255 + 0.6 * warm[row // 4, column // 4])
        assert (plain[row, column] == expected).all()
    framed = np.asarray(overlay(white, peak, np.array([[False, True], [False, False]]), side=8))
    assert (framed[0, 4:] == 255).all()
    assert (framed[4:] == plain[4:]).all()
    with pytest.raises(ValueError, match="finite"):
        overlay(white, np.full((2, 2), np.nan))
    assert colour_bar(10, 2).size == (10, 2)
    assert abs(centre_prior(12).sum() - 1) < 1e-12


def test_the_page_stands_alone_and_escapes_what_it_is_given() -> None:
    text = a_page()
    assert "LoRA &lt;b&gt;" in text
    assert "<script>" not in text
    for outside in ("http://", "https://", 'src="/'):
        found = (
            text.replace("http://www.w3.org", "")
            .replace("http://purl.org", "")
            .replace("http://creativecommons.org", "")
        )
        assert outside not in found.split("</head>")[1].replace("https://matplotlib.org/", "")


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    target = report.write(tmp_path / "page.html", "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.check_target(tmp_path / "none" / "page.html")
    with pytest.raises(IsADirectoryError):
        report.check_target(tmp_path)


def test_the_page_opens_in_a_browser(tmp_path) -> None:
    page = report.write(tmp_path / "page.html", a_page())
    with opened(page, tmp_path / "profile") as driver:
        assert "What each method reached" in driver.page_source
        assert driver.page_source.count("<tr>") == 3
        for table in driver.find_elements("css selector", ".wide"):  # no column lies out of sight
            assert driver.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", table)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "cued-cluter"], "cued-clutter"),
        (["eval", "cued-clutter", "--methods", "plugn"], "plugin"),
        (["eval", "cued-clutter", "--seeds", "a-b"], "0-4"),
        (["demo", "--out", "/no/such/folder/x.html"], "no folder"),
        (["inspect", "duall"], "did you mean 'dual'"),
        (["card", "triple"], "there are dual, generative"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_two(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_inspect_says_what_is_read() -> None:
    result = CliRunner().invoke(app, ["inspect", "dual"])
    assert result.exit_code == 0
    assert "vision_model.encoder.layers" in result.output


def test_without_peft_the_demo_runs_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["demo", "--scenes", "60", "--out", str(tmp_path / "demo.html")])
    assert result.exit_code == 0, result.output
    assert "LoRA is left out" in result.output
    page = (tmp_path / "demo.html").read_text()
    assert "after learning" in page
    assert "LoRA + AdamW" not in page


@pytest.mark.slow
def test_the_demo_runs_and_writes_its_page(tmp_path) -> None:
    result = CliRunner().invoke(app, ["demo", "--scenes", "60", "--out", str(tmp_path / "demo.html")])
    assert result.exit_code == 0, result.output
    assert "after learning" in Path(tmp_path / "demo.html").read_text()
