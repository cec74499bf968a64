"""Hands jobs to worker processes: writes the job's file, launches, waits. No Megatron here.

Not here: what the jobs do (`training`), and how processes start (`launch`).
"""

from pathlib import Path

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.errors import ConfigError
from megatron_reason.files import write_text
from megatron_reason.launch.base import Job, Launcher
from megatron_reason.launch.clusters import load_cluster
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.launch.slurm import SlurmLauncher
from megatron_reason.training.jobs import EntropyJob, StageJob, TrainJob

WORKER = "megatron_reason.training.worker"
LOCAL = "local"


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
    launcher_for(launch).run(
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
