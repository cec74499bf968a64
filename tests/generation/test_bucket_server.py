import threading
from dataclasses import replace

import pytest
import torch

from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.bucket_server import (
    Address,
    BucketServer,
    address_towards,
    fetch,
)
from megatron_reason.generation.buckets import Bucket, described, size_of, views

HOST = "127.0.0.1"


def bucket(seed: int, *sizes: int) -> Bucket:
    generator = torch.Generator().manual_seed(seed)
    return [described(f"w{size}", torch.randn(size, 3, generator=generator)) for size in sizes]


def fetched(address: Address, size: int) -> torch.Tensor:
    memory = torch.empty(size, dtype=torch.uint8)
    fetch(address, memory)
    return memory


def check(address: Address, expected: Bucket) -> None:
    entries = [entry for entry, _ in expected]
    memory = fetched(address, size_of(entries))
    for tensor, (_, original) in zip(views(memory, entries), expected, strict=True):
        assert torch.equal(tensor, original)


def test_every_worker_gets_every_bucket_and_a_place_can_be_filled_anew() -> None:
    server = BucketServer([HOST], places=2)
    small, large, other = bucket(0, 5), bucket(1, 7, 400_000), bucket(2, 9)
    try:
        offered = [(server.address(HOST, n), one) for n, one in enumerate((small, large))]
        server.offer(small, 0)
        server.offer(large, 1)
        workers = [threading.Thread(target=check, args=pair) for pair in offered * 3]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        check(*offered[1])
        server.offer(other, 1)
        check(server.address(HOST, 1), other)
        check(*offered[0])
    finally:
        server.close()


def test_only_what_is_offered_is_given_to_those_who_know_the_token() -> None:
    server = BucketServer([HOST], places=1)
    try:
        server.offer(bucket(0, 5), 0)
        address = server.address(HOST, 0)
        stranger = replace(address, token="0" * len(address.token))
        for asked, size in ((stranger, 8), (replace(address, number=4), 8), (address, 10**6)):
            with pytest.raises(GenerationError, match="could not be fetched"):
                fetched(asked, size)
        first = torch.empty(8, dtype=torch.uint8)
        fetch(address, first)
        assert torch.equal(first.view(torch.float32), bucket(0, 5)[0][1].flatten()[:2])
    finally:
        server.close()
    with pytest.raises(GenerationError, match="could not be fetched"):
        fetched(address, 8)


def test_engines_that_know_this_machine_by_other_names_all_reach_it() -> None:
    """One on this machine and one on another do."""
    names = ("127.0.0.1", "127.0.0.2")
    server = BucketServer([*names, names[0]], places=1)
    here = bucket(0, 5)
    try:
        server.offer(here, 0)
        for name in names:
            assert server.address(name, 0).host == name
            check(server.address(name, 0), here)
    finally:
        server.close()
    alone = BucketServer(["127.0.0.1"] * 2, places=1)
    with pytest.raises(GenerationError, match="refused"):
        fetched(alone.address("127.0.0.2", 0), 8)
    alone.close()


def test_our_address_is_the_one_that_the_other_side_sees() -> None:
    server = BucketServer([HOST], places=1)
    port = server.address(HOST, 0).port
    assert address_towards("localhost", port) == "127.0.0.1"
    server.close()
    with pytest.raises(EngineDiedError, match="nobody answers"):
        address_towards("127.0.0.1", port)
