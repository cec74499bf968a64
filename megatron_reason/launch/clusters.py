"""Finds a cluster's file, and hands job scripts what they need of it: `-m ... NAME`.

Not here: what the file may say (`config/cluster.py`).
"""

import os
import shlex
import sys
from pathlib import Path

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError, LaunchError, ReasonError
from megatron_reason.registry import suggest

CLUSTERS = Path("slurm", "clusters")


def load_cluster(name: str) -> ClusterConfig:
    """Read the file of the cluster `name`: one of `slurm/clusters/`, or a path that ends in .yaml.

    Raises:
        ConfigError: there is none, or it says what cannot be.
    """
    path = cluster_file(name)
    if not path.is_file():
        known = cluster_names()
        way_out = suggest(name, known) if known else "Give the path of a YAML file."
        raise ConfigError(str(path), f"there is no file for the cluster '{name}'.", way_out)
    return load_config(path, [], ClusterConfig)


def cluster_file(name: str) -> Path:
    """Where the file of the cluster `name` stands."""
    return Path(name) if name.endswith(".yaml") else CLUSTERS / f"{name}.yaml"


def cluster_names() -> list[str]:
    """Clusters that have a file, seen from the working directory."""
    return sorted(path.stem for path in CLUSTERS.glob("*.yaml"))


def job_settings(name: str, cluster: ClusterConfig) -> str:
    """What a job script evaluates: exported variables, and the numbers it needs itself.

    Raises:
        LaunchError: the job runs elsewhere than the file says.
    """
    for what, wanted, variable in (
        ("partition", {cluster.partition, cluster.host_partition}, "SLURM_JOB_PARTITION"),
        ("account", {cluster.account}, "SLURM_JOB_ACCOUNT"),
    ):
        found, allowed = os.environ.get(variable), wanted - {None}
        if found and allowed and found not in allowed:
            raise LaunchError(
                str(cluster_file(name)),
                f"this job runs in {what} '{found}'; the file says "
                f"{' or '.join(sorted(map(str, allowed)))}.",
                f"Submit with sbatch --{what}={min(map(str, allowed))}, or correct the file.",
            )
    lines = [f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items()]
    numbers = [f"{name}={getattr(cluster, name)}" for name in ("max_requeues", "gpus_per_node")]
    return "\n".join([*lines, *numbers, ""])


def main() -> int:
    """Print `job_settings` of the cluster named on the command line."""
    try:
        sys.stdout.write(job_settings(sys.argv[1], load_cluster(sys.argv[1])))
    except ReasonError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
