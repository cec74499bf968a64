"""Run a function in several gloo processes and bring back its failures."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import ProcessException, start_processes


def spawn(
    function: Callable[..., None], world_size: int, *args: Any,
    megatron: bool = True, bare: bool = False,
) -> None:  # fmt: skip
    """Call `function(rank, world_size, *args)` in `world_size` processes joined by gloo.

    `function` must be importable (top level of a module). When ranks fail, the traceback of the one
    that failed first is raised here: the others mostly report that it has gone. Without `megatron`
    the CPU adaptation is left out. The ranks are forked from a server that has the slow imports
    behind it (`tests/preload.py`), unless `bare` asks for interpreters that have imported nothing.
    """
    multiprocessing.set_forkserver_preload(["tests.preload"])
    with tempfile.TemporaryDirectory() as folder:
        try:
            start_processes(
                _enter,
                args=(world_size, folder, function, args, megatron),
                nprocs=world_size,
                start_method="spawn" if bare else "forkserver",
            )
        except ProcessException as error:
            reports = sorted(Path(folder).glob("rank*"), key=lambda path: path.stat().st_mtime_ns)
            if not reports:
                raise
            first = reports[0]
            raise AssertionError(f"{first.name} failed first:\n{first.read_text()}") from error


def _enter(
    rank: int, world_size: int, folder: str, function: Callable[..., None], args: Any,
    megatron: bool,
) -> None:  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    from megatron_reason import platform

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        with platform.cpu() if megatron else nullcontext():
            function(rank, world_size, *args)
        dist.barrier()
    except BaseException:
        Path(folder, f"rank{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()
