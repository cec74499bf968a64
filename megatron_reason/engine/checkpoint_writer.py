"""One rank's part of a checkpoint, written by a process of its own while the rank trains on.

A forked process has the tensors as they were at the fork: on a CPU nothing is copied but the pages
that training changes meanwhile, and from a GPU the tensors come to host memory first. A fork may
catch another thread with a lock that then stays locked for ever, so the process has to say that it
lives, and is replaced, before the rank trains on, if it does not. One that gets stuck later is
given up. Not here: what is written, and when it counts (`checkpoint_saver.py`).
"""

import ctypes
import gc
import io
import multiprocessing
import os
import queue
import signal
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import psutil
import torch
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

from megatron_reason.engine.checkpoint_folder import Sums, sums_of
from megatron_reason.errors import CheckpointError
from megatron_reason.logs import get_logger

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_LOG = get_logger(__name__)
_PR_SET_PDEATHSIG = 1
_BEGIN_TIMEOUT_S = 20.0
"""A process is forked and says that it lives within hundredths of a second."""
_END_TIMEOUT_S = 10.0
_ATTEMPTS = 3
_STUCK_AFTER_S = 240.0
"""Nothing is seen to happen while a disk makes a file durable. Told at the latest after twice this
time, before NCCL gives up on the other ranks, which wait (10 minutes)."""


@dataclass(frozen=True)
class Written:
    """What became of a rank's part."""

    results: Mapping[int, Sequence[Any]] | Exception | None
    """What Megatron's writer says of each file, or why there is none; None if this rank had
    nothing to write."""
    sums: Sums = field(default_factory=dict[str, tuple[int, int]])
    """Bytes and CRC-32 of each file."""


class CheckpointWriter:
    """The process that writes this rank's part; started by the constructor.

    Args:
        request: what `dist_checkpointing.save(..., async_sharded_save=True)` returned.

    Raises:
        CheckpointError: no process that was forked came to life.
    """

    def __init__(self, request: AsyncRequest) -> None:
        self._process: ForkProcess | None = None
        if request.async_fn is None:
            return
        assert isinstance(request.async_fn, partial), "Megatron binds the transforms of its writer"
        buckets = request.async_fn_args[1]
        if request.preload_fn is not None:
            buckets = request.preload_fn()
        self._files = [Path(bucket[0]) for bucket in buckets]
        for _ in range(_ATTEMPTS):
            self._fork(request.async_fn.args[0], buckets)
            if self._is_alive():
                return
            _LOG.warning("the process that writes the checkpoint got stuck at its start: again")
            self.cancel()
            self._pipe.close()
        raise CheckpointError(
            str(self._files[0].parent),
            f"{_ATTEMPTS} processes to write it were started, and each got stuck at once.",
            "Start the run again: it goes on from the checkpoint before.",
        )

    def _fork(self, transforms: list[Any], buckets: Sequence[Any]) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, sender = context.Pipe(duplex=False)
        process = context.Process(target=_write, args=(os.getpid(), transforms, buckets, sender))
        process.start()
        sender.close()
        self._process = process

    def _is_alive(self) -> bool:
        """Whether the process has said so; of one that has ended `wait` tells."""
        if not self._pipe.poll(_BEGIN_TIMEOUT_S):
            return False
        with suppress(EOFError):
            self._pipe.recv()
        return True

    def is_done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._process is None or self._pipe.poll()

    def wait(self) -> Written:
        """What became of it, once it is done; to be called once."""
        if self._process is None:
            return Written(None)
        if not self._speaks():
            self.cancel()
            self._pipe.close()
            reason = (
                f"the process that writes it has done nothing for {_STUCK_AFTER_S:.0f} s; the disk "
                "may hang"
            )
            return Written(TimeoutError(reason))
        try:
            written: Written = self._pipe.recv()
        except EOFError:
            self._process.join()
            reason = f"the process that writes it ended with exit code {self._process.exitcode}"
            written = Written(RuntimeError(reason))
        self._process.join()
        self._pipe.close()
        return written

    def _speaks(self) -> bool:
        """Wait for its report as long as it computes or its files grow."""
        before: object = None
        while not self._pipe.poll(_STUCK_AFTER_S):
            if (now := self._progress()) == before:
                return False
            before = now
        return True

    def _progress(self) -> object:
        """Something that changes while the process works."""
        assert self._process is not None, "asked of a rank that writes nothing"
        sizes: list[int] = []
        for path in self._files:
            with suppress(OSError):
                sizes.append(path.stat().st_size)
        with suppress(psutil.NoSuchProcess):
            return sizes, psutil.Process(self._process.pid).cpu_times()[:2]
        return sizes

    def cancel(self) -> None:
        """End the process, whatever it has written."""
        if self._process is not None and self._process.is_alive():
            self._process.kill()
            # A process that waits for a disk dies when the disk answers, if it does.
            self._process.join(_END_TIMEOUT_S)


def keep_results_in_process() -> None:
    """Let Megatron's finalisation take the results from a plain queue of this process.

    By default it starts a manager process, which a rank killed with -9 would leave behind for ever.
    """
    writer: Any = filesystem_async
    if writer._results_queue is None:
        writer._results_queue = queue.Queue()


def hand_over(written: Written) -> None:
    """Put the results where Megatron's finalisation looks for them."""
    if written.results is not None:
        writer: Any = filesystem_async
        writer._results_queue.put(written.results)


def _write(parent: int, transforms: list[Any], buckets: Sequence[Any], sender: Connection) -> None:
    """Body of the process: write, sum, report."""
    # A collection could free tensors of a GPU that only the parent may touch.
    gc.disable()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    with ThreadPoolExecutor(len(buckets)) as threads:
        list(threads.map(_touch, buckets))
        sender.send(os.getpid())
        parts = list(threads.map(partial(_write_bucket, transforms), range(len(buckets)), buckets))
    results: dict[int, Sequence[Any]] = {}
    sums: dict[str, tuple[int, int]] = {}
    for index, outcome, part in parts:
        if isinstance(outcome, Exception):
            sender.send(Written(outcome))
            return
        results[index] = outcome
        sums |= part
    sender.send(Written(results, sums))


def _touch(_: object) -> None:
    """Use what writing uses: memory of torch's, in a thread."""
    torch.zeros(1).clone()


def _write_bucket(
    transforms: list[Any], index: int, bucket: tuple[Path, Any, Any]
) -> tuple[int, Sequence[Any] | Exception, Sums]:
    """Write one file: results or what went wrong, and its sums, which are those of its content.

    Megatron's own way is a process for each file, which waits for ever when the one that started it
    is killed. Its part for a single file serves with queues of this process.
    """
    summing = [_Summing(transform) for transform in transforms]
    results: queue.Queue[tuple[int, Sequence[Any] | Exception]] = queue.Queue()
    count: queue.Queue[int] = queue.Queue()
    count.put(index)
    writer: Any = filesystem_async.FileSystemWriterAsync
    writer.write_preloaded_data(summing, index, bucket, results, count, use_fsync=True)
    _, outcome = results.get()
    if isinstance(outcome, Exception):
        return index, outcome, {}
    path = Path(bucket[0])
    sums = sums_of([path], durable=True)
    if any(sums[path.name] != (one.size, one.crc) for one in summing):
        reason = f"{path.name} reads back otherwise than it was written"
        return index, OSError(reason), {}
    return index, outcome, sums


class _Summing:
    """Megatron's transform of what goes into a file, which also sums what it lets through.

    Args:
        transform: torch's; it is given the file, and what it returns is written to.
    """

    def __init__(self, transform: Any) -> None:  # noqa: ANN401 - torch keeps its type to itself
        self._transform = transform
        self.size = 0
        self.crc = 0

    def transform_save_stream(
        self,
        item: Any,  # noqa: ANN401 - passed on
        stream: BinaryIO,
    ) -> tuple[Any, list[str]]:
        """What the tensor or the bytes `item` are to be written to, and torch's words for it."""
        return self._transform.transform_save_stream(item, _Tap(self, stream))

    def add(self, block: "ReadableBuffer") -> None:
        """Count what goes into the file."""
        view = memoryview(block)
        self.size += view.nbytes
        self.crc = zlib.crc32(view, self.crc)


class _Tap(io.RawIOBase):
    """The way into a file, past `_Summing`; closing it leaves the file open."""

    def __init__(self, sums: _Summing, stream: BinaryIO) -> None:
        self._sums = sums
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, block: "ReadableBuffer") -> int:
        self._sums.add(block)
        return self._stream.write(block)

    def flush(self) -> None:
        self._stream.flush()
