import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_reason.generation.buckets import (
    SharedBuffer,
    _device_sums,
    _host_sums,
    checksum,
    described,
    mapped,
    size_of,
    views,
)

ROW = 8192


@pytest.mark.parametrize("size", [1, 7, ROW - 1, ROW, 5 * ROW + 13])
def test_checksum_sees_every_byte(size: int):
    generator = torch.Generator().manual_seed(size)
    values = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
    code = checksum(values)
    for place in {0, size // 2, size - 1}:
        changed = values.clone()
        changed[place] += 1
        assert checksum(changed) != code
    assert checksum(values.clone()) == code


def test_checksum_sees_order():
    values = torch.arange(3 * ROW // 8, dtype=torch.int64)
    code = checksum(values)
    assert checksum(values.flip(0)) != code
    swapped = values.clone()
    swapped[[3, 5]] = swapped[[5, 3]]
    assert checksum(swapped) != code
    rows = values.view(3, -1)
    assert checksum(rows[[1, 0, 2]]) != code


def test_checksum_does_not_depend_on_how_a_tensor_lies_in_memory():
    values = torch.randn(300, 77).bfloat16()
    shifted = torch.empty(values.numel() + 1, dtype=torch.bfloat16)[1:].view(300, 77)
    shifted.copy_(values)
    transposed = values.T.contiguous().T
    assert checksum(values) == checksum(shifted) == checksum(transposed)
    assert checksum(values) != checksum(values.T)


@pytest.mark.parametrize("num_rows", [0, 1, 127, 300])
def test_sums_on_a_device_are_those_on_the_host(num_rows: int):
    """Here the device is a CPU, too; sums of 64 bits wrap around alike."""
    table = torch.randint(-(2**63), 2**63 - 1, (num_rows, 1024))
    for here, there in zip(_host_sums(table), _device_sums(table), strict=True):
        assert here.tobytes() == there.tobytes()


def test_another_process_reads_what_was_put_there():
    tensors = {"a": torch.randn(5, 3).bfloat16(), "b": torch.arange(7), "c": torch.randn(2, 2).T}
    bucket = [described(name, tensor) for name, tensor in tensors.items()]
    entries = [entry for entry, _ in bucket]
    buffer = SharedBuffer()
    buffer.fill(bucket[:1])
    buffer.fill(bucket)
    script = (
        "from megatron_reason.generation.buckets import *\n"
        f"entries = {entries!r}\n"
        f"memory = mapped({buffer.path!r}, size_of(entries))\n"
        "assert [checksum(t) for t in views(memory, entries)] == [e.checksum for e in entries]\n"
        "memory[2] += 1\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    memory = mapped(buffer.path, size_of(entries))
    found = list(views(memory, entries))
    assert torch.equal(found[1], tensors["b"])
    assert torch.equal(found[2], tensors["c"])
    assert not torch.equal(found[0], tensors["a"]), "the other process wrote into a copy"


def test_memory_ends_with_its_owner():
    buffer = SharedBuffer()
    path = buffer.path
    assert Path(path).exists()
    del buffer
    assert not Path(path).exists()
