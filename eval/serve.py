"""`arr-coc serve`: a page on this machine alone, where a person asks, marks and judges, and the model learns.

Gradio is an extra: pip install "arr-coc[serve]". It listens on loopback, sends nothing anywhere, keeps
uploads in a temporary folder that goes with it, and writes what was learned only to the folder that was
named.
"""

import contextlib
import functools
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from arr_coc.adapters import pretrained
from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.eval.desk import MOST_PIXELS, Desk, Said, opened
from arr_coc.eval.overlay import TOP, colour_bar
from arr_coc.eval.seen import SIDE

HOST = "127.0.0.1"
MOST_BYTES = 20_000_000  # of an upload
WAITING = 32  # questions and lessons in the queue; further ones are told to come again
FORGOTTEN = 3600  # seconds after which an idle person's question is no longer kept


def _gradio() -> Any:
    """gradio, told to keep quiet before it is imported.

    Raises:
        ImportError: where it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ImportError('serve needs gradio: pip install "arr-coc[serve]"') from error
    return gradio


def check_installed() -> None:
    """Raises ImportError, before a model is loaded, where gradio is missing."""
    _gradio()


def page(desk: Desk) -> Any:
    """The page around a desk, a `gradio.Blocks`; it is not launched."""
    gr = _gradio()

    def refused(message: str) -> tuple[Any, ...]:
        """What is wrong, in a line and on top of the page, which stays as it was."""
        gr.Warning(message)
        return (*[gr.skip()] * 5, message)

    def shown(work: Callable[[], Said], before: Said | None = None) -> tuple[Any, ...]:
        """What a call leaves on the page: state, map now, map before, answer, words, a line about it."""
        try:
            said = work()
        except (ValueError, TypeError) as error:
            return refused(str(error))
        then = None if before is None else before.seen.picture()
        words = gr.Dropdown([("all of it", -1), *((w, i) for i, w in enumerate(said.seen.words))], value=-1)
        return said, said.seen.picture(), then, said.answer, words, f"lessons so far: {desk.lessons}"

    def taught(said: Said | None, lesson: Callable[[Said], Said]) -> tuple[Any, ...]:
        return refused("ask something first") if said is None else shown(lambda: lesson(said), said)

    def ask(path: str | None, text: str, candidates: str = "") -> tuple[Any, ...]:
        return shown(lambda: desk.ask(None if path is None else opened(path), text, candidates))

    def tell(said: Said | None, answer: str) -> tuple[Any, ...]:
        return taught(said, lambda said: desk.tell(said, answer))

    def point(said: Said | None, place: gr.SelectData) -> tuple[Any, ...]:  # type: ignore[name-defined]
        def lesson(said: Said) -> Said:
            sides = said.seen.picture().size
            x, y = ((float(v) + 0.5) / side for v, side in zip(place.index, sides, strict=True))
            return desk.point(said, x, y)

        return taught(said, lesson)

    def of_word(said: Said | None, word: int) -> Any:
        return gr.skip() if said is None else said.seen.picture(None if word < 0 else word)

    def save() -> str:
        try:
            return f"written to {desk.save()}"
        except (ValueError, OSError) as error:
            gr.Warning(str(error))
            return str(error)

    shown_only = {"interactive": False, "show_label": False, "buttons": [], "height": SIDE}
    with gr.Blocks(title="arr-coc", analytics_enabled=False) as blocks:
        gr.Markdown(
            "### Ask, point, judge\nThe model itself stays as it is; the adapter beside it learns from every "
            "lesson at once."
        )
        state = gr.State(None, time_to_live=FORGOTTEN)
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    label=f"a picture, up to {MOST_PIXELS // 1_000_000} million pixels",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=SIDE,
                    elem_id="picture",
                )
                text = gr.Textbox(label="what is asked for", max_lines=3, elem_id="text")
                options = gr.Textbox(
                    label="candidates, one a line", lines=3, visible=desk.chooses, elem_id="candidates"
                )
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                line = gr.Markdown(elem_id="line")
                keep = gr.Button("Save what was learned", visible=desk.target is not None, elem_id="save")
                gr.Markdown("**Where it looked before the lesson**")
                before = gr.Image(**shown_only)
            with gr.Column():
                gr.Markdown("**Where it looks** (click where it should)")
                relevance = gr.Image(elem_id="relevance", **shown_only)
                gr.Image(colour_bar(SIDE), **shown_only | {"height": 24})
                gr.Markdown(f"0 to {TOP:g} times an even spread")
                word = gr.Dropdown([("all of it", -1)], value=-1, label="for the word", elem_id="word")
                answer = gr.Textbox(label="its answer", interactive=False, elem_id="answer")
                with gr.Row():
                    right = gr.Button("Right", elem_id="right")
                    wrong = gr.Button("Wrong", elem_id="wrong")
                with gr.Row():
                    correction = gr.Textbox(label="the right answer", max_lines=1, elem_id="correction")
                    teach = gr.Button("Teach", elem_id="teach")
        left = [state, relevance, before, answer, word, line]
        button.click(ask, [picture, text, options], left, api_name="ask")
        for verdict, is_right in ((right, True), (wrong, False)):
            judge = functools.partial(_judge, desk, is_right)
            verdict.click(functools.partial(taught, lesson=judge), state, left, api_name=False)
        teach.click(tell, [state, correction], left, api_name=False)
        relevance.select(point, state, left, api_name=False)
        word.input(of_word, [state, word], relevance, api_name=False)
        keep.click(save, None, line, api_name=False)
    blocks.queue(max_size=WAITING, default_concurrency_limit=4)
    return blocks


def _judge(desk: Desk, right: bool, said: Said) -> Said:
    return desk.judge(said, right)


def desk_for(
    model: str = "dual", hub: bool = False, adapter: Path | None = None, save: Path | None = None
) -> Desk:
    """A desk with a model by name (see `pretrained.load`), going on from an adapter where one is given.

    Raises:
        FileNotFoundError, ValueError: for what is not there.
    """
    if save is not None:
        save = save.expanduser().absolute()
        if save.is_file():
            raise ValueError(f"{save} is a file; a folder is needed")
        if not save.parent.is_dir():
            raise FileNotFoundError(f"there is no folder {save.parent} to make {save.name} in")
    bare, processor = pretrained.load(model, hub)
    if adapter is None:
        return Desk(attach(bare, None, processor), save)
    return Desk(ArrCocModel.from_pretrained(bare, adapter, processor), save)


@contextlib.contextmanager
def serving(desk: Desk, port: int | None = None) -> Iterator[str]:
    """The page, up while the block lasts; gives its address.

    Args:
        port: None: the first free one from 7860.

    Raises:
        ValueError: for a port that is taken, or none.
    """
    if port is not None:
        _free(port)
    with tempfile.TemporaryDirectory(prefix="arr-coc-serve-") as uploads:
        kept, os.environ["GRADIO_TEMP_DIR"] = os.environ.get("GRADIO_TEMP_DIR"), uploads
        try:
            gr = _gradio()
            blocks = page(desk)
            theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
            _, address, _ = blocks.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                show_error=True,
                max_file_size=MOST_BYTES,
                state_session_capacity=64,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                footer_links=[],
                theme=theme,
            )
            try:
                yield address
            finally:
                blocks.close(verbose=False)
        finally:
            if kept is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = kept


def _free(port: int) -> None:
    if not 1 <= port <= 65535:
        raise ValueError(f"port={port}: 1 to 65535 are possible")
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} is taken, or not ours to take ({error.strerror})") from error
