"""Buckets of tensors from the trainer to all workers of all servers at once, by a collective.

The bytes leave the trainer once, however many servers there are: over NCCL between the memories of
GPUs, over gloo between CPUs. The group is one of its own, of rank 0 and the workers, who meet at a
store on the trainer's machine. It lives until something in it fails: a collective cannot go on
without one of its members, so then all leave, and the next transfer begins with a new group. Not
here: what is in a bucket (`buckets.py`), and the way of one worker alone (`bucket_server.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from megatron_reason import platform
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.bucket_server import address_towards
from megatron_reason.generation.buckets import Bucket, size_of, views

_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True)
class Meeting:
    """Where the workers of a server find their group."""

    host: str
    """The trainer's machine, as the server's reaches it."""
    port: int
    """Of the store there."""
    size: int
    """Members: the trainer's rank 0 and all workers of all servers."""
    first_rank: int
    """Of the server's first worker; the others follow."""


class Receiver:
    """A worker's place in the group.

    Args:
        meeting: where the group meets.
        worker: number of this worker in its server.

    Raises:
        GenerationError: the others do not come.
    """

    def __init__(self, meeting: Meeting, worker: int) -> None:
        where = f"{meeting.host}:{meeting.port}"
        try:
            store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=_TIMEOUT)
            self._group: platform.Collective | None = platform.process_group(
                store, meeting.first_rank + worker, meeting.size,
                host=address_towards(meeting.host, meeting.port), timeout=_TIMEOUT,
            )  # fmt: skip
        except (RuntimeError, EngineDiedError) as error:
            raise GenerationError(
                where,
                f"the trainer's group of {meeting.size} cannot be joined ({error}).",
                "Let the machines of engines and trainer reach each other on every TCP port.",
            ) from error

    def receive(self, memory: Tensor) -> None:
        """Fill `memory` (uint8, on this worker's device) with the bucket that is sent next.

        Raises:
            GenerationError: somebody left the group, now or before; this worker does, too.
        """
        try:
            if self._group is None:
                raise RuntimeError("this worker did, before")
            self._group.broadcast([memory], _from_trainer()).wait()
        except RuntimeError as error:
            # Whoever waits for what this worker would have passed on must not go on waiting.
            self._leave()
            raise GenerationError(
                "a bucket",
                f"it did not arrive: somebody left the group ({error}).",
                "See the logs of the trainer and of the other servers.",
            ) from error

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()
            self._group = None


class Sender:
    """The trainer's place in the group, which it opens for others to join.

    Args:
        towards: this machine's address as each server's machine reaches it, by the server's URL.
        workers: number of workers of each server, by URL.
    """

    def __init__(self, towards: Mapping[str, str], workers: Mapping[str, int]) -> None:
        self._store = TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False,
                                    timeout=_TIMEOUT)  # fmt: skip
        self._host = next(iter(towards.values()))
        self._size = 1 + sum(workers.values())
        self.meetings: dict[str, Meeting] = {}
        """What each server's workers have to know, by URL."""
        first = 1
        for url, host in towards.items():
            self.meetings[url] = Meeting(host, self._store.port, self._size, first)
            first += workers[url]
        self._group: platform.Collective | None = None
        self._under_way: dist.Work | None = None
        self._memory = torch.empty(0, dtype=torch.uint8, device=platform.device())

    def join(self) -> None:
        """Wait until all have come.

        Raises:
            EngineDiedError: somebody did not, in time.
        """
        try:
            self._group = platform.process_group(
                self._store, 0, self._size, host=self._host, timeout=_TIMEOUT
            )
        except RuntimeError as error:
            raise EngineDiedError(
                ", ".join(self.meetings),
                f"not all servers' workers came to the trainer's group ({error}).",
                "See their logs.",
            ) from error

    def begin(self, bucket: Bucket) -> None:
        """Send the tensors of a bucket, from any device; the one before must have been received."""
        assert self._group is not None, "`join` comes first"
        self._finish()
        entries = [entry for entry, _ in bucket]
        if size_of(entries) > self._memory.numel():
            self._memory = self._memory.new_empty(size_of(entries))
        memory = self._memory[: size_of(entries)]
        for place, (_, tensor) in zip(views(memory, entries), bucket, strict=True):
            place.copy_(tensor)
        self._under_way = self._group.broadcast([memory], _from_trainer())

    def close(self) -> None:
        """Leave the group, and with it whoever waits in it."""
        # The connections end with the last reference, and a transfer under way has one.
        self._under_way = None
        if self._group is not None:
            self._group.abort()
            self._group = None

    def _finish(self) -> None:
        if self._under_way is None:
            return
        try:
            self._under_way.wait()
        except RuntimeError as error:
            raise EngineDiedError(
                ", ".join(self.meetings),
                f"somebody left the group to which weights are sent ({error}).",
                "See the servers' logs.",
            ) from error
        finally:
            self._under_way = None


def _from_trainer() -> dist.BroadcastOptions:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return options
