"""All that a cluster wants its own way: one YAML file, read by the job scripts and the launcher.

Not here: how many nodes a run takes (`launch.py`), and finding the file (`launch/clusters.py`).
"""

from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.config.gpus import GpuName


class ClusterConfig(Strict):
    """A file in `slurm/clusters/`."""

    partition: str | None = None
    """Partition of jobs; None takes the cluster's default."""
    host_partition: str | None = None
    """Partition of jobs that need no GPU (reading, grading, reports); None puts those stages into
    the job of the stage that follows."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features that are asked for."""
    gpu: GpuName | None = None
    """GPU of its nodes, for estimates of memory and time; None on a cluster without."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of a node; 0 asks for none."""
    exclusive: bool = True
    """Take nodes as a whole."""
    time: str = Field(default="24:00:00", pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")
    """Time limit of one job; a run that needs more is saved, queued again and resumed."""
    save_before_s: int = Field(default=300, ge=1)
    """Seconds before the time limit at which a job is told to save and leave."""
    max_requeues: int = Field(default=20, ge=0)
    """Times a job may put itself back into the queue."""
    sbatch_options: tuple[str, ...] = ()
    """Further options of sbatch, e.g. `--reservation=course`."""
    srun_options: tuple[str, ...] = ()
    """Further options of srun, for the steps of a job."""
    container: str | None = None
    """Image that jobs run in (pyxis); it needs the commands of SLURM inside."""
    mounts: tuple[str, ...] = ()
    """Folders visible in the container, as `source:target[:flags]`."""
    activate: str = ""
    """Shell command that puts the right `python` first, on one line; empty keeps that of the shell
    from which jobs are submitted."""
    environment: dict[str, str] = Field(default_factory=dict[str, str])
    """Variables of every process: network interfaces, caches, proxies."""
