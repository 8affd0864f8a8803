"""The command line: `arr-coc demo | eval | rules | relevance | serve | bench | inspect | train | card`."""

from pathlib import Path
from typing import Annotated

import typer

from arr_coc.eval import cli_eval, cli_relevance, cli_rules
from arr_coc.eval.console import bar, errors, numbers, results, table

app = typer.Typer(
    help="Adapters that let a frozen vision-language model keep learning from a stream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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

    with errors(), bar() as follow:
        found = run_demo(out, novel, seed, scenes, model, follow, lambda line: typer.echo(line, err=True))
    results(found.runs, NAMES)
    typer.echo(f"open {found.page}")


app.command(name="eval")(cli_eval.evaluate)
app.command()(cli_rules.rules)
app.command()(cli_relevance.relevance)
app.command()(cli_relevance.serve)


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

    with errors():
        target = None if json_out is None else check_target(json_out)
        with bar() as follow:
            asked = (shapes.split(","), numbers(batches), threads, repeats, seconds)
            rows = costs.bench(*asked, progress=follow)
        if markdown:
            typer.echo(costs.markdown(rows))
        else:
            title = f"medians over rounds, {threads} thread(s), random weights"
            table([costs.cells(row) for row in rows], list(costs.COLUMNS), title)
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

    with errors():
        if bool(model) == sweep:
            raise ValueError("either a model or --sweep is needed")
        if json_out:
            check_target(json_out)
        if not sweep:
            typer.echo(inspect_model(model, hub))
            return
        records = []
        with bar() as follow:
            for record in sweeping.sweep(only.split(",") if only else ()):
                records.append(record)
                follow(record["architecture"], len(records), 0 if only else sweeping.count())
        table(sweeping.rows(records), sweeping.COLUMNS, "every architecture, tiny and random")
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

    with errors():
        bare, processor = embedded.load(name, folder=model)
        cards = importlib.import_module(f"arr_coc.eval.cards_{name}")
        typer.echo(cards.table(cards.scores(bare, processor, seed, small)))


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
