"""The page is operated in a real browser: it asks, points and teaches, and survives what is no picture."""

import http.client
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from PIL import Image
from typer.testing import CliRunner

from arr_coc import ArrCocConfig, attach
from arr_coc.adapters import embedded
from arr_coc.eval import serve
from arr_coc.eval.cli import app
from arr_coc.eval.desk import Desk
from arr_coc.training import streams
from browser import opened

pytest.importorskip("gradio")


def wait(condition: Any, seconds: float = 30) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    model, processor = embedded.load("dual")
    attached = attach(model, ArrCocConfig(), processor)
    yield Desk(attached)
    attached.detach()  # gradio goes on holding what its last page was made around


@pytest.fixture(scope="module")
def address(desk: Desk) -> Iterator[str]:
    with serve.serving(desk) as found:
        yield found


def test_it_listens_on_this_machine_alone_and_leaves_no_upload_behind(desk: Desk) -> None:
    with serve.serving(desk) as found:
        where = urlparse(found)
        assert where.hostname == "127.0.0.1"
        uploads = Path(os.environ["GRADIO_TEMP_DIR"])
        assert uploads.is_dir()
        asked = http.client.HTTPConnection("127.0.0.1", where.port, timeout=10)
        asked.request("GET", "/")
        body = asked.getresponse().read().decode()
        assert "fonts.googleapis" not in body
        with socket.socket() as other:  # not on any other address of the machine
            other.settimeout(2)
            assert other.connect_ex(("127.0.0.2", where.port)) != 0
        with pytest.raises(ValueError, match=f"port {where.port} is taken"), serve.serving(desk, where.port):
            pass
    assert not uploads.exists()
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_a_person_asks_points_and_teaches(desk: Desk, address: str, tmp_path: Path) -> None:
    scene = next(iter(streams.load("cued-clutter", seed=0, n_train=12, n_test=12)))["image"]
    scene.save(tmp_path / "scene.png")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    lessons = desk.lessons
    with opened(address, tmp_path / "profile") as page:

        def one(selector: str) -> Any:
            return wait(lambda: page.find_elements("css selector", selector))[0]

        def shown(selector: str) -> str:
            return str(one(selector).get_attribute("value") or one(selector).text)

        def said(what: str) -> None:
            wait(lambda: what in page.find_element("css selector", "body").text)

        one("#ask").click()
        said("there is no picture")
        upload = one("#picture input[type=file]")
        upload.send_keys(str(tmp_path / "scene.png"))
        one("#text textarea").send_keys("red")
        one("#candidates textarea").send_keys("a sandal\na coat")
        wait(lambda: page.find_elements("css selector", "#picture img"))
        one("#ask").click()
        wait(lambda: shown("#answer textarea, #answer input") in ("a sandal", "a coat"))
        picture = one("#relevance img")
        picture.click()
        said(f"lessons so far: {lessons + 1}")
        answer = shown("#answer textarea, #answer input")
        other = {"a sandal": "a coat", "a coat": "a sandal"}[answer]
        one("#wrong").click()
        wait(lambda: shown("#answer textarea, #answer input") == other)
        one("#correction textarea, #correction input").send_keys("a hat")
        one("#teach").click()
        said("none of the candidates")
        assert desk.lessons == lessons + 2


def test_what_is_no_picture_leaves_the_page_up(desk: Desk, address: str, tmp_path: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    lessons = desk.lessons
    client = gradio_client.Client(address, verbose=False)
    with pytest.raises(Exception, match=r"identify|picture|Error"):  # gradio's own reading of the upload
        client.predict(gradio_client.handle_file(tmp_path / "text.png"), "red", "a\nb", api_name="/ask")
    found = client.predict(gradio_client.handle_file(tmp_path / "large.png"), "red", "a\nb", api_name="/ask")
    assert "9000 x 9000" in str(found)
    found = client.predict(gradio_client.handle_file(tmp_path / "tiny.png"), "red", "a\nb", api_name="/ask")
    assert any(part in ("a", "b") for part in found)
    assert desk.lessons == lessons


def test_the_command_says_what_is_wrong_before_it_serves(tmp_path: Path) -> None:
    for arguments, message in (
        (["--model", "duall"], "did you mean 'dual'"),
        (["--save", str(tmp_path / "no" / "kept")], "there is no folder"),
        (["--adapter", str(tmp_path / "none")], "none"),
        (["--port", "70000"], "1 to 65535"),
    ):
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert result.exit_code == 2, arguments
        assert message in result.output
