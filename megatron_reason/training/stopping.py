"""A wish to stop, sent by signal, that all ranks follow after the same update.

A scheduler sends SIGUSR1 some time before it takes the machine away, and SIGTERM when it does.
Not here: what is saved then (`offline.py`), and who sends the signals (`launch`).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopWish:
    """Whether some rank was told to stop."""

    def __init__(self) -> None:
        self._received = 0

    def receive(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Note signal `number`; the signature is that of a handler."""
        self._received = number

    def agreed(self, device: torch.device) -> signal.Signals | None:
        """The signal that reached any rank, on all ranks; None if there was none."""
        received = torch.tensor(self._received, device=device)
        dist.all_reduce(received, op=dist.ReduceOp.MAX)
        return signal.Signals(int(received)) if int(received) else None


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Catch the signals that mean "save and leave" while the block runs."""
    wish = StopWish()
    before = {number: signal.signal(number, wish.receive) for number in SIGNALS}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
