"""What a process does when it is told to stop: SIGTERM, or SIGUSR1 some time before it.

Not here: what workers save then (`training`).
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from megatron_reason.errors import StoppedError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def stopped_by(number: int, what: str) -> StoppedError:
    """The error that says that signal `number` ended `what`."""
    return StoppedError(
        what,
        f"stopped by {signal.Signals(number).name}; what was finished is kept.",
        "The same command goes on from there.",
    )


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have `handler` called on stop signals while the block runs; main thread only.

    In other threads this does nothing: signals are the main thread's business.
    """
    try:
        before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def interruptible(what: str) -> Iterator[None]:
    """Make a stop signal raise `StoppedError` in the main thread, so that cleaning up happens."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's protocol
        raise stopped_by(number, what)

    with stop_signals(leave):
        yield
