"""Buckets of tensors over TCP: the trainer's process offers them, engines' workers fetch them.

Any number of workers may fetch a bucket, each over a connection of its own, so engines can come
back, be more than one and shard their model without a word to the trainer. Not here: what is in a
bucket (`buckets.py`).
"""

import secrets
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.buckets import Bucket, size_of, views

_TOKEN_BYTES = 16
_ASK = struct.Struct(f"!{2 * _TOKEN_BYTES}sIQ")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Address:
    """Where a bucket is offered."""

    host: str
    port: int
    token: str
    """What a worker has to say to get it."""
    number: int
    """Which of the places for buckets it lies in."""


class BucketServer:
    """Offers buckets, each in one of a few places, until a place is filled anew.

    Args:
        hosts: this machine's addresses, as the engines' machines reach it; it listens at the only
            one, or at all that the machine has.
        places: buckets that may be offered at once.
    """

    def __init__(self, hosts: Collection[str], places: int) -> None:
        host = next(iter(hosts)) if len(set(hosts)) == 1 else ""
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._memory = [torch.empty(0, dtype=torch.uint8) for _ in range(places)]
        self._listener = socket.create_server((host, 0), backlog=64)
        threading.Thread(target=self._accept, name="buckets", daemon=True).start()

    def offer(self, bucket: Bucket, number: int) -> None:
        """Copy the tensors of a bucket to place `number`, from any device."""
        entries = [entry for entry, _ in bucket]
        if size_of(entries) > self._memory[number].numel():
            self._memory[number] = torch.empty(size_of(entries), dtype=torch.uint8)
        for place, (_, tensor) in zip(views(self._memory[number], entries), bucket, strict=True):
            place.copy_(tensor)

    def address(self, host: str, number: int) -> Address:
        """Of place `number`, for an engine that reaches this machine as `host`."""
        return Address(host, self._listener.getsockname()[1], self._token, number)

    def close(self) -> None:
        """Offer nothing any more."""
        # A thread that waits in accept() is woken by the shutdown, not by the close.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        # A worker that goes away in between says so itself, to its engine.
        with connection, suppress(OSError):
            connection.settimeout(_TIMEOUT_S)
            token, number, size = _ASK.unpack(_received(connection, _ASK.size))
            is_known = secrets.compare_digest(token, self._token.encode())
            if is_known and number < len(self._memory) and size <= self._memory[number].numel():
                connection.sendall(_bytes(self._memory[number])[:size])


def fetch(address: Address, memory: Tensor) -> None:
    """Fill `memory` (uint8, as long as the bucket) with a bucket's bytes.

    Raises:
        GenerationError: it is not offered there, or the connection broke.
    """
    size = memory.numel()
    try:
        with socket.create_connection((address.host, address.port), _TIMEOUT_S) as connection:
            connection.sendall(_ASK.pack(address.token.encode(), address.number, size))
            _fill(connection, _bytes(memory))
    except OSError as error:
        raise GenerationError(
            f"{address.host}:{address.port}",
            f"a bucket of {size} bytes could not be fetched from the trainer ({error}).",
            "Let the engine's machine reach the trainer's on every TCP port.",
        ) from error


def address_towards(host: str, port: int) -> str:
    """This machine's address as `host` sees it.

    Raises:
        EngineDiedError: nobody listens there.
    """
    try:
        with socket.create_connection((host, port), _TIMEOUT_S) as connection:
            return str(connection.getsockname()[0])
    except OSError as error:
        raise EngineDiedError(
            f"{host}:{port}", f"nobody answers ({error}).", "Look at the server's log."
        ) from error


def _bytes(memory: Tensor) -> memoryview:
    return memory.numpy().data


def _received(connection: socket.socket, size: int) -> bytes:
    found = bytearray(size)
    _fill(connection, memoryview(found))
    return bytes(found)


def _fill(connection: socket.socket, place: memoryview) -> None:
    filled = 0
    while filled < len(place):
        count = connection.recv_into(place[filled:])
        if not count:
            raise ConnectionError(f"it ended after {filled} of {len(place)} bytes")
        filled += count
