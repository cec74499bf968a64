"""Verbs that measure and show: eval, report. Not here: the measuring (`pipeline`, `evaluation`)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from megatron_reason.cli.options import Json, Set


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder, hub id or built-in model.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="DIR",
            help="Folder of a problems table; the held-out are asked.",
        ),
    ] = None,
    benchmarks: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="Benchmark, see `mreason list benchmarks`. May be repeated.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Measure one model, without a YAML file.

    Prints pass@k, entropy and length with intervals. Goes on where it stopped. Sections of a run's
    YAML that matter here: eval, model, template, engine, launch, parallel, seed.

    Example: mreason eval smollm2-135m --table runs/oxa/10-teacher --out base
    --set eval.sampling.samples_per_prompt=4 --set eval.max_problems=40
    """
    from megatron_reason.cli.tables import show_table
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.alone import measure_alone

    setup_logging()
    summaries = measure_alone(
        model, table=table, benchmarks=benchmarks or [], output=out, overrides=overrides or []
    )
    if as_json:
        results = {name: asdict(summary) for name, summary in summaries.items()}
        typer.echo(json.dumps(results, indent=2))
        return
    for name, summary in summaries.items():
        show_table(
            f"{model} on {name}: {summary.num_problems} problems",
            ["metric", "value", "95 % interval", "samples"],
            [
                [metric, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", str(e.n)]
                for metric, e in summary.metrics.items()
            ],
        )


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Write the report of a run and print its table.

    Takes what the run's folder holds now, finished or not.

    Example: mreason report runs/oxa-quickstart
    """
    from megatron_reason.cli.tables import show_table
    from megatron_reason.logs import setup_logging
    from megatron_reason.report.page import build_report, headline_table

    setup_logging()
    page = build_report(folder)
    table = headline_table(folder)
    if as_json:
        typer.echo(json.dumps(asdict(table) | {"report": str(page)}, indent=2))
    else:
        show_table(folder.name, table.header, table.rows)
        typer.echo(f"Report: {page}")
