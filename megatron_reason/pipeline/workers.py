"""Hands jobs to worker processes: writes the job's file, launches, waits. No Megatron here.

Not here: what the jobs do (`training`), and how processes start (`launch`).
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.errors import ConfigError, LaunchError
from megatron_reason.files import write_text
from megatron_reason.launch.base import Job, Launcher
from megatron_reason.launch.clusters import load_cluster
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.launch.slurm import SlurmLauncher
from megatron_reason.training.jobs import EntropyJob, StageJob, TrainJob

if TYPE_CHECKING:
    from megatron_reason.pipeline._sizes import Sizes
    from megatron_reason.pipeline.engine_share import EngineShare

WORKER = "megatron_reason.training.worker"
LOCAL = "local"
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|can't allocate memory")


def run_on_ranks(
    job: TrainJob | StageJob | EntropyJob, name: str, launch: LaunchConfig, run_folder: Path
) -> None:
    """Run `job` on the worker processes that `launch` asks for.

    Args:
        job: what every rank is to do.
        name: what the job is called; names its file in `jobs/` and its log in `logs/`.
        launch: how many processes, and where.
        run_folder: folder of the run.

    Raises:
        ConfigError: a cluster that is not there.
        LaunchError: workers that did not end well.
    """
    file = run_folder / "jobs" / f"{name}.json"
    write_text(file, job.model_dump_json(indent=2) + "\n")
    launcher = launcher_for(launch)
    try:
        launcher.run(
            Job(
                name=f"stage '{name}'",
                module=WORKER,
                arguments=(str(file),),
                processes=launch.processes,
                nodes=launch.nodes,
                threads_per_process=launch.threads_per_process,
                log_file=run_folder / "logs" / f"{name}.log",
            )
        )
    except LaunchError as error:
        if not _OUT_OF_MEMORY.search(error.what) or not isinstance(job, TrainJob):
            raise
        way_out = f"{advice(job, launch)}\n  {error.way_out}"
        raise LaunchError(error.where, error.what, way_out) from error


def advice(job: TrainJob, launch: LaunchConfig) -> str:
    """What would make a training that ran out of memory fit, the least loss of speed first."""
    # Sizes are read where a run went wrong only.
    from megatron_reason.pipeline._sizes import sizes_of
    from megatron_reason.pipeline.estimate import Extras, cheapest_changes, memory_of
    from megatron_reason.pipeline.workload import layout_of, usable_on
    from megatron_reason.schema.method import build_method

    sizes = sizes_of(str(job.model_folder), job.model_folder)
    layout = layout_of(job.train, launch.world_size)
    engine = _engine_beside(job, launch, sizes)
    extras = Extras.of(job.model.dtype, build_method(job.method).required(), engine)
    now = memory_of(sizes, layout, extras).total
    # Where the GPU is not known, what did not fit must at least become a tenth smaller.
    limit = min(0.9 * now, usable_on(launch))
    changes = cheapest_changes(sizes, layout, extras, limit=limit, longest=1)
    if not changes:
        return f"It ran out of memory ({layout}); take more GPUs, or shorter sequences."
    lines = [f"  {words}  ({total / 2**30:.1f} GiB)" for words, total in changes]
    head = f"It ran out of memory; {now / 2**30:.1f} GiB were predicted ({layout}). Any of these:"
    return "\n  ".join([head, *lines])


def _engine_beside(job: TrainJob, launch: LaunchConfig, sizes: "Sizes") -> "EngineShare | None":
    """What the engine of the training's rollouts takes of a GPU, where that is known."""
    from megatron_reason.config.gpus import GPUS
    from megatron_reason.pipeline.engine_share import EngineShare
    from megatron_reason.pipeline.workload import gpu_on

    if job.rollout is None or (gpu := gpu_on(launch)) is None:
        return None
    shared = job.rollout.engine.beside_a_trainer()
    return EngineShare.of(shared, sizes, GPUS[gpu], job.model.dtype)


def launcher_for(launch: LaunchConfig) -> Launcher:
    """Launcher that `launch.cluster` names.

    Raises:
        ConfigError: no such cluster, or several nodes without one.
    """
    if launch.cluster != LOCAL:
        return SlurmLauncher(load_cluster(launch.cluster))
    if launch.nodes > 1:
        raise ConfigError(
            "launch.nodes",
            f"{launch.nodes} nodes are asked for, and this machine is one.",
            "Run it on a cluster: mreason run CONFIG --on NAME; or set launch.nodes: 1.",
        )
    return LocalLauncher()
