"""One process at a time works on a run folder.

The kernel holds the lock (flock), so that a process that is killed cannot leave a stale one; the
file's text only tells people who holds it. Not here: locks between stages; they run one by one.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_reason.errors import LaunchError

LOCK = ".lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the run folder `folder`, which is made if need be.

    Raises:
        LaunchError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            raise LaunchError(
                str(folder),
                f"another process works on this run: {stream.read().strip() or 'unknown'}.",
                "Wait for it or stop it, or give this run another name: --set run.name=...",
            ) from error
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
