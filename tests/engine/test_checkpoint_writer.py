import os
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.distributed import spawn


def slow(name: Path) -> Callable[..., None]:
    """Stands in for Megatron's writer of a file: waits for a file, then writes."""

    def waiting(
        transforms: Any, index: int, bucket: Any, results: Any, count: Any, use_fsync: bool
    ) -> None:
        while not name.exists():
            time.sleep(0.01)
        path, _, content = bucket
        path.write_text(content, encoding="utf-8")
        results.put((index, [content]))

    return waiting


def request_of(buckets: list[Any]) -> Any:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

    write = partial(print, [], False)
    return AsyncRequest(write, (0, None, None), [], preload_fn=lambda: buckets)


def in_the_background(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

    from megatron_reason.engine.checkpoint_writer import CheckpointWriter

    buckets = [(folder / "a", "key", "as it was"), (folder / "b", "key", "too")]
    go = folder / "go"
    with patch.object(filesystem_async.FileSystemWriterAsync, "write_preloaded_data", slow(go)):
        writer = CheckpointWriter(request_of(buckets))
        buckets[0] = (folder / "a", "key", "as it became")
        assert not writer.is_done()
        go.touch()
        written = writer.wait()
        assert written.results == {0: ["as it was"], 1: ["too"]}
        assert written.sums == {
            "a": (9, zlib.crc32(b"as it was")), "b": (3, zlib.crc32(b"too"))
        }  # fmt: skip
        assert (folder / "a").read_text() == "as it was"

        go.unlink()
        writer = CheckpointWriter(request_of(buckets))
        assert not writer.is_done()
        writer.cancel()
        assert writer.is_done()
        outcome = writer.wait().results
        assert isinstance(outcome, RuntimeError)
        assert "exit code -9" in str(outcome)

    # Megatron's own writer cannot write what is no tensor.
    failed = CheckpointWriter(request_of([(folder / "c", "key", ([], [("item", "text")]))]))
    assert isinstance(failed.wait().results, AttributeError)

    nothing = CheckpointWriter(AsyncRequest(None, (), []))
    assert nothing.is_done()
    assert nothing.wait().results is None


def test_the_state_of_the_fork_is_written_and_a_lost_writer_is_told(tmp_path: Path) -> None:
    spawn(in_the_background, 1, tmp_path)


def read_back(rank: int, world_size: int, folder: Path) -> None:
    import torch
    from torch.distributed.checkpoint.filesystem import _StorageWriterTransforms

    from megatron_reason.engine import checkpoint_writer

    content = ([], [(item_of("weight"), torch.arange(1000.0)), (item_of("bias"), torch.ones(3))])
    bucket = (folder / "a", "key", content)
    write = partial(checkpoint_writer._write_bucket, [_StorageWriterTransforms()], 0, bucket)
    _, results, sums = write()
    assert not isinstance(results, Exception)
    assert len(results) == 2
    assert sums == checkpoint_writer.sums_of([folder / "a"], durable=False)

    def spoilt(files: list[Path], *, durable: bool) -> Any:
        with files[0].open("r+b") as file:
            file.seek(300)
            file.write(b"?")
        return sums_of(files, durable=durable)

    sums_of = checkpoint_writer.sums_of
    with patch.object(checkpoint_writer, "sums_of", spoilt):
        _, outcome, sums = write()
    assert isinstance(outcome, OSError)
    assert "a reads back otherwise than it was written" in str(outcome)
    assert not sums


def item_of(name: str) -> Any:
    from torch.distributed.checkpoint.metadata import MetadataIndex
    from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

    return WriteItem(MetadataIndex(name), WriteItemType.TENSOR)


def test_what_reads_back_otherwise_than_it_was_written_is_no_success(tmp_path: Path) -> None:
    spawn(read_back, 1, tmp_path)


def stuck_at_the_start(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_reason.engine import checkpoint_writer
    from megatron_reason.errors import CheckpointError

    buckets, go, been = [(folder / "a", "key", "text")], folder / "go", folder / "been"
    go.touch()

    def stuck_once(_: object) -> None:
        if not been.exists():
            been.touch()
            time.sleep(600)

    megatron = filesystem_async.FileSystemWriterAsync
    with (
        patch.object(megatron, "write_preloaded_data", slow(go)),
        patch.object(checkpoint_writer, "_BEGIN_TIMEOUT_S", 1.0),
    ):
        with patch.object(checkpoint_writer, "_touch", stuck_once):
            writer = checkpoint_writer.CheckpointWriter(request_of(buckets))
        assert been.exists()
        assert writer.wait().results == {0: ["text"]}
        with (
            patch.object(checkpoint_writer, "_touch", lambda _: time.sleep(600)),
            pytest.raises(CheckpointError, match="each got stuck"),
        ):
            checkpoint_writer.CheckpointWriter(request_of(buckets))


def test_a_writer_that_is_stuck_at_its_start_is_replaced(tmp_path: Path) -> None:
    spawn(stuck_at_the_start, 1, tmp_path)


def stuck_in_the_middle(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_reason.engine import checkpoint_writer

    path, go = folder / "a", folder / "go"

    def growing(transforms: Any, index: int, bucket: Any, results: Any, *rest: Any, **more: Any):
        for _ in range(25):
            with path.open("a", encoding="utf-8") as file:
                file.write("x")
            time.sleep(0.2)
        results.put((index, ["grown"]))

    megatron, bucket = filesystem_async.FileSystemWriterAsync, (path, "key", "text")
    with patch.object(checkpoint_writer, "_STUCK_AFTER_S", 2.0):
        with patch.object(megatron, "write_preloaded_data", growing):
            writer = checkpoint_writer.CheckpointWriter(request_of([bucket]))
        assert writer.wait().results == {0: ["grown"]}
        with patch.object(megatron, "write_preloaded_data", waiting_for(go)):
            writer = checkpoint_writer.CheckpointWriter(request_of([bucket]))
        outcome = writer.wait().results
        assert isinstance(outcome, TimeoutError)
        assert "has done nothing for" in str(outcome)
        assert writer._process is not None
        assert not writer._process.is_alive()


def waiting_for(name: Path) -> Callable[..., None]:
    """Stands in for Megatron's writer of a file: waits without a sign of life."""

    def waiting(*arguments: Any, **more: Any) -> None:
        while not name.exists():
            time.sleep(100)

    return waiting


def test_a_writer_that_is_stuck_in_the_middle_is_given_up(tmp_path: Path) -> None:
    spawn(stuck_in_the_middle, 1, tmp_path)


def leave_a_writer(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    from megatron_reason.engine.checkpoint_writer import CheckpointWriter

    with patch.object(
        filesystem_async.FileSystemWriterAsync, "write_preloaded_data", slow(folder / "never")
    ):
        writer = CheckpointWriter(request_of([(folder / "a", "key", "")]))
    assert writer._process is not None
    (folder / "pid").write_text(str(writer._process.pid), encoding="utf-8")
    os._exit(1)


def test_a_writer_dies_with_its_rank(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="exit code 1"):
        spawn(leave_a_writer, 1, tmp_path)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the writer lives on"
        time.sleep(0.01)
