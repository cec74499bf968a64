"""Where a run's processes start."""

from pydantic import Field

from megatron_reason.config.base import Strict


class LaunchConfig(Strict):
    """Section `launch`."""

    cluster: str = "local"
    """`local` for this machine; inside a job of a cluster its file: a name in `slurm/clusters/`, or
    the path of a YAML file."""
    nodes: int = Field(default=1, ge=1)
    """Machines that training and scoring take."""
    processes: int = Field(default=1, ge=1)
    """Worker processes on each of them: one per GPU, or per group of cores."""
    threads_per_process: int = Field(default=1, ge=1)
    """CPU threads of each worker (OMP_NUM_THREADS)."""
    stages_at_once: int = Field(default=1, ge=1)
    """Stages that this machine works on side by side where none waits for another's output; for
    machines without GPUs, whose cores one small model does not fill."""

    @property
    def world_size(self) -> int:
        """Worker processes on all nodes together."""
        return self.nodes * self.processes
