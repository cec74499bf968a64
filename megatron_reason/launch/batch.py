"""Jobs of a cluster that depend on each other: their sbatch files, and submitting them.

Not here: what runs in which job (`pipeline/graph.py`), and what a job does inside (`slurm.py`).
"""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError
from megatron_reason.files import write_text

SCRIPTS = Path("slurm")
"""Where the files of a run's jobs stand in its folder."""
LOGS = Path("logs", "jobs")
"""Where their output goes."""
_SBATCH_TIMEOUT_S = 60


@dataclass(frozen=True)
class BatchJob:
    """One job of a cluster, which runs one `mreason` command."""

    name: str
    """What it is called in the queue."""
    arguments: tuple[str, ...]
    """Verb and arguments of `mreason`."""
    nodes: int
    """Machines it takes."""
    on_host: bool = False
    """Whether it needs no GPU."""
    after: tuple[str, ...] = ()
    """Names of the jobs that must have ended well before it starts."""


def render(job: BatchJob, cluster: ClusterConfig, cluster_name: str, run_folder: Path) -> str:
    """The sbatch file of `job`, to be submitted from the repository."""
    on_host = job.on_host and cluster.host_partition is not None
    gpus = 0 if on_host else cluster.gpus_per_node
    options = {
        "job-name": job.name,
        "partition": cluster.host_partition if on_host else cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": None if on_host else cluster.constraint,
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus or None,
        "time": cluster.time,
        "signal": f"B:USR1@{cluster.save_before_s}",
        "open-mode": "append",
        "output": run_folder / LOGS / "%x-%j.out",
        "container-image": cluster.container,
        "container-mounts": ",".join(cluster.mounts) if cluster.container else None,
    }
    given = [f"--{key}={value}" for key, value in options.items() if value not in (None, "")]
    flags = ["--requeue", *(["--exclusive"] if cluster.exclusive and not on_host else [])]
    header = "\n".join(f"#SBATCH {line}" for line in [*given, *flags, *cluster.sbatch_options])
    command = shlex.join([cluster_name, *job.arguments])
    return f"""#!/usr/bin/env bash
{header}
set -euo pipefail
source slurm/job.sh
mreason_job {command}
"""


def submit(
    jobs: Sequence[BatchJob], cluster: ClusterConfig, cluster_name: str, run_folder: Path
) -> dict[str, str]:
    """Write the files of `jobs` into the run folder and submit them, each after those it waits for.

    Returns:
        Number of each job, by name.

    Raises:
        LaunchError: sbatch is not here, or refused one; those submitted before are withdrawn.
    """
    (run_folder / LOGS).mkdir(parents=True, exist_ok=True)
    ids: dict[str, str] = {}
    for job in jobs:
        path = run_folder / SCRIPTS / f"{job.name}.sh"
        write_text(path, render(job, cluster, cluster_name, run_folder))
        command = ["sbatch", "--parsable"]
        if waits := [ids[name] for name in job.after]:
            command += [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"]
        try:
            ids[job.name] = _sbatch([*command, str(path)], cluster_name)
        except LaunchError:
            if ids:
                subprocess.run(["scancel", *ids.values()], check=False)
            raise
    return ids


def _sbatch(command: list[str], cluster_name: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_SBATCH_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise LaunchError(
            "sbatch", "the program is not on this machine.",
            "Submit from a login node of the cluster; `tools/local_slurm.sh up` makes one here.",
        ) from error  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            " ".join(command), f"no answer within {_SBATCH_TIMEOUT_S} s.",
            "Ask the controller: scontrol ping.",
        ) from error  # fmt: skip
    if done.returncode:
        raise LaunchError(
            " ".join(command),
            f"{done.stderr.strip()}",
            f"Correct the cluster's file ({cluster_name}): `sinfo -s` lists partitions, `sacctmgr "
            "show assoc user=$USER` accounts.",
        )
    return done.stdout.strip().partition(";")[0]
