"""How buckets get from the trainer's process to the workers of servers: two ways, one interface.

`tcp`: every worker fetches each bucket by a connection of its own. `broadcast`: one collective
brings it to all of them. Not here: the commands to the servers (`server_engine.py`), and what their
workers do (`vllm_transfer.py`).
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

from megatron_reason.generation.broadcast import Sender
from megatron_reason.generation.bucket_server import BucketServer
from megatron_reason.generation.buckets import Bucket


class Transport(Protocol):
    """From one sender to the workers of some servers, until it is closed."""

    @property
    def places(self) -> int:
        """Buckets that the servers may have been told of without having answered for them."""
        ...

    @property
    def meetings(self) -> Mapping[str, dict[str, Any]]:
        """What each server's workers are told so that they join, by URL; empty: they need not."""
        ...

    def join(self) -> None:
        """Wait until all have joined.

        Raises:
            EngineDiedError: somebody did not.
        """
        ...

    def offer(self, bucket: Bucket) -> Mapping[str, dict[str, Any]]:
        """Begin to hand a bucket over; what each server's workers are told of it, by URL.

        Its tensors are not read any more when this is left.

        Raises:
            EngineDiedError: a worker did not get the one before.
        """
        ...

    def close(self) -> None:
        """Hand over nothing any more."""
        ...


class TcpTransport:
    """Buckets that workers fetch.

    Args:
        towards: this machine's address as each server's machine reaches it, by the server's URL.
    """

    places = 2
    """One bucket is filled while the engines load the other."""
    meetings: Mapping[str, dict[str, Any]] = {}

    def __init__(self, towards: Mapping[str, str]) -> None:
        self._towards = towards
        self._server = BucketServer(towards.values(), self.places)
        self._next = 0

    def join(self) -> None:
        """Nobody has to."""

    def offer(self, bucket: Bucket) -> Mapping[str, dict[str, Any]]:
        """Copy a bucket to where it can be fetched; the bucket `places` before is gone then."""
        self._server.offer(bucket, self._next)
        entries = [asdict(entry) for entry, _ in bucket]
        told = {
            url: {"address": asdict(self._server.address(host, self._next)), "entries": entries}
            for url, host in self._towards.items()
        }
        self._next = (self._next + 1) % self.places
        return told

    def close(self) -> None:
        """Offer nothing any more."""
        self._server.close()


class BroadcastTransport:
    """Buckets that a collective brings.

    Args:
        towards: this machine's address as each server's machine reaches it, by the server's URL.
        workers: number of workers of each server, by URL.
    """

    # Two would reach a server over two connections, in any order; a collective needs theirs.
    places = 1

    def __init__(self, towards: Mapping[str, str], workers: Mapping[str, int]) -> None:
        self._sender = Sender(towards, workers)

    @property
    def meetings(self) -> Mapping[str, dict[str, Any]]:
        """Where each server's workers find the group."""
        return {url: asdict(meeting) for url, meeting in self._sender.meetings.items()}

    def join(self) -> None:
        """Wait until all have come; see `Sender.join`."""
        self._sender.join()

    def offer(self, bucket: Bucket) -> Mapping[str, dict[str, Any]]:
        """Begin to send a bucket to all."""
        self._sender.begin(bucket)
        told = {"entries": [asdict(entry) for entry, _ in bucket]}
        return dict.fromkeys(self._sender.meetings, told)

    def close(self) -> None:
        """Leave the group."""
        self._sender.close()
