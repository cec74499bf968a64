"""A Python process of our own that is talked to over a pipe and never outlives us.

The child leads a process group, so that killing the group ends whatever it started too; it watches
for our death and then ends its group by itself. It hands errors back by dying: its traceback is in
its log file, whose end every `EngineDiedError` quotes. Not here: what is said over the pipe.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from megatron_reason.errors import EngineDiedError

_BOOTSTRAP = (
    "import sys, json\n"
    "sys.path[:] = json.loads(sys.argv[1])\n"
    "from megatron_reason.generation.child import enter\n"
    "enter(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))\n"
)
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
_LAUNCHER_PREFIXES = ("MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_", "VLLM_")
_POLL_S = 0.5
_LAST_WORDS_S = 10.0
_QUOTED_CHARACTERS = 1500


class Child:
    """One child process and our end of its pipe.

    Args:
        entry: `module:function` the child calls with its end of the pipe.
        log_path: file its stdout and stderr are appended to.
        environment: variables set for it, beside ours; those of a distributed launcher are removed,
            because the child is no rank of our job, and so are vLLM's, because they override what
            its configuration says.
    """

    def __init__(self, entry: str, log_path: Path, *, environment: Mapping[str, str]) -> None:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path = log_path
        self._connection, theirs = Pipe(duplex=True)
        inherited = {name: value for name, value in os.environ.items() if not _of_launcher(name)}
        arguments = (json.dumps(sys.path), entry, str(theirs.fileno()), str(os.getpid()))
        with theirs, log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, **environment},
                # A group of its own: to be killed whole, and spared our terminal's Ctrl-C.
                start_new_session=True,
            )
        self._kill = weakref.finalize(self, _kill_group, self._process)

    @property
    def pid(self) -> int:
        """Process id; the id of its process group, too."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def send(self, message: object, timeout_s: float) -> None:
        """Send a message.

        Args:
            message: anything that can be pickled.
            timeout_s: seconds after which a child that does not read it counts as hung; it is then
                killed.

        Raises:
            EngineDiedError: the child is gone, or was hung.
        """
        # A message larger than the pipe's buffer waits for its reader; only a death ends that.
        watchdog = threading.Timer(timeout_s, self._kill)
        watchdog.start()
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._dead() from error
        finally:
            watchdog.cancel()

    def receive(self, timeout_s: float, awaited: str) -> object:
        """Next message of the child.

        Args:
            timeout_s: seconds of silence after which it counts as hung; it is then killed.
            awaited: what should have come, for the error message ("the engine to start").

        Raises:
            EngineDiedError: the child died or hung.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._connection.poll(_POLL_S):
            # A grandchild may hold the pipe open, so its end alone does not tell of a death.
            if self._process.poll() is not None and not self._connection.poll(0):
                raise self._dead()
            if time.monotonic() > deadline_s:
                self.close()
                raise EngineDiedError(
                    str(self.log_path),
                    f"waited {timeout_s:.0f} s for {awaited}; the engine was killed.\n"
                    f"{self._tail()}",
                    "Look into the log above; raise the timeouts of section 'engine' if it was "
                    "only slow.",
                )
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._dead() from error

    def close(self, timeout_s: float = 0.0) -> None:
        """End the child and all it started; it is killed unless it ends within `timeout_s`."""
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._kill()

    def _dead(self) -> EngineDiedError:
        # A crashing interpreter closes the pipe before it has written its traceback.
        self.close(_LAST_WORDS_S)
        return EngineDiedError(
            str(self.log_path),
            f"the generation engine (process {self.pid}) ended with exit code "
            f"{self._process.returncode}.\n{self._tail()}",
            "Look into the log above; run the stage again to continue where it stopped.",
        )

    def _tail(self) -> str:
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return text[-_QUOTED_CHARACTERS:].strip()


def enter(entry: str, descriptor: int, parent: int) -> None:
    """First thing a child does: watch over `parent`, then call `entry` with the pipe.

    Signals that ask a job to save and leave, which some SLURMs hand to each of its processes, are
    the parent's: it may need answers until it has saved.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    module, _, function = entry.partition(":")
    with Connection(descriptor) as connection:
        getattr(importlib.import_module(module), function)(connection)


def _end_with(parent: int) -> None:
    # Not PR_SET_PDEATHSIG: it fires when the *thread* that started us ends.
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os.killpg(0, signal.SIGKILL)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _of_launcher(name: str) -> bool:
    return name in _LAUNCHER_VARIABLES or name.startswith(_LAUNCHER_PREFIXES)
