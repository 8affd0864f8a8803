"""The command line: `arr-coc demo | eval | rules | relevance | bench | inspect | train | card`."""

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arr_coc.eval.percepts import Progress

app = typer.Typer(
    help="Adapters that let a frozen vision-language model keep learning from a stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@contextmanager
def _errors() -> "Iterator[None]":
    """What a person can mend comes out as one line and exit code 2, not as a traceback."""
    try:
        yield
    except (ValueError, OSError, TypeError, ImportError) as error:
        typer.secho(f"arr-coc: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _bar() -> "Iterator[Progress]":
    """A progress bar that follows calls (what, done, of)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def follow(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of or None)

        yield follow


def _table(rows: list[dict[str, Any]], columns: list[str], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title)
    for place, column in enumerate(columns):
        shown.add_column(column, justify="left" if place == 0 else "right", no_wrap=place == 0)
    for row in rows:
        shown.add_row(*(str(row.get(c, "")) for c in columns))
    console = Console()
    # a table that goes into a file or a pipe is not squeezed into 80 columns
    Console(width=console.width if console.is_terminal else 180).print(shown)


def _results(runs: list[dict[str, Any]], names: dict[str, str] | None = None) -> None:
    """The summary of runs, one table per stream."""
    from arr_coc.eval import table

    rows = table.summary(runs)
    for stream in dict.fromkeys(r["stream"] for r in rows):
        mine = [r for r in rows if r["stream"] == stream]
        columns = {c: key for c, key in table.COLUMNS.items() if any(key in r for r in mine)}
        shown = [
            {"method": (names or {}).get(r["method"], r["method"])}
            | {c: table.cell(r.get(key)) for c, key in columns.items()}
            | {"step x forward": f"{r['step_cost']:.2f}", "state MB": f"{r['state_bytes'] / 1e6:.1f}"}
            | {"samples": r["n_learned"], "runs": r["runs"]}
            for r in mine
        ]
        chance = f"chance {100 * mine[0]['chance']:.0f} %, {mine[0]['n_probe']} test samples"
        _table(
            shown,
            ["method", *columns, "step x forward", "state MB", "samples", "runs"],
            f"{stream} ({chance})",
        )


def _numbers(text: str) -> list[int]:
    """ "0,1,2" or "0-4" as whole numbers."""
    try:
        if "-" in text:
            first, last = (int(t) for t in text.split("-"))
            return list(range(first, last + 1))
        return [int(t) for t in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{text!r} names no whole numbers; possible are '0,1,2' or '0-4'") from error


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="the page to write")] = Path("demo.html"),
    novel: Annotated[bool, typer.Option(help="cue words that the model has never met")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    scenes: Annotated[int, typer.Option(min=60, help="scenes in the stream")] = 1200,
    model: Annotated[str, typer.Option(help="'dual', or a folder with a CLIPModel")] = "dual",
) -> None:
    """Watch a frozen model learn beside LoRA on the same stream; under three minutes on two cores."""
    from arr_coc.eval.demo import NAMES
    from arr_coc.eval.demo import demo as run_demo

    with _errors(), _bar() as follow:
        found = run_demo(out, novel, seed, scenes, model, follow, lambda line: typer.echo(line, err=True))
    _results(found.runs, NAMES)
    typer.echo(f"open {found.page}")


@app.command(name="eval")
def evaluate(
    stream: Annotated[list[str], typer.Argument(help="streams, by name")],
    methods: Annotated[str, typer.Option(help="names, separated by commas; all by default")] = "",
    seeds: Annotated[str, typer.Option(help="such as 0-4")] = "0-4",
    orders: Annotated[str, typer.Option(help="orders of experiences, such as 0-2")] = "0-2",
    batch: Annotated[int, typer.Option(min=1, help="samples per step")] = 10,
    n_train: Annotated[int | None, typer.Option(help="samples in the stream")] = None,
    n_test: Annotated[int | None, typer.Option(help="held-out samples")] = None,
    lora_train: Annotated[int | None, typer.Option(help="samples that LoRA learns from")] = None,
    held: Annotated[
        int | None, typer.Option(help="held-out concepts for zero-shot retention; 0: none")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="a folder with a model; by default the built-in one for the stream")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="a folder for what the frozen model perceives (2 GB a seed)")
    ] = None,
    markdown: Annotated[bool, typer.Option(help="print the tables as Markdown")] = False,
    out: Annotated[Path, typer.Option(help="raw records; runs that stand there are not repeated")] = Path(
        "runs/eval.jsonl"
    ),
) -> None:
    """Every method on the same stream, seeds and orders: the table, and the raw records it comes from."""
    from arr_coc.eval import run as grid
    from arr_coc.training.streams import load

    with _errors():
        for name in stream:
            load(name)
        wanted = [m for m in methods.split(",") if m] or None
        runs: list[dict[str, Any]] = []
        with _bar() as follow:
            for name in stream:
                setup = grid.Grid(name, batch, n_train, n_test, lora_train=lora_train)
                runs += grid.run(
                    setup, wanted, _numbers(seeds), _numbers(orders), model, out, cache, held, follow
                )
    if markdown:
        from arr_coc.eval import methods as registry
        from arr_coc.eval import table

        names = {name: spec.about for name, spec in registry.METHODS.items()}
        typer.echo(table.markdown(table.summary(runs), names))
    else:
        _results(runs)
    typer.echo(f"raw records in {out}", err=True)


def _peers(rounds: int, markdown: bool, target: Path | None) -> None:
    """The seconds of a step beside other packages, printed, and as JSON."""
    from dataclasses import asdict

    from arr_coc.eval import rules_peers, rules_report
    from arr_coc.eval.report import write

    there, absent = rules_peers.importable()
    for line in absent:
        typer.echo(line, err=True)
    with _bar() as follow:
        rows = rules_peers.compare(there, rounds=rounds, progress=follow)
    shown = rules_peers.table(rows, rounds)
    if markdown:
        typer.echo(rules_report.markdown([shown]))
    else:
        cells = [dict(zip(shown.columns, row, strict=True)) for row in shown.rows]
        _table(cells, shown.columns, shown.title)
    typer.echo(shown.note)
    if target is not None:
        write(target, json.dumps([asdict(r) for r in rows], indent=2))


@app.command()
def rules(
    tasks: Annotated[str, typer.Option(help="such as digits:2,fashion:4 (task:depth); all by default")] = "",
    only: Annotated[str, typer.Option(help="rows by the name of their rule, separated by commas")] = "",
    seeds: Annotated[str, typer.Option(help="such as 0-4")] = "0-4",
    quick: Annotated[bool, typer.Option(help="digits, two seeds, few passes: under two minutes")] = False,
    online: Annotated[bool, typer.Option(help="one pass, one sample at a time")] = False,
    readout: Annotated[str, typer.Option(help="with --online: delta or precision")] = "delta",
    explain: Annotated[str | None, typer.Option(help="say what one rule is, and what it needs")] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="only time steps beside the packages torch-pc and biotorch")
    ] = False,
    markdown: Annotated[bool, typer.Option(help="print the tables as Markdown")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="tables and runs as JSON")] = None,
    html: Annotated[Path | None, typer.Option(help="one page with tables and curves")] = None,
    out: Annotated[Path, typer.Option(help="raw records; runs that stand there are not repeated")] = Path(
        "runs/rules.jsonl"
    ),
) -> None:
    """Every learning rule on one ladder: what it reaches, what it costs, and what it must know."""
    from arr_coc.eval import rules_entries, rules_report, rules_table
    from arr_coc.eval.report import check_target, write

    with _errors():
        if explain is not None:
            typer.echo(rules_entries.explain(explain))
            return
        targets = [t if t is None else check_target(t) for t in (json_out, html)]
        if peers:
            if tasks or only or online or html is not None:
                raise ValueError("--peers times steps alone: leave --tasks, --only, --online and --html out")
            _peers(5 if quick else 100, markdown, targets[0])
            return
        entries = rules_entries.chosen([n for n in only.split(",") if n])
        columns, regime = rules_entries.setting(tasks, quick, online, readout)
        with _bar() as follow:
            runs = rules_table.run(
                entries, columns, range(2) if quick else _numbers(seeds), regime, out, follow
            )
            costs, ledgers = None, None
            if not online:  # a step costs what it costs, and a rule needs what it needs, in either regime
                follow("costs and audits", 0, 0)
                costs = rules_table.costs(entries, 5 if quick else 30)
                ledgers = rules_table.ledgers(entries)
            shown = rules_report.tables(runs, entries, costs, ledgers, regime.said)
        if markdown:
            typer.echo(rules_report.markdown(shown))
        else:
            for t in shown:
                _table([dict(zip(t.columns, row, strict=True)) for row in t.rows], t.columns, t.title)
                typer.echo(t.note)
        if targets[0] is not None:
            write(targets[0], json.dumps(rules_report.as_json(runs, shown), indent=2))
        if targets[1] is not None:
            write(targets[1], rules_report.page(runs, shown))
            typer.echo(f"open {targets[1]}")


@app.command()
def relevance(
    image: Annotated[Path | None, typer.Argument(help="a picture, to write its page")] = None,
    text: Annotated[str, typer.Argument(help="what is asked for in the picture")] = "",
    out: Annotated[Path, typer.Option(help="with a picture: the page to write")] = Path("relevance.html"),
    hub: Annotated[bool, typer.Option(help="allow a download of the model by name")] = False,
    adapter: Annotated[
        Path | None, typer.Option(help="with a picture: a folder with what was learned")
    ] = None,
    protocol: Annotated[str, typer.Option(help="P1: mosaics; P3: a planted shortcut; further")] = "P1",
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

    P1 asks for every cell of mosaics by its text. P3 plants a shortcut into small twin models and looks
    whether a map of them shows it. "further" drops tokens, draws weights anew and reads relevance as a
    probability.
    """
    from arr_coc.eval import relevance_run, seen_page
    from arr_coc.eval.report import check_target, write
    from arr_coc.eval.rules_report import markdown as as_markdown

    with _errors():
        if image is not None:
            seen_page.page_of(image, text, out, model, hub, adapter)
            typer.echo(f"open {out}")
            return
        target = None if json_out is None else check_target(json_out)
        with _bar() as follow:
            asked = relevance_run.Asked(_numbers(seeds), images, quick, model, follow)
            found = relevance_run.run(protocol, asked)
        if markdown:
            typer.echo(as_markdown(found.tables))
        else:
            for t in found.tables:
                _table([dict(zip(t.columns, row, strict=True)) for row in t.rows], t.columns, t.title)
        for line in found.lines:
            typer.echo(f"- {line}" if markdown else line)
        if target is not None:
            write(target, json.dumps(found.raw, indent=2))


@app.command()
def bench(
    shapes: Annotated[
        str, typer.Option(help="of the model: B/32, B/16 (CLIP), LLaVA; tiny, tiny-LLaVA for a try")
    ] = "B/32,B/16,LLaVA",
    batches: Annotated[str, typer.Option()] = "1,8",
    threads: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="rounds, at the least")] = 5,
    seconds: Annotated[float, typer.Option(min=0, help="further rounds until these are spent")] = 30.0,
    markdown: Annotated[bool, typer.Option(help="print the table as Markdown")] = False,
    json_out: Annotated[Path | None, typer.Option("--json", help="rows as JSON")] = None,
) -> None:
    """What attaching, forward passes and learning cost beside the bare model and LoRA, in one process."""
    from arr_coc.eval import bench as costs
    from arr_coc.eval.report import check_target, write

    with _errors():
        target = None if json_out is None else check_target(json_out)
        with _bar() as follow:
            asked = (shapes.split(","), _numbers(batches), threads, repeats, seconds)
            rows = costs.bench(*asked, progress=follow)
        if markdown:
            typer.echo(costs.markdown(rows))
        else:
            title = f"medians over rounds, {threads} thread(s), random weights"
            _table([costs.cells(row) for row in rows], list(costs.COLUMNS), title)
        typer.echo(costs.verdict(rows))
        if target is not None:
            write(target, costs.as_json(rows))


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="'dual', 'generative', a folder, a config.json, or a name on the hub")
    ] = "",
    hub: Annotated[bool, typer.Option(help="allow a download by name")] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="attach to a tiny model of every architecture of transformers")
    ] = False,
    only: Annotated[str, typer.Option(help="with --sweep: architectures, separated by commas")] = "",
    json_out: Annotated[Path | None, typer.Option("--json", help="with --sweep: its records")] = None,
) -> None:
    """What would be read from a model, and where; or what holds for which architecture."""
    from arr_coc.eval import sweep as sweeping
    from arr_coc.eval.inspection import inspect_model
    from arr_coc.eval.report import check_target

    with _errors():
        if bool(model) == sweep:
            raise ValueError("either a model or --sweep is needed")
        if json_out:
            check_target(json_out)
        if not sweep:
            typer.echo(inspect_model(model, hub))
            return
        records = []
        with _bar() as follow:
            for record in sweeping.sweep(only.split(",") if only else ()):
                records.append(record)
                follow(record["architecture"], len(records), 0 if only else sweeping.count())
        _table(sweeping.rows(records), sweeping.COLUMNS, "every architecture, tiny and random")
        typer.echo(sweeping.verdict(records))
        if json_out:
            sweeping.save(records, json_out)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="a file .yaml, .yml or .json; its key `script` says which")],
) -> None:
    """Run a training script of arr-coc as a config says; further arguments hold before the file's."""
    from arr_coc.training import script

    script.ended(lambda argv: script.launch(config, argv), context.args)


@app.command()
def card(
    name: Annotated[str, typer.Argument(help="'dual' or 'generative'")],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    small: Annotated[bool, typer.Option(help="fewer samples")] = False,
    model: Annotated[
        Path | None, typer.Option(help="a folder with another model of that kind; default: the shipped one")
    ] = None,
) -> None:
    """The held-out scores of a built-in model, with chance and controls, as Markdown."""
    import importlib

    from arr_coc.adapters import embedded

    with _errors():
        bare, processor = embedded.load(name, folder=model)
        cards = importlib.import_module(f"arr_coc.eval.cards_{name}")
        typer.echo(cards.table(cards.scores(bare, processor, seed, small)))


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
