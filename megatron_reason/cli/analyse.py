"""Verb `analyse`: figures, and the numbers behind them. Not here: any of them (`report`)."""

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_reason.cli.options import Json


def analyse(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `mreason list analyses` prints it.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="PLACE or LABEL=PLACE: a folder, a run (all its models), or RUN:MODEL.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")] = Path(
        "analysis"
    ),
    as_json: Json = False,
) -> None:
    """Draw one analysis: a PNG for each figure and the numbers behind it as JSON.

    What an analysis takes: mreason show analysis NAME.

    Example: mreason analyse pass_at_k runs/oxa-quickstart
    """
    from megatron_reason.report.analysis import run_analysis

    written = run_analysis(name, inputs, out)
    if as_json:
        typer.echo(json.dumps([str(path) for path in written], indent=2))
        return
    for path in written:
        typer.echo(str(path))
