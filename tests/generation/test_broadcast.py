"""One bucket for many workers, which here are threads with connections of their own."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
from torch import Tensor

from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation import broadcast
from megatron_reason.generation.broadcast import Meeting, Receiver, Sender
from megatron_reason.generation.buckets import Bucket, described, size_of, views

HOST = "127.0.0.1"
WORKERS = {"http://one": 2, "http://other": 1}


def bucket(value: float, rows: int = 300) -> Bucket:
    shapes = {"a": (rows, 1000), "b": (5,), "c": (0, 4)}
    return [described(name, torch.full(shape, value)) for name, shape in shapes.items()]


def received(receiver: Receiver, sent: Bucket) -> list[Tensor]:
    entries = [entry for entry, _ in sent]
    memory = torch.empty(size_of(entries), dtype=torch.uint8)
    receiver.receive(memory)
    return list(views(memory, entries))


class Group:
    """A sender and its workers, whose part is taken by threads."""

    def __init__(self, workers: dict[str, int]) -> None:
        self.threads = ThreadPoolExecutor(1 + sum(workers.values()))
        self.sender = Sender(dict.fromkeys(workers, HOST), workers)
        places = [(self.sender.meetings[url], number)
                  for url, count in workers.items() for number in range(count)]  # fmt: skip
        joining = [self.threads.submit(Receiver, *place) for place in places]
        self.sender.join()
        self.receivers = [future.result() for future in joining]

    def receive(self, sent: Bucket, by: Sequence[Receiver]) -> list[Future[list[Tensor]]]:
        """Begin to receive what is or will be sent."""
        return [self.threads.submit(received, receiver, sent) for receiver in by]

    def close(self) -> None:
        self.sender.close()
        self.threads.shutdown()


@pytest.fixture
def group() -> Group:
    return Group(WORKERS)


def test_every_worker_gets_every_bucket_and_the_senders_memory_is_free_at_once(
    group: Group,
) -> None:
    assert [meeting.first_rank for meeting in group.sender.meetings.values()] == [1, 3]
    for number, rows in enumerate((300, 2, 500)):
        sent = bucket(float(number), rows)
        coming = group.receive(sent, group.receivers)
        group.sender.begin(sent)
        kept = [tensor.clone() for _, tensor in sent]
        for _, tensor in sent:
            tensor.fill_(-1.0)
        for future in coming:
            for tensor, expected in zip(future.result(60), kept, strict=True):
                assert torch.equal(tensor, expected)
    group.close()


@pytest.mark.parametrize(("gone", "is_told_at_once"), [(0, True), (2, False)])
def test_who_leaves_ends_the_waiting_of_all(
    group: Group, gone: int, *, is_told_at_once: bool
) -> None:
    """Whichever it is: the last gets its bytes from another worker, not from the trainer."""
    began = time.monotonic()
    others = [receiver for number, receiver in enumerate(group.receivers) if number != gone]
    big = bucket(1.0, rows=20_000)
    coming = group.receive(big, others)
    group.receivers[gone]._leave()
    group.sender.begin(big)
    told = pytest.raises(EngineDiedError, match="somebody left the group")
    with told if is_told_at_once else nullcontext():
        group.sender.begin(big)
    group.sender.close()
    for receiver, future in zip(others, coming, strict=True):
        if future.exception(60) is None:
            # It had its bytes before; the next are those that cannot come.
            (future,) = group.receive(big, [receiver])
        with pytest.raises(GenerationError, match="somebody left the group"):
            future.result(60)
        with pytest.raises(GenerationError, match="this worker did, before"):
            received(receiver, big)
    group.close()
    assert time.monotonic() - began < 60, "it was waited for"


def test_a_trainer_that_goes_away_ends_the_waiting_of_all(group: Group) -> None:
    sent = bucket(1.0)
    coming = group.receive(sent, group.receivers)
    group.sender.close()
    for future in coming:
        with pytest.raises(GenerationError, match="somebody left the group"):
            future.result(60)
    group.close()


def on_time(act: Callable[[], object]) -> None:
    began = time.monotonic()
    act()
    assert time.monotonic() - began < 60


def test_who_does_not_come_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_TIMEOUT", timedelta(seconds=3))
    sender = Sender({"http://one": HOST}, {"http://one": 2})
    meeting = sender.meetings["http://one"]

    def joined_in_vain() -> None:
        with pytest.raises(GenerationError, match="cannot be joined"):
            Receiver(meeting, 0)

    alone = threading.Thread(target=on_time, args=(joined_in_vain,))
    alone.start()

    def waited_in_vain() -> None:
        with pytest.raises(EngineDiedError, match="not all servers' workers came"):
            sender.join()

    on_time(waited_in_vain)
    alone.join()
    sender.close()


def test_where_nobody_waits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_TIMEOUT", timedelta(seconds=1))
    with pytest.raises(GenerationError, match=r"127.0.0.1:1\n  the trainer's group of 2 cannot"):
        Receiver(Meeting(HOST, 1, 2, 1), 0)
