"""Where a run's processes start."""

from pydantic import Field

from megatron_reason.config.base import Strict


class LaunchConfig(Strict):
    """Section `launch`."""

    cluster: str = "local"
    """`local`, or the name of a file in `slurm/clusters/`."""
    processes: int = Field(default=1, ge=1)
    """Worker processes (one per GPU, or per group of cores) on this machine."""
    threads_per_process: int = Field(default=1, ge=1)
    """CPU threads of each worker (OMP_NUM_THREADS)."""
