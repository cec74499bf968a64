"""Verbs that do work: plan, run, train, stage. Not here: the work (`pipeline`)."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_reason.cli.cluster import On, command_line, show_jobs, submit_jobs
from megatron_reason.cli.estimate import show_estimate
from megatron_reason.cli.options import Config, Json, Set

if TYPE_CHECKING:
    from megatron_reason.pipeline.run_config import RunConfig

Tables = Annotated[
    list[Path],
    typer.Option(
        "--table",
        metavar="DIR",
        help="Folder with tokens.parquet, or with the problems.parquet that rollouts answer; may "
        "be repeated.",
    ),
]
StageName = Annotated[str | None, typer.Option(metavar="STAGE")]


def plan(
    config: Config,
    overrides: Set = None,
    on: On = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="NxGPU", help="Estimate memory and hours, e.g. on 32xH100-80."),
    ] = None,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of a GPU's peak that is assumed.")
    ] = 0.35,
    as_json: Json = False,
) -> None:
    """Show what a run would do; touches nothing.

    Stages in order, what each reads, how much it does, its layout, and whether it is done already;
    then every setting of each method, those of its preset and its defaults included. With --on, the
    jobs it would be on a cluster, and their files; with --gpus, memory, hours and layouts that fit.

    Example: mreason plan examples/oxa/full_7b.yaml --gpus 32xH100-80
    """
    from megatron_reason.cli.tables import show_table
    from megatron_reason.pipeline.outline import outline
    from megatron_reason.pipeline.plan import check_layouts, make_plan

    settings = _load(config, overrides)
    check_layouts(settings)
    stages = make_plan(settings)
    lines = outline(settings, stages)
    if as_json:
        rows = [asdict(stage) | asdict(line) for stage, line in zip(stages, lines, strict=True)]
        typer.echo(json.dumps(rows, indent=2))
        return
    show_table(
        f"{settings.run.name}: {len(stages)} stages in {settings.run.folder}",
        ["folder", "does", "reads", "work", "processes", "state"],
        [
            [stage.folder, stage.stage, ", ".join(_shortened(stage.inputs)), line.work,
             line.processes, line.state]
            for stage, line in zip(stages, lines, strict=True)
        ],
    )  # fmt: skip
    for stage, line in zip(stages, lines, strict=True):
        if line.method:
            values = ", ".join(f"{key} {json.dumps(v)}" for key, v in line.method.items())
            typer.echo(f"{stage.folder}: {values}")
    if gpus is not None:
        show_estimate(settings, gpus, mfu)
    if on is not None:
        show_jobs(settings, stages, command_line(config, overrides or []), on)


def run(  # noqa: PLR0913 - one per option
    config: Config,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="STAGE", help="First stage; those before must be done."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="STAGE", help="Last stage to run.")
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run this one stage.")
    ] = None,
    on: On = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run a YAML file from data to report.

    Goes on where it stopped: a stage is done again only if its settings or its inputs changed.
    Stages are named as `mreason plan` shows them. With --on it is submitted to a cluster, as jobs
    that wait for each other. In a job with a second component, that component answers.

    Example: mreason run examples/quickstart_cpu/oxa.yaml
    """
    from megatron_reason.files import read_json
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.answering import with_servers
    from megatron_reason.pipeline.execute import choose, execute
    from megatron_reason.pipeline.plan import PLAN, REPORT_PAGE, check_layouts, make_plan

    setup_logging()
    settings = _load(config, overrides)
    command = command_line(config, overrides or [])
    if on is not None:
        check_layouts(settings)
        chosen = choose(make_plan(settings), from_=from_, to=to, only=only)
        submit_jobs(settings, chosen, command, on=on, as_json=as_json)
        return
    with with_servers(settings, command) as answered:
        folder = execute(answered, from_=from_, to=to, only=only)
    page = folder / REPORT_PAGE
    if as_json:
        stages = read_json(folder / PLAN)
        typer.echo(
            json.dumps({"folder": str(folder), "report": str(page), "stages": stages}, indent=2)
        )
    elif page.is_file():
        from megatron_reason.cli.tables import show_table
        from megatron_reason.report.page import headline_table

        table = headline_table(folder)
        show_table(folder.name, table.header, table.rows)
        typer.echo(f"Report: {page}")


def train(
    config: Config,
    tables: Tables,
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="NAME", help="Which variant; needed if there are many."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write; default: the run's folder."),
    ] = None,
    job_file: Annotated[
        Path | None,
        typer.Option(
            "--job-file",
            metavar="FILE",
            help="Only write the job, to be run by `torchrun -m megatron_reason.training.worker "
            "FILE`.",
        ),
    ] = None,
    overrides: Set = None,
) -> None:
    """Train one variant on a table of tokens, on rollouts, or on both.

    The rest of the run is left alone: it begins with the run's model. Goes on from its last
    checkpoint; leaves OUT/huggingface. OUT is locked meanwhile: a second command on it is refused.

    Example: mreason train run.yaml --table runs/oxa/140-oxa_full_table --variant oxa_full
    """
    from megatron_reason.files import write_text
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.alone import training_job
    from megatron_reason.pipeline.lock import stage_locks
    from megatron_reason.pipeline.workers import run_on_ranks

    setup_logging()
    settings = _load(config, overrides)
    job = training_job(settings, tables, variant=variant, output=out)
    if job_file is not None:
        write_text(job_file, job.model_dump_json(indent=2) + "\n")
        typer.echo(f"torchrun --nproc-per-node {settings.launch.processes} -m "
                   f"megatron_reason.training.worker {job_file}")  # fmt: skip
        return
    folder, name = _lock_of(job.output, settings.run.folder)
    with stage_locks(folder, [name]):
        run_on_ranks(job, "train", settings.launch, job.output)
    typer.echo(str(job.output / "huggingface"))


def resume_check(
    config: Config,
    tables: Tables,
    updates: Annotated[
        int, typer.Option("--updates", metavar="N", min=1, help="Updates before and after.")
    ] = 4,
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="NAME", help="Which variant; needed if there are many."),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Prove that a stopped and resumed training is the one that was never stopped.

    Trains 2N updates at once, then N, a new start, and the rest, and compares; in the folder
    resume-check of the run, begun anew each time. Whole steps are made: where one makes several
    updates (rollout.updates_per_step), the stop comes after the first that reaches N.

    Example: mreason resume-check run.yaml --table runs/oxa/140-oxa_full_table --variant oxa_full
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline import resume_check as check
    from megatron_reason.pipeline.alone import training_job
    from megatron_reason.pipeline.lock import stage_locks

    setup_logging()
    settings = _load(config, overrides)
    output = settings.run.folder / "resume-check"
    job = training_job(settings, tables, variant=variant, output=output)
    # Beside the folder, which is begun anew.
    with stage_locks(settings.run.folder, [output.name]):
        report = check.resume_check(job, settings.launch, updates=updates)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    weights = "equal, byte for byte" if report.weights_are_equal else "not bitwise equal"
    typer.echo(
        f"{report.updates} updates, resumed after {report.resumed_after}: loss and gradient norm "
        f"differ by {report.max_difference:.1e} at most; final weights are {weights}."
    )


def stage(
    kind: Annotated[
        str, typer.Argument(metavar="STAGE", help="Kind of stage, see `mreason list stages`.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--in",
            metavar="[NAME=]DIR",
            help="Folder of a stage it reads; NAME, by which the stage's settings refer to it, is "
            "the folder's name without number unless given. May be repeated.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Only the I-th of N even shares of the rows, from 0; the stage `merge` puts them "
            "together.",
        ),
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Run one curation stage, without a YAML file.

    The stage's own settings are --set stage.KEY=VALUE; a stage that reads one table takes it from
    --in. Interrupted, the same command goes on where it was. Sections of a run's YAML that matter
    here: model, template, engine, launch, seed.

    Example: mreason stage grade --in runs/oxa/10-teacher --out graded --set stage.keep=correct
    """
    from megatron_reason.logs import setup_logging
    from megatron_reason.pipeline.alone import run_stage_alone

    setup_logging()
    shares = [] if shard is None else [f"stage.shard={shard}"]
    result = run_stage_alone(kind, inputs or [], out, [*(overrides or []), *shares])
    if as_json:
        typer.echo(json.dumps(asdict(result) | {"folder": str(out)}, indent=2))
    else:
        counts = ", ".join(f"{name} {count}" for name, count in result.counts.items() if count)
        typer.echo(f"{out}: {result.num_rows} rows ({counts or 'no further counts'})")


def _load(config: Path, overrides: list[str] | None) -> "RunConfig":
    from megatron_reason.config.load import load_config
    from megatron_reason.pipeline.run_config import RunConfig

    return load_config(config, overrides or [], RunConfig)


def _lock_of(output: Path, run_folder: Path) -> tuple[Path, str]:
    """Folder and name of the lock on a training's output; a stage's own lock where it is one's."""
    numbered = re.match(r"\d+-(.+)", output.name)
    if numbered and output.resolve().parent == run_folder.resolve():
        return run_folder, numbered[1]
    return output, "train"


def _shortened(names: tuple[str, ...], most: int = 3) -> list[str]:
    return [*names] if len(names) <= most else [*names[:2], f"... ({len(names)})"]
