"""`arr-coc relevance` and `arr-coc serve`: what is relevant, measured, shown and asked."""

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from arr_coc.eval.console import bar, errors, numbers


def relevance(
    image: Annotated[Path | None, typer.Argument(help="a picture, to write its page")] = None,
    text: Annotated[str, typer.Argument(help="what is asked for in the picture")] = "",
    out: Annotated[Path, typer.Option(help="with a picture: the page to write")] = Path("relevance.html"),
    hub: Annotated[bool, typer.Option(help="allow a download of the model by name")] = False,
    adapter: Annotated[
        Path | None, typer.Option(help="with a picture: a folder with what was learned")
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="P1: mosaics; P2: questions; P3: a planted shortcut; further")
    ] = "P1",
    seeds: Annotated[str, typer.Option(help="such as 0-4")] = "0-4",
    images: Annotated[
        int, typer.Option(min=1, help="mosaics a kind and seed, to the nearest whole Latin square")
    ] = 27,
    quick: Annotated[bool, typer.Option(help="3x3 mosaics, two seeds, nine images: about a minute")] = False,
    model: Annotated[str, typer.Option(help="'dual', with a picture 'generative' too, or a folder")] = "dual",
    markdown: Annotated[bool, typer.Option(help="print the tables as Markdown")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="raw records, one row an image")] = None,
) -> None:
    """What is relevant in a picture for a text, as a page; without a picture, how well relevance points at
    what is asked for, beside every baseline, with intervals and costs.

    P1 asks for every cell of mosaics by its text. P2 asks a generative model two questions about a mosaic. P3
    plants a shortcut into small twin models and looks whether a map of them shows it. "further" drops tokens,
    draws weights anew and reads relevance as a probability.
    """
    from arr_coc.eval import relevance_run, seen_page
    from arr_coc.eval.report import check_target, write
    from arr_coc.eval.shown import say

    with errors():
        if image is not None:
            seen_page.page_of(image, text, out, model, hub, adapter)
            typer.echo(f"open {out}")
            return
        target = None if json_out is None else check_target(json_out)
        with bar() as follow:
            asked = relevance_run.Asked(numbers(seeds), images, quick, model, follow)
            found = relevance_run.run(protocol, asked)
        say(found.tables, markdown)
        for line in found.lines:
            typer.echo(f"- {line}" if markdown else line)
        if target is not None:
            write(target, json.dumps(found.raw, indent=2))


def serve(
    model: Annotated[str, typer.Option(help="'dual', 'generative' or a folder")] = "dual",
    hub: Annotated[bool, typer.Option(help="allow a download of the model by name")] = False,
    adapter: Annotated[
        Path | None, typer.Option(help="a folder with what was learned, to go on from")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="a folder to write to when asked; without it nothing is written")
    ] = None,
    port: Annotated[int | None, typer.Option(help="on this machine; the first free one from 7860")] = None,
) -> None:
    """A page on this machine alone: ask about a picture, click where it should look, say what is right.

    Needs gradio: pip install "arr-coc[serve]".
    """
    import threading

    from arr_coc.eval import serve as page

    with errors():
        page.check_installed()
        with page.serving(page.desk_for(model, hub, adapter, save), port) as address:
            typer.echo(f"open {address} (Ctrl-C ends it)")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
