"""Worker processes on the nodes of a SLURM job: one srun step, one torchrun on each node. No Ray.

Works inside a job: the allocation is read from the variables SLURM sets, the nodes meet at the
first of them under the job's id. A node that goes away is told apart from a worker that fails, so
that the one starts again and the other does not. Not here: submitting jobs (`batch.py`).
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError, NodeLostError
from megatron_reason.launch.base import Job, Rendezvous
from megatron_reason.launch.local import interruption, plain_lines
from megatron_reason.launch.node import MODULE, REPORT, error_file, node_log, write_step
from megatron_reason.launch.signals import interruptible, stop_signals, stopped_by
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)
_GRACE_S = 20.0
"""How long the other nodes may take to notice that one has failed."""
_MOST_SKEW_S = 30.0
_MOST_LINES = 40
_GOOD_ENDS = ("finished", "stopped")
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
_REPORTED = re.compile(rf"^\s*(\d+): {REPORT} (\w+)(.*)$", re.MULTILINE)
# What srun says when it could not start all tasks, for reasons that another attempt may not meet.
_NOT_LAUNCHED = re.compile(
    r"Node failure|launch failed|Unable to confirm allocation|Job credential|Zero Bytes|"
    r"Socket timed out|Communication connection failure|Unable to create step|timed? ?out",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Allocation:
    """The job we run in."""

    job_id: str
    restarts: int
    nodes: tuple[str, ...]
    """Host names, in SLURM's order."""
    cpus_per_node: int

    @classmethod
    def read(cls) -> "Allocation":
        """The allocation that SLURM describes in our environment.

        Raises:
            LaunchError: this process is not part of a job.
        """
        wanted = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_CPUS_ON_NODE")
        if missing := [name for name in wanted if name not in os.environ]:
            raise LaunchError(
                "launch.cluster",
                f"this is not a job of a cluster: {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not set.",
                "Submit with `mreason run CONFIG --on NAME` or `sbatch slurm/...`, or set "
                "launch.cluster: local.",
            )
        listed = _output_of(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]])
        return cls(
            os.environ["SLURM_JOB_ID"],
            int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            tuple(listed.split()),
            int(os.environ["SLURM_CPUS_ON_NODE"]),
        )

    def require(self, nodes: int) -> None:
        """Refuse a job that is smaller than what is to run in it.

        Raises:
            LaunchError: it has too few nodes.
        """
        if len(self.nodes) < nodes:
            raise LaunchError(
                "launch.nodes",
                f"{nodes} nodes are asked for; job {self.job_id} has {len(self.nodes)} "
                f"({', '.join(self.nodes)}).",
                f"Submit with sbatch --nodes={nodes}, or set launch.nodes: {len(self.nodes)}.",
            )


class SlurmLauncher:
    """Starts the workers of a job on the first nodes of the allocation we run in.

    Args:
        cluster: what this cluster wants.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster

    def run(self, job: Job) -> None:
        """Run `job`; its output is shown as it comes and kept in `job.log_file`.

        Raises:
            LaunchError: no allocation, one that is too small, or a worker that ended with an error.
            NodeLostError: a node went away, or the step could not be started on all of them.
            StoppedError: the workers left because a signal asked us or them to.
        """
        allocation = Allocation.read()
        allocation.require(job.nodes)
        step = job.log_file.with_suffix(".step.json")
        rendezvous = Rendezvous(
            nodes=job.nodes,
            node=0,
            address=allocation.nodes[0],
            port=free_port(allocation.job_id, allocation.restarts),
            id=f"{allocation.job_id}.{allocation.restarts}.{job.log_file.stem}",
        )
        write_step(step, job, rendezvous)
        command = [*self._srun(job.nodes, allocation), sys.executable, "-m", MODULE, str(step)]
        with _step(command, job) as (process, received):
            output = _follow(process, job)
            code = process.wait()
        text = output.decode(errors="replace")
        _warn_of_skew(text, allocation.nodes)
        if wish := interruption(plain_lines(output)):
            raise wish
        if received:
            raise stopped_by(received[0], job.name)
        if code or len(_states(text, "finished")) < job.nodes:
            raise failure(job, text, allocation.nodes[: job.nodes])

    def _srun(self, nodes: int, allocation: Allocation) -> list[str]:
        return [
            "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
            f"--nodelist={','.join(allocation.nodes[:nodes])}",
            # A step does not inherit the job's CPUs, and would be bound to a single one.
            f"--cpus-per-task={allocation.cpus_per_node}", "--export=ALL", "--mpi=none",
            # We decide when a failure ends the others, see `_follow`.
            "--kill-on-bad-exit=0", "--label", "--unbuffered",
            *container_options(self._cluster), *self._cluster.srun_options,
        ]  # fmt: skip


def container_options(cluster: ClusterConfig) -> list[str]:
    """What srun is told of the cluster's container; empty where there is none."""
    if not cluster.container:
        return []
    mounts = [f"--container-mounts={','.join(cluster.mounts)}"] if cluster.mounts else []
    return [f"--container-image={cluster.container}", *mounts]


def free_port(job_id: str, restarts: int) -> int:
    """A port of this host that nobody listens on; another one for every job and attempt.

    Raises:
        LaunchError: a hundred ports in a row are taken.
    """
    number = int(re.sub(r"\D", "", job_id) or 0) * 31 + restarts * 7
    first = _FIRST_PORT + number % _NUM_PORTS
    for port in range(first, first + 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                _LOG.warning("port %d of %s is taken; trying the next", port, socket.gethostname())
                continue
            return port
    raise LaunchError(
        socket.gethostname(), f"ports {first} to {first + 99} are all taken.",
        "Look who holds them (`ss -ltnp`), or submit again: another job takes other ports.",
    )  # fmt: skip


def failure(job: Job, output: str, nodes: Sequence[str]) -> LaunchError:
    """Why a step did not end well: a node that went away, or a worker's own error.

    Args:
        job: what was run.
        output: all the step wrote, each line with the index of its node.
        nodes: their names.
    """
    where = f"{job.name} on {len(nodes)} nodes"
    logs = f"Logs of each node and rank: {job.log_file.with_suffix('')}.node*"
    for node in sorted(_states(output, "failed")):
        return LaunchError(
            where,
            f"node {node} ({nodes[node]}): {_reason(job.log_file, node)}",
            f"Mend the cause and run again. {logs}",
        )
    if _states(output, "started"):
        spoke = set[int]().union(*(_states(output, word) for word in ("lost", *_GOOD_ENDS)))
        silent = [name for index, name in enumerate(nodes) if index not in spoke]
        who = f"{', '.join(silent)} went silent" if silent else "the nodes lost sight of each other"
        return NodeLostError(
            where, f"{who}; no worker reported an error of its own.",
            f"The same job may go on from its last checkpoint. {logs}",
        )  # fmt: skip
    said = "\n  ".join(output.strip().splitlines()[-5:]) or "nothing"
    if _NOT_LAUNCHED.search(output):
        return NodeLostError(where, f"srun could not start it: {said}", "Submit the job again.")
    return LaunchError(
        where,
        f"no node started a worker; srun says: {said}",
        "Check srun_options, container and activate in the cluster's file.",
    )


@contextmanager
def _step(command: list[str], job: Job) -> Iterator[tuple["subprocess.Popen[bytes]", list[int]]]:
    """The running srun, and the stop signals received; the first is handed to all its tasks."""
    received: list[int] = []
    environment = {**os.environ, **job.environment}
    with interruptible(job.name):
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

        def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            received.append(number)
            if len(received) > 1:
                raise stopped_by(number, job.name)
            # srun forwards USR1; at TERM it would kill the tasks at once.
            process.send_signal(signal.SIGUSR1)

        try:
            with stop_signals(pass_on):
                yield process, received
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _follow(process: "subprocess.Popen[bytes]", job: Job) -> bytes:
    """Copy the step's output to console and log; end the step some time after a node has failed.

    Returns:
        All the output, read back from the log: it may be that of days.
    """
    assert process.stdout is not None, "opened as a pipe"
    stream, begun_line, deadline = process.stdout.fileno(), b"", None
    with job.log_file.open("ab") as log:
        begin = log.tell()
        while True:
            if select.select([stream], [], [], 1.0)[0]:
                block = os.read(stream, 1 << 16)
                if not block:
                    return job.log_file.read_bytes()[begin:]
                log.write(block)
                log.flush()
                sys.stderr.write(block.decode(errors="replace"))
                sys.stderr.flush()
                lines, _, begun_line = (begun_line + block).rpartition(b"\n")
                text = lines.decode(errors="replace")
                if deadline is None and _states(text, "failed") | _states(text, "lost"):
                    deadline = time.monotonic() + _GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                process.terminate()
                deadline = None


def _states(output: str, state: str) -> set[int]:
    """Indices of the nodes that have reported `state`."""
    return {int(node) for node, found, _ in _REPORTED.findall(output) if found == state}


def _reason(log_file: Path, node: int) -> str:
    """Why a node failed, as it wrote itself; the end of its log where that has not arrived."""
    log = node_log(log_file, node)
    for path in (error_file(log), log):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            return "\n  ".join(text.splitlines()[-_MOST_LINES:])
    return f"see {log}"


def _warn_of_skew(output: str, nodes: Sequence[str]) -> None:
    """Say so where the nodes' clocks or versions of the package differ."""
    started = {
        int(node): rest.split() for node, state, rest in _REPORTED.findall(output)
        if state == "started"
    }  # fmt: skip
    clocks = {nodes[node]: float(words[0]) for node, words in started.items()}
    if clocks and max(clocks.values()) - min(clocks.values()) > _MOST_SKEW_S:
        _LOG.warning("the nodes' clocks, or their start, are far apart: %s", clocks)
    if len({words[1] for words in started.values()}) > 1:
        _LOG.warning("the nodes run different versions of megatron_reason: %s", started)


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise LaunchError(
            " ".join(command), f"it failed: {str(said).strip()}.", "Run it by hand; mend the cause."
        ) from error
    return done.stdout
