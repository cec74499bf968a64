"""The stages of a run as jobs of a cluster: which share one, and which wait for which.

A training and an evaluation are a job each, so that variants train side by side. Of curation,
neighbours that need the same machines share one job. Not here: sbatch files (`launch/batch.py`).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Literal

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.curation.base import build_stage
from megatron_reason.launch.batch import BatchJob
from megatron_reason.pipeline.manifest import is_done
from megatron_reason.pipeline.plan import BASE, PlannedStage
from megatron_reason.pipeline.run_config import RunConfig

Demand = Literal["host", "engine", "ranks"]
"""No GPU, the GPUs of one node, or all nodes of the run."""


def graph(
    config: RunConfig, chosen: Sequence[PlannedStage], command: Sequence[str], *, has_host: bool
) -> list[BatchJob]:
    """Jobs that run those of the stages that are not done, in an order in which to submit them.

    Args:
        config: the run.
        chosen: its stages that are asked for, in order.
        command: what follows `mreason run`: the file, and overrides.
        has_host: whether the cluster has machines for work without GPU; else that work is done in
            the job next to it.
    """
    folder = config.run.folder
    due = [stage for stage in chosen if not is_done(folder / stage.folder, stage.hash)]
    shared: list[list[PlannedStage]] = []
    for _, group in groupby(due, key=lambda stage: _shares(config, stage)):
        shared.append(list(group))
    if not has_host:
        shared = _without_host(config, shared)
    owner = {stage.name: _name(config, group) for group in shared for stage in group}
    return _reduced([_job(config, group, owner, command) for group in shared])


def demand(config: RunConfig, planned: PlannedStage) -> Demand:
    """What machines a stage needs."""
    if planned.kind in ("train", "eval"):
        return "ranks" if planned.kind == "train" else "engine"
    if planned.kind == "report":
        return "host"
    settings = next(stage for stage in config.curate if stage.name == planned.name)
    if build_stage(settings).runs_on == "ranks":
        return "ranks"
    draws_text = any(isinstance(value, SamplingConfig) for _, value in settings)
    return "engine" if draws_text else "host"


def _shares(config: RunConfig, stage: PlannedStage) -> str:
    """Equal for neighbours that share a job."""
    return demand(config, stage) if stage.kind == "curate" else stage.name


def _without_host(config: RunConfig, groups: list[list[PlannedStage]]) -> list[list[PlannedStage]]:
    """Put curation that needs no GPU into the job before it, or after it where there is none."""
    joined: list[list[PlannedStage]] = []
    for group in groups:
        together = [*(joined[-1] if joined else []), *group]
        demands = {demand(config, stage) for stage in together} - {"host"}
        if joined and len(demands) <= 1 and all(stage.kind == "curate" for stage in together):
            joined[-1] = together
        else:
            joined.append(group)
    return joined


def _reduced(jobs: list[BatchJob]) -> list[BatchJob]:
    """The same without waits that follow from others."""
    waits: dict[str, set[str]] = {}
    for job in jobs:
        waits[job.name] = set(job.after).union(*(waits[name] for name in job.after))
    return [
        replace(job, after=tuple(
            name for name in job.after
            if not any(name in waits[other] for other in job.after if other != name)
        ))
        for job in jobs
    ]  # fmt: skip


def _job(
    config: RunConfig, group: list[PlannedStage], owner: dict[str, str], command: Sequence[str]
) -> BatchJob:
    name = _name(config, group)
    inputs = [owner[before] for stage in group for before in stage.inputs if before in owner]
    first, last = group[0].name, group[-1].name
    stages = ["--only", first] if len(group) == 1 else ["--from", first, "--to", last]
    needed = {demand(config, stage) for stage in group}
    return BatchJob(
        name=name,
        arguments=("run", *command, *stages),
        nodes=max(_nodes(config, stage) for stage in group),
        on_host=needed == {"host"},
        after=tuple(dict.fromkeys(before for before in inputs if before != name)),
    )


def _name(config: RunConfig, group: list[PlannedStage]) -> str:
    first, last = group[0].name, group[-1].name
    return f"{config.run.name}.{first}" + ("" if first == last else f"-to-{last}")


def _nodes(config: RunConfig, stage: PlannedStage) -> int:
    needed = demand(config, stage)
    if needed == "ranks":
        return config.launch.nodes
    if stage.kind != "eval" or config.eval is None or not config.eval.num_entropy_responses:
        return 1
    # Entropy is measured in the layout of the training, on as few nodes as hold one copy.
    trained = stage.variant is not None and stage.variant != BASE
    train = config.train_of(stage.variant) if trained and stage.variant else config.train
    ranks = 1 if train is None else train.parallel.model_size
    return -(-ranks // config.launch.processes)
