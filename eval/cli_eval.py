"""`arr-coc eval`."""

from pathlib import Path
from typing import Annotated

import typer

from arr_coc.eval.console import bar, errors, numbers, results


def evaluate(
    stream: Annotated[
        list[str] | None,
        typer.Argument(help="by name: split-fashion, or 'split-fashion?noise=0.2&shots=5'"),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="streams, methods and sizes in one word: core; options hold before it")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="names or module:Class of your own, separated by commas; all by default")
    ] = "",
    seeds: Annotated[str | None, typer.Option(help="such as 0-4, which is the default")] = None,
    orders: Annotated[
        str | None, typer.Option(help="orders of experiences, such as 0-2, which is the default")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="samples per step; 10 by default")] = None,
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
    jobs: Annotated[
        int, typer.Option(min=1, help="processes, each with a seed of a stream (2 GB) and one thread")
    ] = 1,
    markdown: Annotated[bool, typer.Option(help="print the tables as Markdown")] = False,
    html: Annotated[Path | None, typer.Option(help="one page with tables, curves and matrices")] = None,
    csv: Annotated[Path | None, typer.Option(help="the summary in plain numbers")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="the summary and the raw runs")] = None,
    latex: Annotated[Path | None, typer.Option(help="the tables for booktabs")] = None,
    parquet: Annotated[Path | None, typer.Option(help="one row per run, step, probe and score")] = None,
    out: Annotated[Path, typer.Option(help="raw runs; those that stand there are not repeated")] = Path(
        "runs/eval.jsonl"
    ),
) -> None:
    """Every method on the same stream, seeds and orders: the table, and the raw records it comes from."""
    from arr_coc.eval import methods as registry
    from arr_coc.eval import outputs, presets, table
    from arr_coc.eval.across import across
    from arr_coc.eval.grid import Grid
    from arr_coc.eval.run import run_all
    from arr_coc.eval.shown import say
    from arr_coc.eval.standing import standings

    with errors():
        asked = {"html": html, "csv": csv, "json": json_out, "latex": latex, "parquet": parquet}
        targets = outputs.targets(asked, out)
        base = None if preset is None else presets.preset(preset)
        names = stream or list(base.streams if base else ())
        if not names:
            raise ValueError(f"a stream or --preset is needed; presets are {', '.join(presets.PRESETS)}")
        wanted = [m for m in methods.split(",") if m]
        seed_list = numbers(seeds or "0-4") if seeds or not base else list(base.seeds)
        order_list = numbers(orders or "0-2") if orders or not base else list(base.orders)
        held = base.held if base and held is None else held
        parts = []
        for name in names:
            train, test = presets.at_most(name, base.n_train, base.n_test) if base else (None, None)
            sizes = n_train or train, n_test or test
            grid = Grid(name, batch or (base.batch if base else 10), *sizes, lora_train=lora_train)
            grid.load(0, 0)
            mine = wanted
            if base and not wanted:
                mine, left_out = presets.with_a_place(grid, base.methods)
                for line in left_out:
                    typer.echo(line, err=True)
            parts.append((grid, mine or None))
        with bar() as follow:
            runs = run_all(parts, seed_list, order_list, model, out, cache, held, follow, jobs)
        about = {name: spec.about for name, spec in registry.METHODS.items()}
        outputs.write_all(runs, targets, about)
    if markdown:
        typer.echo(table.markdown(table.summary(runs), about))
    else:
        results(runs)
    say(across(table.summary(runs)), markdown)
    for standing in standings(runs):
        typer.echo(str(standing))
    for path in targets.values():
        typer.echo(f"written: {path}", err=True)
    typer.echo(f"raw records in {out}", err=True)
