"""What `plan` and `run` do with `--on`: show or submit the jobs of a run. Not here: the jobs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from megatron_reason.launch.batch import BatchJob
    from megatron_reason.pipeline.plan import PlannedStage
    from megatron_reason.pipeline.run_config import RunConfig

On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="CLUSTER",
        help="As jobs of a cluster: a name in slurm/clusters/, or the path of such a file.",
    ),
]


def command_line(config: Path, overrides: Sequence[str]) -> list[str]:
    """What a job is told: the file and the overrides."""
    return [str(config), *(word for override in overrides for word in ("--set", override))]


def show_jobs(
    settings: "RunConfig", chosen: "Sequence[PlannedStage]", command: Sequence[str], on: str
) -> None:
    """Print the jobs of a run and their sbatch files; submits nothing."""
    from megatron_reason.launch.batch import render
    from megatron_reason.launch.clusters import load_cluster

    cluster = load_cluster(on)
    jobs = _jobs(settings, chosen, command, on)
    _table(f"{len(jobs)} jobs on {on}", jobs, {})
    for job in jobs:
        typer.echo(f"\n# ---- {job.name}.sh")
        typer.echo(render(job, cluster, on, settings.run.folder), nl=False)


def submit_jobs(
    settings: "RunConfig", chosen: "Sequence[PlannedStage]", command: Sequence[str], *,
    on: str, as_json: bool,
) -> None:  # fmt: skip
    """Submit the jobs of a run, each after those it waits for."""
    from megatron_reason.launch.batch import LOGS, submit
    from megatron_reason.launch.clusters import load_cluster

    cluster = load_cluster(on)
    jobs = _jobs(settings, chosen, command, on)
    ids = submit(jobs, cluster, on, settings.run.folder)
    if as_json:
        typer.echo(json.dumps({"folder": str(settings.run.folder), "jobs": ids}, indent=2))
        return
    if not jobs:
        typer.echo("Every stage is done.")
        return
    _table(f"{len(jobs)} jobs on {on}", jobs, ids)
    typer.echo(f"Output: {settings.run.folder / LOGS}; cancel: scancel {' '.join(ids.values())}")


def _jobs(
    settings: "RunConfig", chosen: "Sequence[PlannedStage]", command: Sequence[str], on: str
) -> "list[BatchJob]":
    from megatron_reason.launch.clusters import load_cluster
    from megatron_reason.pipeline.graph import graph

    has_host = load_cluster(on).host_partition is not None
    return graph(settings, chosen, command, has_host=has_host)


def _table(title: str, jobs: "Sequence[BatchJob]", ids: dict[str, str]) -> None:
    from megatron_reason.cli.tables import show_table

    show_table(
        title,
        ["job", "name", "nodes", "after"],
        [[ids.get(j.name, "-"), j.name, str(j.nodes), ", ".join(j.after)] for j in jobs],
    )
