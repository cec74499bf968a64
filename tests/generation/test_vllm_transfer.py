"""Checks of the transports inside the engine, alone and as one of the shards of a model.

A whole update is tested in `test_vllm_engine.py` and `test_online_servers.py`.
"""

import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.errors import GenerationError
from megatron_reason.generation.broadcast import Sender
from megatron_reason.generation.bucket_server import Address, BucketServer
from megatron_reason.generation.buckets import Entry, SharedBuffer, described
from tests.distributed import spawn

pytest.importorskip("vllm")

Offer = Callable[[Entry, Tensor], dict[str, Any]]
"""Puts a tensor where the engine's workers find it; gives what they are told of it."""
HOST = "127.0.0.1"


class Pair(torch.nn.Module):
    """Has vLLM's own bookkeeping of a layer with two parameters, loaded one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(4, 5))
        self.b = torch.nn.Parameter(torch.zeros(3))

    def load_weights(self, weights: list[tuple[str, Tensor]]) -> None:
        for name, tensor in weights:
            parameter: Any = getattr(self, name)
            parameter.weight_loader(parameter, tensor)


@pytest.mark.parametrize("shards", [1, 2])
def test_buckets_come_and_bad_ones_are_refused_by_every_shard(shards: int) -> None:
    spawn(check_transports, shards, megatron=False)


def check_transports(rank: int, world_size: int) -> None:
    shard_model(world_size)
    check_shared_memory(rank, world_size)
    check_tcp(rank, world_size)
    check_broadcast(rank, world_size)


def check_shared_memory(rank: int, world_size: int) -> None:
    from megatron_reason.generation.vllm_transfer import SharedMemoryTransfer

    buffer = SharedBuffer()

    def offer(entry: Entry, tensor: Tensor) -> dict[str, Any]:
        buffer.fill([(entry, tensor)])
        return {"path": buffer.path, "entries": [entry]}

    check_memory_that_is_filled_again(partial(made, SharedMemoryTransfer), offer)
    check_damage(partial(made, SharedMemoryTransfer), offer, rank, world_size)
    check_failures_of_all(partial(made, SharedMemoryTransfer), rank, world_size)


def check_tcp(rank: int, world_size: int) -> None:
    from megatron_reason.generation import bucket_server, vllm_transfer

    server = BucketServer([HOST], places=1) if rank == 0 else None

    def offer(entry: Entry, tensor: Tensor) -> dict[str, Any]:
        address: list[Address | None] = [None]
        if server is not None:
            server.offer([(entry, tensor)], 0)
            address = [server.address(HOST, 0)]
        dist.broadcast_object_list(address)
        assert address[0] is not None
        return {"address": asdict(address[0]), "entries": [asdict(entry)]}

    fetched: list[Address] = []

    def counted(address: Address, memory: Tensor) -> None:
        fetched.append(address)
        bucket_server.fetch(address, memory)

    vllm_transfer.fetch = counted
    check_memory_that_is_filled_again(partial(made, vllm_transfer.TcpTransfer), offer)
    assert len(fetched) == (2 if rank == 0 else 0), "the first shard fetches for all"
    check_damage(partial(made, vllm_transfer.TcpTransfer), offer, rank, world_size)
    check_nothing_there(partial(made, vllm_transfer.TcpTransfer), rank, world_size)


class Trainer:
    """Sends to the shards from the first one's process."""

    def __init__(self, worker: Any, rank: int, world_size: int) -> None:
        self.sender = Sender({HOST: HOST}, {HOST: world_size}) if rank == 0 else None
        meeting = [None if self.sender is None else asdict(self.sender.meetings[HOST])]
        dist.broadcast_object_list(meeting)
        with ThreadPoolExecutor(1) as threads:
            joined = self.sender and threads.submit(self.sender.join)
            worker.join_trainer(meeting[0])
            assert joined is None or joined.result() is None

    def send(self, entry: Entry, tensor: Tensor) -> dict[str, Any]:
        if self.sender is not None:
            self.sender.begin([(entry, tensor)])
        return {"entries": [asdict(entry)]}


def check_broadcast(rank: int, world_size: int) -> None:
    """Every shard gets the trainer's buckets; a damaged one ends the group alone."""
    from megatron_reason.generation.vllm_transfer import BroadcastTransfer

    worker = shard(made(BroadcastTransfer))
    first, second = described("a", torch.ones(4, 5)), described("b", torch.full((3,), 2.0))
    worker.begin_update()
    told = {"entries": [asdict(first[0])]}
    words = "no trainer's group was joined"
    expect_of_last(partial(worker.load_bucket, told), words, rank, world_size)
    worker.abandon_update()

    trainer = Trainer(worker, rank, world_size)
    entry, tensor = first
    wrong = replace(entry, checksum=entry.checksum ^ 1)
    worker.begin_update()
    told = trainer.send(wrong if rank == 0 else entry, tensor)
    expect_of_last(partial(worker.load_bucket, told), "checksum", rank, world_size)
    worker.abandon_update()
    assert not worker.model.a.any(), "half a layer was kept"

    trainer = Trainer(worker, rank, world_size)
    for factor in (1.0, 3.0):
        worker.begin_update()
        for entry, tensor in (described(entry.name, factor * t) for entry, t in (first, second)):
            worker.load_bucket(trainer.send(entry, tensor))
        worker.end_update()
        assert torch.equal(worker.model.a, factor * first[1])
        assert torch.equal(worker.model.b, factor * second[1])


def shard_model(world_size: int) -> None:
    """Say to vLLM that the processes of the test are the shards of one model."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    # With what vLLM's executor has its workers name their shared memory.
    name = [secrets.token_hex(8)]
    dist.broadcast_object_list(name)
    os.environ["VLLM_DIST_IDENT"] = name[0]
    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(world_size, dist.get_rank(), backend="gloo")
        initialize_model_parallel(world_size, backend="gloo")


def made(kind: Any) -> Any:
    """A transport to a model of its own."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

    model = Pair()
    record_metadata_for_reloading(model)
    config: Any = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=None))
    return kind(config, config, torch.device("cpu"), model)


def check_memory_that_is_filled_again(make: Callable[[], Any], offer: Offer) -> None:
    """A layer in two buckets does not refer to the first one's memory when the second comes."""
    transfer = make()
    tensors = {"a": torch.arange(20.0).view(4, 5), "b": torch.arange(3.0)}
    transfer.start_weight_update()
    for name, tensor in tensors.items():
        entry, _ = described(name, tensor)
        transfer.update_weights(offer(entry, tensor))
        dist.barrier()
        offer(entry, torch.full_like(tensor, 7.0))
    transfer.finish_weight_update()
    assert torch.equal(transfer.model.a, tensors["a"])
    assert torch.equal(transfer.model.b, tensors["b"])


def check_damage(make: Callable[[], Any], offer: Offer, rank: int, world_size: int) -> None:
    """Damaged tensors are not loaded; the last shard tells whom it concerns.

    What was sent before the failure was heard of is refused, too, and no shard waits for another;
    once the update is given up the next one comes through.
    """
    worker = shard(make())
    entry, tensor = described("a", torch.ones(4, 5))
    other, values = described("b", torch.full((3,), 2.0))
    wrong = replace(entry, checksum=entry.checksum ^ 1)
    behind = "before|start_weight_update"
    worker.begin_update()
    told = offer(wrong if rank == 0 else entry, tensor)
    expect_of_last(partial(worker.load_bucket, told), "checksum", rank, world_size)
    told = offer(other, values)
    expect_of_last(partial(worker.load_bucket, told), behind, rank, world_size)
    expect_of_last(worker.end_update, behind, rank, world_size)
    worker.abandon_update()
    assert not worker.model.a.any(), "half a layer was kept"
    assert not worker.model.b.any()
    worker.begin_update()
    for each, tensor in ((entry, torch.ones(4, 5)), (other, values)):
        worker.load_bucket(offer(each, tensor))
        dist.barrier()
    worker.end_update()
    assert bool(worker.model.a.all())
    assert torch.equal(worker.model.b, values)


def check_nothing_there(make: Callable[[], Any], rank: int, world_size: int) -> None:
    """What cannot be fetched is an error that names it, and nobody goes on waiting for it."""
    entry, _ = described("a", torch.ones(4, 5))
    gone = BucketServer([HOST], places=1)
    address = gone.address(HOST, 0)
    gone.close()
    worker = shard(make())
    worker.begin_update()
    told = {"address": asdict(address), "entries": [asdict(entry)]}
    words = "could not be fetched"
    expect_of_last(partial(worker.load_bucket, told), words, rank, world_size)
    worker.abandon_update()


def check_failures_of_all(make: Callable[[], Any], rank: int, world_size: int) -> None:
    """What no shard can do is told once, as vLLM needs it, and the worker goes on."""
    worker = shard(make())
    expect_of_last(worker.end_update, "without a matching start", rank, world_size)
    worker.abandon_update()
    worker.begin_update()
    worker.abandon_update()


def shard(transfer: Any) -> Any:
    """A worker with vLLM's own functions around a transport, and nothing else of it."""
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_worker import Worker

    from megatron_reason.generation.vllm_transfer import WorkerExtension

    class Shard(WorkerExtension, Worker):
        def __init__(self) -> None:
            self.vllm_config = VllmConfig()
            self.model_runner: Any = SimpleNamespace(reset_lora_state=lambda: None)
            self.weight_transfer_engine = transfer
            self.model = transfer.model
            self._weight_update_active = self._weight_update_is_draft = False

    return Shard()


def expect_of_last(act: Callable[[], None], words: str, rank: int, world_size: int) -> None:
    if rank == world_size - 1:
        with pytest.raises((GenerationError, RuntimeError), match=words):
            act()
    else:
        act()
