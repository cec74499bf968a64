"""The two ways of buckets to servers, seen from the trainer.

Their workers' side is tested in `test_vllm_transfer.py`, both with real servers in
`test_server_engine.py` and `test_online_servers.py`.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from megatron_reason.errors import GenerationError
from megatron_reason.generation.broadcast import Meeting, Receiver
from megatron_reason.generation.bucket_server import Address, fetch
from megatron_reason.generation.buckets import Entry, described, size_of, views
from megatron_reason.generation.transports import BroadcastTransport, TcpTransport, Transport

HOST = "127.0.0.1"
TOWARDS = {"http://one": HOST, "http://other": HOST}


def contents(memory: torch.Tensor, entries: list[Entry]) -> list[float]:
    return [tensor.sum().item() for tensor in views(memory, entries)]


def received(receiver: Receiver, entries: list[Entry]) -> list[float]:
    memory = torch.empty(size_of(entries), dtype=torch.uint8)
    receiver.receive(memory)
    return contents(memory, entries)


def test_a_fetched_bucket_stays_until_as_many_as_there_are_places_follow() -> None:
    transport: Transport = TcpTransport(TOWARDS)
    assert not transport.meetings
    transport.join()
    addresses: list[Address] = []
    for value in (1.0, 2.0, 3.0):
        told = transport.offer([described("a", torch.full((3, 4), value))])
        assert set(told) == set(TOWARDS)
        entries = [Entry.from_json(entry) for entry in told["http://one"]["entries"]]
        addresses.append(Address(**told["http://other"]["address"]))
        memory = torch.empty(size_of(entries), dtype=torch.uint8)
        fetch(addresses[-1], memory)
        assert contents(memory, entries) == [12 * value]
        for before, address in enumerate(addresses[-transport.places :]):
            fetch(address, memory)
            first = max(0, len(addresses) - transport.places)
            assert contents(memory, entries) == [12.0 * (1 + first + before)]
    wrong = replace(addresses[-1], token="0" * len(addresses[-1].token))
    with pytest.raises(GenerationError, match="could not be fetched"):
        fetch(wrong, torch.empty(64, dtype=torch.uint8))
    transport.close()
    with pytest.raises(GenerationError, match="could not be fetched"):
        fetch(addresses[-1], torch.empty(64, dtype=torch.uint8))


def test_a_bucket_that_is_broadcast_reaches_the_workers_of_all_servers() -> None:
    transport: Transport = BroadcastTransport(TOWARDS, {"http://one": 1, "http://other": 2})
    places = [("http://one", 0), ("http://other", 0), ("http://other", 1)]
    with ThreadPoolExecutor(len(places)) as threads:
        joining = [
            threads.submit(Receiver, Meeting(**transport.meetings[url]), worker)
            for url, worker in places
        ]
        transport.join()
        receivers = [future.result() for future in joining]
        for value in (1.0, 2.0):
            told = transport.offer([described("a", torch.full((3, 4), value))])
            said = [[Entry.from_json(one) for one in told[url]["entries"]] for url, _ in places]
            # At once: the last one's bytes come from another worker, which has to be there, too.
            assert list(threads.map(received, receivers, said)) == 3 * [[12 * value]]
    transport.close()
