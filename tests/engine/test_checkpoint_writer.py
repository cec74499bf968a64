import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import spawn


def write(rank: int, buckets: Any, results: Any) -> None:
    for name, _, content in buckets:
        Path(name).write_text(content, encoding="utf-8")
    results.put({0: [content for _, _, content in buckets]})


def wait_for(name: str) -> Callable[..., None]:
    def waiting(rank: int, buckets: Any, results: Any) -> None:
        while not Path(name).exists():
            time.sleep(0.01)
        write(rank, buckets, results)

    return waiting


def in_the_background(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

    from megatron_reason.engine.checkpoint_writer import CheckpointWriter

    content = ["as it was"]
    buckets = [(folder / "shard", "key", content[0])]

    def stage() -> list[Any]:
        return buckets

    go = folder / "go"
    request = AsyncRequest(wait_for(str(go)), (0, None, None), [], preload_fn=stage)
    writer = CheckpointWriter(request)
    buckets[0] = (folder / "shard", "key", "as it became")
    assert not writer.is_done()
    go.touch()
    written = writer.wait()
    assert written.results == {0: ["as it was"]}
    assert written.sums == {"shard": (9, zlib.crc32(b"as it was"))}
    assert (folder / "shard").read_text() == "as it was"

    go.unlink()
    writer = CheckpointWriter(request)
    assert not writer.is_done()
    writer.cancel()
    assert writer.is_done()
    outcome = writer.wait().results
    assert isinstance(outcome, RuntimeError)
    assert "exit code -9" in str(outcome)

    nothing = CheckpointWriter(AsyncRequest(None, (), []))
    assert nothing.is_done()
    assert nothing.wait().results is None


def test_the_state_of_the_fork_is_written_and_a_lost_writer_is_told(tmp_path: Path) -> None:
    spawn(in_the_background, 1, tmp_path)


def leave_a_writer(rank: int, world_size: int, folder: Path) -> None:
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

    from megatron_reason.engine.checkpoint_writer import CheckpointWriter

    request = AsyncRequest(wait_for(str(folder / "never")), (0, [], None), [])
    writer = CheckpointWriter(request)
    assert writer._process is not None
    (folder / "pid").write_text(str(writer._process.pid), encoding="utf-8")
    os._exit(1)


def test_a_writer_dies_with_its_rank(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="exit code 1"):
        spawn(leave_a_writer, 1, tmp_path)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the writer lives on"
        time.sleep(0.01)
