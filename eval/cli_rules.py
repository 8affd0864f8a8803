"""`arr-coc rules`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from arr_coc.eval.console import bar, errors, numbers


def _peers(rounds: int, markdown: bool, target: Path | None) -> None:
    """The seconds of a step beside other packages, printed, and as JSON."""
    from dataclasses import asdict

    from arr_coc.eval import rules_peers
    from arr_coc.eval.report import write
    from arr_coc.eval.shown import say

    there, absent = rules_peers.importable()
    for line in absent:
        typer.echo(line, err=True)
    with bar() as follow:
        rows = rules_peers.compare(there, rounds=rounds, progress=follow)
    shown = rules_peers.table(rows, rounds)
    say([shown], markdown)
    if target is not None:
        write(target, json.dumps([asdict(r) for r in rows], indent=2))


def rules(
    tasks: Annotated[str, typer.Option(help="such as digits:2,fashion:4 (task:depth); all by default")] = "",
    only: Annotated[str, typer.Option(help="rows by the name of their rule, separated by commas")] = "",
    options: Annotated[
        str, typer.Option(help="further options of those rules, such as '{\"precision\": 0.1}'")
    ] = "",
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
    from arr_coc.eval.shown import say

    with errors():
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
        if options and not only:
            raise ValueError("--options are of certain rules: say which with --only")
        entries = rules_entries.changed(entries, options)
        columns, regime = rules_entries.setting(tasks, quick, online, readout)
        with bar() as follow:
            runs = rules_table.run(
                entries, columns, range(2) if quick else numbers(seeds), regime, out, follow
            )
            costs, ledgers = None, None
            if not online:  # a step costs what it costs, and a rule needs what it needs, in either regime
                follow("costs and audits", 0, 0)
                costs = rules_table.costs(entries, 5 if quick else 30)
                ledgers = rules_table.ledgers(entries)
            shown = rules_report.tables(runs, entries, costs, ledgers, regime.said)
        say(shown, markdown)
        if targets[0] is not None:
            write(targets[0], json.dumps(rules_report.as_json(runs, shown), indent=2))
        if targets[1] is not None:
            write(targets[1], rules_report.page(runs, shown))
            typer.echo(f"open {targets[1]}")
