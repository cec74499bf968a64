"""Several stages of a run at once on one machine: each in a process of its own, inputs first.

The first failure stops what has not begun; what runs is finished, and kept. A stop signal goes to
every process, whose stage saves and leaves. Not here: what a stage does (`stages.py`), and machines
of a cluster, on which `graph.py` makes stages jobs.
"""

import ctypes
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from types import FrameType

import psutil

from megatron_reason.errors import LaunchError, ReasonError
from megatron_reason.launch.signals import stop_signals, stopped_by
from megatron_reason.logs import setup_logging

Work = Callable[[str], None]
"""Does the stage of that name; a function of a module, or a `partial` of one."""


def run_side_by_side(inputs: Mapping[str, Sequence[str]], work: Work, *, at_once: int) -> None:
    """Do every stage after those of its inputs that are to be done, too.

    Args:
        inputs: the stages, in order, and the names of what each reads.
        work: what does one of them.
        at_once: processes.

    Raises:
        ReasonError: the first that a stage ended with, after the others that ran have ended.
        StoppedError: a signal asked to stop.
        LaunchError: a process was killed.
    """
    waiting, running, failures = list(inputs), dict[Future[None], str](), list[ReasonError]()
    parent = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's protocol
        failures.insert(0, stopped_by(number, "the run"))
        _tell_to_stop()

    with (
        ProcessPoolExecutor(
            at_once, get_context("spawn"), initializer=_settle, initargs=(parent,)
        ) as pool,
        stop_signals(stop),
        _interrupts_passed_on(),
    ):
        while waiting or running:
            unfinished = {*waiting, *running.values()}
            ready = [name for name in waiting if not unfinished.intersection(inputs[name])]
            for name in ready[: at_once - len(running)] if not failures else ():
                waiting.remove(name)
                running[pool.submit(_watched, work, name, parent)] = name
            if not running:
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(done)
                try:
                    done.result()
                except ReasonError as error:
                    failures.append(error)
                except BrokenProcessPool:
                    failures.append(_killed(name))
    if failures:
        raise failures[0]


@contextmanager
def _interrupts_passed_on() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _tell_to_stop()
        raise


def _tell_to_stop() -> None:
    """Have every process end its stage in order."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGTERM)


def _killed(name: str) -> LaunchError:
    return LaunchError(
        f"stage '{name}'",
        "its process was killed, as the kernel does when memory runs out, or one beside it.",
        "The same command goes on from there; lower launch.stages_at_once if memory is short.",
    )


def _settle(parent: int) -> None:
    """Make this process end with its parent, and its lines fit between those of others."""

    def leave_if_alone(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - protocol
        _leave_if_alone(parent)

    # Between two stages there is nothing to stop; during one its own handler is asked.
    signal.signal(signal.SIGTERM, leave_if_alone)
    # Ctrl-C reaches the whole group; the parent then tells each process once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    _leave_if_alone(parent)
    sys.stderr = _Lines(os.fdopen(os.dup(2), "wb"), line_buffering=True)
    setup_logging()


def _watched(work: Work, name: str, parent: int) -> None:
    try:
        work(name)
    finally:
        _leave_if_alone(parent)


def _leave_if_alone(parent: int) -> None:
    """End at once where the process that would hear of the stage's end is no more."""
    if os.getppid() != parent:
        os._exit(1)


class _Lines(io.TextIOWrapper):
    """A terminal that several processes write to: no bars, only lines."""

    def isatty(self) -> bool:
        """No."""
        return False
