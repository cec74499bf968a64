"""Verbs that measure and show: eval, report. Not here: the measuring (`pipeline`, `evaluation`)."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_reason.cli.options import Json, Set

if TYPE_CHECKING:
    from megatron_reason.evaluation.summary import EvalSummary


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hugging Face folder, hub id or built-in model.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder to write to; runs/eval/MODEL if not given."
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="DIR",
            help="Folder of a problems table; the held-out are asked.",
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="NAME,...",
            help="A suite (`mreason list suites`), benchmarks (`mreason list benchmarks`), or "
            ".jsonl files. May be repeated.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Measure one model, without a YAML file.

    Prints pass@k, entropy and length with intervals, and the mean over benchmarks. Goes on where it
    stopped. A suite sets
    sampling, template and grader to a paper's; --set changes any of it. Sections of a run's YAML
    that matter here: eval, model, template, engine, launch, parallel, seed.

    Example: mreason eval smollm2-135m --suite aime24,my_problems.jsonl --out base
    --set eval.benchmark_folder=data --set eval.sampling.samples_per_prompt=4
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.alone import measure_alone

    setup_logging()
    output = out or _default_output(model)
    typer.echo(f"Answers and results go to {output}", err=True)
    summaries = measure_alone(
        model, table=table, benchmarks=suite or [], output=output, overrides=overrides or []
    )
    titles = {name: f"{model} on {name}" for name in summaries}
    _show(titles, summaries, as_json=as_json)


def _default_output(model: str) -> Path:
    """All of what the model was called, as one folder's name: others must not share it."""
    return Path("runs") / "eval" / (re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model")


def regrade(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of one evaluation, or of several.")
    ],
    grader: Annotated[
        str | None,
        typer.Option(
            "--grader", metavar="NAME", help="Another grader, see `mreason list rewards`."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Grade stored answers again, without a model: by a newer grader, or by another one.

    Replaces verdicts, summary, card and disagreements of each evaluation below DIR; the answers
    stay.

    Example: mreason regrade base --grader plain
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.measure import regrade_all

    setup_logging()
    found = regrade_all(folder, grader)
    titles = {name: f"{name}: {one.num_changed} verdicts changed" for name, one in found.items()}
    _show(titles, {name: one.summary for name, one in found.items()}, as_json=as_json)


def _show(
    titles: Mapping[str, str], summaries: "Mapping[str, EvalSummary]", *, as_json: bool
) -> None:
    from megatron_reason.cli.tables import show_table
    from megatron_reason.evaluation.summary import shown

    if as_json:
        results = {name: asdict(summary) for name, summary in summaries.items()}
        typer.echo(json.dumps(results, indent=2))
        return
    for name, summary in summaries.items():
        show_table(
            f"{titles[name]}: {summary.num_problems} problems",
            ["metric", "value", "95 % interval", "samples"],
            [
                [metric, f"{e.value:.4g}", f"{e.low:.4g} to {e.high:.4g}", str(e.n)]
                for metric, e in shown(summary.metrics).items()
            ],
        )


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, shown side by side.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the page of several runs goes."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Show runs side by side that were not evaluated alike.")
    ] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table as markdown, for pasting.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the report of a run, or of several side by side, and print its table.

    Takes what the folders hold now, finished or not. The page of one run goes to its own folder
    `report` unless --out says otherwise. Runs whose evaluations must not be compared are refused.

    Example: mreason report runs/oxa-quickstart
    """
    from megatron_reason.cli.tables import show_table
    from megatron_reason.errors import ConfigError
    from megatron_reason.logs import setup_logging
    from megatron_reason.report.page import build_comparison, build_report
    from megatron_reason.report.side_by_side import read_runs
    from megatron_reason.report.table import headline_of

    setup_logging()
    if out is None and len(folders) > 1:
        raise ConfigError("mreason report", "several runs, one page.", "Say where: --out DIR.")
    page = build_report(folders[0]) if out is None else build_comparison(folders, out, force=force)
    table = headline_of(read_runs(folders, force=True))
    if as_json:
        typer.echo(json.dumps(asdict(table) | {"report": str(page)}, indent=2))
    elif markdown:
        typer.echo(table.markdown(), nl=False)
    else:
        show_table(", ".join(folder.name for folder in folders), table.header, table.rows)
        typer.echo(f"Report: {page}")
