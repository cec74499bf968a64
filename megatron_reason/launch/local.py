"""Worker processes on this machine, through torchrun in a subprocess. No torch here.

Whatever ends us ends the workers: an exception ends them in order, a signal lets them save first,
and the kernel tells torchrun when we are killed outright. Not here: what the workers do.
"""

import itertools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from megatron_reason.errors import LaunchError, StoppedError
from megatron_reason.launch.base import Job, Rendezvous
from megatron_reason.launch.signals import interruptible, stop_signals, stopped_by

WORKER_ENVIRONMENT = {
    # Activations come and go by the 10 MB: without huge pages a CPU spends 7 % of a forward pass
    # on page faults.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""What workers find in their environment unless the user has set it."""
_TAIL_LINES = 25
_GRACE_S = 15.0
# torchrun in an interpreter that is told when we die, and that survives SIGUSR1, which some SLURMs
# hand to every process of a step; a handler, unlike an ignored signal, does not reach the workers.
_BOOTSTRAP = (
    "import ctypes, os, runpy, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM)\n"
    "sys.exit(1) if os.getppid() != int(sys.argv.pop(1)) else None\n"
    "signal.signal(signal.SIGUSR1, lambda *_: None)\n"
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)\n"
)
# srun's label of the node, then torchrun's and torch's of the rank: on the node, and of all.
_RANK_PREFIX = re.compile(
    r"^(?:\s*\d+: )?(?:\[(?:default(?P<local>\d+)|rank(?P<rank>\d+)|\d+)\]:\s?)*"
)
_NOTE = re.compile(r"^rank \d+, ")
_TORCHRUN_REPORT = "ChildFailedError"
_TRACEBACK = "Traceback (most recent call last):"
_INTERRUPTED = re.compile(r"\bStoppedError  (.*)$")
# What the processes that are left say when others went away with their machine.
_LOST_PEER = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|ncclRemoteError|remote process exited|"
    r"NCCL communicator was aborted|Watchdog caught collective|failed to connect|Socket Timeout|"
    r"DistNetworkError|DistStoreError|RendezvousTimeout|No route to host|Connection timed out",
    re.IGNORECASE,
)
# What torchrun says of each rank that failed.
_FAILED = re.compile(
    r"^ *rank +: (?P<rank>\d+) \(local_rank: (?P<local>\d+)\)\n *exitcode +: (?P<code>-?\d+) ",
    re.MULTILINE,
)
_KILLED = re.compile(r"Signal 9 \(SIGKILL\) received by PID")
_REASON = re.compile(r"^megatron_reason\.errors\.\w+: (\w+Error)  (.*)$")


class LocalLauncher:
    """Starts `processes` workers with torchrun and waits for them.

    Args:
        rendezvous: where they meet the workers of other nodes; None where there are none.
    """

    def __init__(self, rendezvous: Rendezvous | None = None) -> None:
        self._rendezvous = rendezvous

    def run(self, job: Job) -> None:
        """Run `job`; its output is shown as it comes and kept in `job.log_file`.

        Raises:
            LaunchError: a worker ended with an error; the message is the worker's own if it was a
                ReasonError, else the end of its log.
            StoppedError: the workers left because a signal asked us or them to.
        """
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        job.log_file.touch()
        begin = job.log_file.stat().st_size
        with (
            _workers(job, self._rendezvous) as process,
            _pass_on_stop_signals(process, job) as received,
        ):
            _copy_output(process, job)
            code = process.wait()
        if not code:
            return
        output = job.log_file.read_bytes()[begin:]
        if wish := interruption(plain_lines(output)):
            raise wish
        if received:
            raise stopped_by(received[0], job.name)
        raise _failure(job, code, output)


def torchrun_command(job: Job, rendezvous: Rendezvous | None = None) -> list[str]:
    """Arguments of the Python interpreter that run `job`, as one would type them."""
    meeting = ["--standalone"]
    if rendezvous is not None:
        meeting = [
            "--nnodes", str(rendezvous.nodes), "--node-rank", str(rendezvous.node),
            "--master-addr", rendezvous.address, "--master-port", str(rendezvous.port),
            "--rdzv-id", rendezvous.id,
            # What each rank wrote, apart from the others.
            "--log-dir", str(job.log_file.with_suffix("")), "--tee", "3",
        ]  # fmt: skip
    return [
        "-m", "torch.distributed.run", *meeting, "--nproc-per-node", str(job.processes),
        "-m", job.module, *job.arguments,
    ]  # fmt: skip


@contextmanager
def _workers(job: Job, rendezvous: Rendezvous | None) -> Iterator[subprocess.Popen[bytes]]:
    """The running torchrun; on any exception, SIGTERM included, its whole tree is ended."""
    environment = {
        **WORKER_ENVIRONMENT,
        **os.environ,
        **job.environment,
        "OMP_NUM_THREADS": str(job.threads_per_process),
        "PYTHONUNBUFFERED": "1",
    }
    with interruptible(job.name):
        command = ["-c", _BOOTSTRAP, str(os.getpid()), *torchrun_command(job, rendezvous)[1:]]
        process = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches us alone; we then end the workers in order.
            start_new_session=True,
        )
        is_over = False
        try:
            yield process
            is_over = True
        finally:
            if not is_over:
                _end_tree(process)
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def _pass_on_stop_signals(process: subprocess.Popen[bytes], job: Job) -> Iterator[list[int]]:
    """Hand the first stop signal to the workers, which save and leave; a second one is final.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's protocol
        received.append(number)
        if len(received) > 1:
            raise stopped_by(number, job.name)
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if job.module in child.cmdline():
                    child.send_signal(signal.SIGUSR1)

    with stop_signals(pass_on):
        yield received


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End torchrun and all it started; the workers are sessions of their own."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(tree, timeout=_GRACE_S)


def _copy_output(process: subprocess.Popen[bytes], job: Job) -> None:
    assert process.stdout is not None, "opened as a pipe"
    with job.log_file.open("ab") as log:
        while block := os.read(process.stdout.fileno(), 1 << 16):
            log.write(block)
            log.flush()
            sys.stderr.write(block.decode(errors="replace"))
            sys.stderr.flush()


def plain_lines(output: bytes) -> list[str]:
    """Lines of a log, without what srun and torchrun put before them."""
    return [_RANK_PREFIX.sub("", line) for line in output.decode(errors="replace").splitlines()]


def interruption(lines: list[str]) -> StoppedError | None:
    """What the workers said when they left on request."""
    for index, line in enumerate(lines):
        if (found := _INTERRUPTED.search(line)) and len(lines) > index + 2:
            return StoppedError(
                found.group(1), *(text.strip() for text in lines[index + 1 : index + 3])
            )
    return None


def _failure(job: Job, code: int, output: bytes) -> LaunchError:
    ended = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return LaunchError(
        f"{job.name} ({ended})",
        "\n  ".join(_cause(output)),
        f"The whole log is {job.log_file}; mend the cause and run again.",
    )


def says_peer_lost(text: str) -> bool:
    """Whether an error only tells that processes elsewhere went away."""
    return _LOST_PEER.search(text) is not None


def _cause(output: bytes) -> list[str]:
    """The ranks' first error that is their own, else their first; the last lines where is none."""
    text = output.decode(errors="replace")
    failed = [found.groupdict() for found in _FAILED.finditer(text)]
    by_rank = _lines_by_rank(text, first=_first_rank(failed))
    # torchrun's own report of the failure has no rank, nor has what a worker says before its ranks
    # know each other.
    unranked = _cause_of_rank(by_rank.pop("", []))
    if unranked and _TORCHRUN_REPORT not in unranked[-1]:
        unranked = _naming(unranked, [one["rank"] for one in failed if int(one["code"]) > 0])
    causes = [
        _naming(found, [rank])
        for rank, lines in by_rank.items()
        if (found := _cause_of_rank(lines))
    ]
    own = [found for found in causes if not says_peer_lost("\n".join(found))]
    if not own and _KILLED.search(text):
        killed = [one["rank"] for one in failed if int(one["code"]) == -signal.SIGKILL]
        who = f"{_ranks(killed) or 'a worker'} {'were' if len({*killed}) > 1 else 'was'}"
        own = [[f"{who} killed (SIGKILL), as the kernel does when memory runs out."]]
    tail = ["the log ends with:", *plain_lines(output)[-_TAIL_LINES:]]
    return next(iter([*own, *causes]), unranked or tail)


def _first_rank(failed: Sequence[Mapping[str, str]]) -> int:
    """First rank of the node whose torchrun reports these; 0 where there are none."""
    return next((int(one["rank"]) - int(one["local"]) for one in failed), 0)


def _lines_by_rank(text: str, *, first: int) -> dict[str, list[str]]:
    """Lines of each rank, "" being nobody's; on this node they count from `first`."""
    by_rank: dict[str, list[str]] = {}
    for line in text.splitlines():
        prefix = _RANK_PREFIX.match(line)
        assert prefix is not None, "everything in the pattern is optional"
        local = prefix["local"]
        rank = prefix["rank"] or (str(first + int(local)) if local else "")
        by_rank.setdefault(rank, []).append(_RANK_PREFIX.sub("", line))
    return by_rank


def _cause_of_rank(lines: list[str]) -> list[str]:
    """A worker's own ReasonError, else its first traceback, with its notes; empty where is none."""
    for index, line in enumerate(lines):
        if found := _REASON.match(line):
            rest = itertools.dropwhile(_is_indented, lines[index + 3 :])
            notes = itertools.takewhile(_NOTE.match, rest)
            return [line[found.start(1) :], *lines[index + 1 : index + 3], *notes]
    first = next((index for index, line in enumerate(lines) if line.startswith(_TRACEBACK)), None)
    if first is None:
        return []
    inner = range(first + 1, len(lines))
    end = next((index for index in inner if not _is_indented(lines[index])), len(lines) - 1)
    notes = itertools.takewhile(_NOTE.match, lines[end + 1 :])
    return [_TRACEBACK, *lines[max(first + 1, end - _TAIL_LINES) : end + 1], *notes]


def _is_indented(line: str) -> bool:
    return line.startswith(" ")


def _naming(cause: list[str], ranks: Sequence[str]) -> list[str]:
    """`cause` with a last line that says whose it is, unless a note of its own does."""
    return cause if not ranks or _NOTE.match(cause[-1]) else [*cause, _ranks(ranks)]


def _ranks(numbers: Sequence[str]) -> str:
    """The ranks in words; empty where there are none."""
    ordered = sorted({*numbers}, key=int)
    word = "rank" if len(ordered) == 1 else "ranks"
    return f"{word} {', '.join(ordered)}" if ordered else ""
