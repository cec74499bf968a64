"""Buckets of named tensors: how they are described, checked, and put into shared memory.

A bucket travels as flat bytes in anonymous memory that the engine's process maps, so nothing is
left behind when either side is killed. Not here: which tensors there are, and what loads them.
"""

import os
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHARED_MEMORY = "shared_memory"
"""Name of the transport between processes of one machine, as vLLM's configuration has it."""
TCP = "tcp"
"""Name of the transport between machines in which every worker fetches for itself."""
BROADCAST = "broadcast"
"""Name of the transport between machines in which one collective reaches all workers."""
_ALIGNMENT = 64
_WORD_BYTES = 8
_WORDS_PER_ROW = 1024
_ROW_BYTES = _WORD_BYTES * _WORDS_PER_ROW
_ROWS_PER_PART = 128


@dataclass(frozen=True)
class Entry:
    """A tensor in a bucket."""

    name: str
    dtype: str
    """Name of the torch data type, such as 'bfloat16'."""
    shape: tuple[int, ...]
    checksum: int
    """What `checksum` gives for it."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * getattr(torch, self.dtype).itemsize

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Entry":
        """The inverse of `dataclasses.asdict`, after JSON made a list of the shape."""
        return replace(cls(**fields), shape=tuple(fields["shape"]))


Words = NDArray[np.int64]
Bucket = Sequence[tuple[Entry, Tensor]]
"""Tensors and what is said about them."""
ArrivingBucket = Iterator[tuple[Entry, Tensor]]
"""The same, each tensor described when it is asked for: who copies it then finds it in cache."""


def described(name: str, tensor: Tensor) -> tuple[Entry, Tensor]:
    """A tensor with its description."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Entry(name, dtype, tuple(tensor.shape), checksum(tensor)), tensor


def checksum(tensor: Tensor) -> int:
    """CRC of the sums, modulo 2**64, over rows and columns of the bytes as a table of words.

    Nearly as fast as reading memory; a changed, lost or displaced word changes a row's or a
    column's sum.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if flat.storage_offset() % _WORD_BYTES:
        flat = flat.clone()
    end = flat.numel() // _ROW_BYTES * _ROW_BYTES
    table = flat[:end].view(torch.int64).view(-1, _WORDS_PER_ROW)
    code = 0
    for part in (*(_host_sums if table.is_cpu else _device_sums)(table), flat[end:].cpu().numpy()):
        code = zlib.crc32(part.tobytes(), code)
    return code


def _host_sums(table: Tensor) -> tuple[Words, Words]:
    """Sums over columns and over rows; the second sum finds what the first brought into cache."""
    values = table.numpy()
    rows, columns = np.empty(len(values), np.int64), np.zeros(_WORDS_PER_ROW, np.int64)
    for begin in range(0, len(values), _ROWS_PER_PART):
        part = values[begin : begin + _ROWS_PER_PART]
        part.sum(1, out=rows[begin : begin + _ROWS_PER_PART])
        columns += part.sum(0)
    return rows, columns


def _device_sums(table: Tensor) -> tuple[Words, Words]:
    """The same, of which nothing else leaves the device."""
    return table.sum(1).cpu().numpy(), table.sum(0).cpu().numpy()


def size_of(entries: Sequence[Entry]) -> int:
    """Bytes that a bucket takes."""
    return sum(map(_room, entries))


def views(memory: Tensor, entries: Sequence[Entry]) -> Iterator[Tensor]:
    """The tensors of a bucket that lies in `memory` (bytes, at least `size_of` of them)."""
    offsets = accumulate(map(_room, entries), initial=0)
    for entry, offset in zip(entries, offsets, strict=False):
        flat = memory[offset : offset + entry.nbytes]
        yield flat.view(getattr(torch, entry.dtype)).view(entry.shape)


class SharedBuffer:
    """Memory for one bucket that another process can map; it grows to the largest it ever held."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("bucket")
        weakref.finalize(self, os.close, self._descriptor)
        self.path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        """Where the other process finds it, for as long as this one lives."""
        self._memory = torch.empty(0, dtype=torch.uint8)

    def fill(self, bucket: Bucket) -> None:
        """Copy the tensors of a bucket here, from any device."""
        entries = [entry for entry, _ in bucket]
        memory = self.room(size_of(entries))
        for place, (_, tensor) in zip(views(memory, entries), bucket, strict=True):
            place.copy_(tensor)

    def room(self, size: int) -> Tensor:
        """The first `size` bytes of it, uint8 [size]."""
        if size > self._memory.numel():
            self._memory = mapped(self.path, size)
        return self._memory[:size]


def mapped(path: str, size: int) -> Tensor:
    """The first `size` bytes of shared memory."""
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def _room(entry: Entry) -> int:
    return -(-entry.nbytes // _ALIGNMENT) * _ALIGNMENT
