"""One process at a time works on a stage of a run folder; on different stages several may.

The kernel holds the locks (flock), so that a process that is killed cannot leave a stale one; a
file's text only tells people who holds it. Not here: the order of stages (`execute.py`).
"""

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from megatron_reason.errors import LaunchError

LOCKS = ".locks"


@contextmanager
def stage_locks(folder: Path, stages: Sequence[str]) -> Iterator[None]:
    """Hold the locks of some stages of the run folder `folder`, which is made if need be.

    Raises:
        LaunchError: another process holds one, or the folder cannot be written to.
    """
    try:
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for stage in stages:
                stack.enter_context(_lock(folder, stage))
            yield
    except PermissionError as error:
        raise LaunchError(
            str(folder), f"the run folder cannot be written to: {error.strerror}.",
            "Give another with --set run.dir=..., or mend its permissions.",
        ) from error  # fmt: skip


@contextmanager
def _lock(folder: Path, stage: str) -> Iterator[None]:
    with (folder / LOCKS / stage).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise LaunchError(
                str(folder),
                f"another process works on stage '{stage}' of this run: "
                f"{stream.read().strip() or 'unknown'}.",
                "Wait for it or stop it, or give this run another name: --set run.name=...",
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
