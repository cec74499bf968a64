"""vLLM servers on the second component of a heterogeneous SLURM job, up as long as a run is.

Each task of that component is one server, which registers in a folder of the run. Not here: what a
server is (`generation/vllm_server.py`), and what a trainer does when one dies.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError
from megatron_reason.generation.server_folder import registered
from megatron_reason.launch.signals import interruptible
from megatron_reason.launch.slurm import container_options
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
_GROUP = 1
_POLL_S = 0.5
_GRACE_S = 30.0
_MOST_LINES = 25
# Only the node knows the name under which the trainer's nodes reach it.
_ON_ITS_NODE = 'exec "$0" "$@" --host "$(hostname)"'


@dataclass(frozen=True)
class Component:
    """The part of a heterogeneous job that is to serve."""

    attempt: str
    """Job and attempt, for names that no other attempt has."""
    nodes: int
    """Machines."""
    tasks: int
    """Servers on all of them together."""
    cpus_per_task: int
    """CPUs of each."""

    def gpus_per_task(self, cluster: ClusterConfig) -> int:
        """GPUs of each server, which may shard the model among them; none on a cluster without."""
        if not cluster.gpus_per_node:
            return 0
        return max(cluster.gpus_per_node * self.nodes // self.tasks, 1)

    @classmethod
    def read(cls) -> "Component | None":
        """The second component that SLURM describes in our environment; None where is none."""
        if int(os.environ.get("SLURM_HET_SIZE", "1")) <= _GROUP:
            return None
        nodes = _of_group("JOB_NUM_NODES", 1)
        tasks = _of_group("NTASKS", nodes)
        return cls(
            attempt=f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}",
            nodes=nodes,
            tasks=tasks,
            cpus_per_task=max(_of_group("JOB_CPUS_PER_NODE", 1) * nodes // tasks, 1),
        )


def _of_group(name: str, otherwise: int) -> int:
    """A number that SLURM says of the component; of "8(x2)", 8 on each of two nodes, the first."""
    found = re.match(r"\d+", os.environ.get(f"SLURM_{name}_HET_GROUP_{_GROUP}", ""))
    return int(found[0]) if found else otherwise


@contextmanager
def servers(
    component: Component, cluster: ClusterConfig, command: Sequence[str], *, run_folder: Path,
    patience_s: float,
) -> Iterator[Path]:  # fmt: skip
    """Have servers on `component` while the block runs.

    Args:
        component: where.
        cluster: what this cluster wants.
        command: the run's file and overrides, as `mreason serve` takes them.
        run_folder: folder of the run.
        patience_s: seconds until all of them must have registered.

    Yields:
        The folder in which all have registered.

    Raises:
        LaunchError: they ended, or did not answer in time; the message quotes their log.
        StoppedError: a signal told us to leave while we waited.
    """
    folder = run_folder / "servers" / component.attempt
    log = run_folder / "logs" / "servers.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    told = [sys.executable, "-m", "megatron_reason.cli.app", "serve", *command]
    told += ["--register", str(folder), "--port", "0"]
    if gpus := component.gpus_per_task(cluster):
        told += ["--gpus", str(gpus)]
    with interruptible("the servers"), log.open("ab") as stream:
        begin = stream.tell()
        process = subprocess.Popen(
            [*_srun(component, cluster), "bash", "-c", _ON_ITS_NODE, *told],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            _LOG.info(
                "%d servers start on %d nodes; log: %s", component.tasks, component.nodes, log
            )
            what = _await(process, folder, component.tasks, patience_s)
            if what is not None:
                tail = log.read_bytes()[begin:].decode(errors="replace").splitlines()[-_MOST_LINES:]
                raise LaunchError(
                    f"{component.tasks} servers on {component.nodes} nodes",
                    "\n  ".join([what, *tail]),
                    f"Mend the cause and run again. Logs: {log}, {log.parent}/server-*.log",
                )
            _LOG.info("%d servers answer", component.tasks)
            yield folder
        finally:
            _end(process)
            shutil.rmtree(folder, ignore_errors=True)


def _srun(component: Component, cluster: ClusterConfig) -> list[str]:
    gpus = component.gpus_per_task(cluster)
    return [
        "srun", f"--het-group={_GROUP}", f"--nodes={component.nodes}",
        f"--ntasks={component.tasks}", f"--cpus-per-task={component.cpus_per_task}",
        *([f"--gpus-per-task={gpus}"] if gpus else []),
        "--export=ALL", "--mpi=none", "--kill-on-bad-exit=1", "--label", "--unbuffered",
        *container_options(cluster), *cluster.srun_options,
    ]  # fmt: skip


def _await(
    process: "subprocess.Popen[bytes]", folder: Path, wanted: int, patience_s: float
) -> str | None:
    """Wait until so many have registered; answers with why they never will."""
    deadline = time.monotonic() + patience_s
    while (found := len(registered(folder))) < wanted:
        if (code := process.poll()) is not None:
            return f"they ended with exit code {code}; their log ends with:"
        if time.monotonic() > deadline:
            return f"{found} of {wanted} answered in {patience_s:.0f} s; their log ends with:"
        time.sleep(_POLL_S)
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Have srun tell its tasks to leave, and end it."""
    if (code := process.poll()) is not None:
        _LOG.warning("the servers have ended before us, with exit code %d", code)
        return
    # srun passes on USR1; at TERM it would kill the tasks at once.
    process.send_signal(signal.SIGUSR1)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
