"""Run a function in several gloo processes and bring back its failures."""

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import spawn as start


def spawn(
    function: Callable[..., None], world_size: int, *args: Any, megatron: bool = True
) -> None:
    """Call `function(rank, world_size, *args)` in `world_size` processes joined by gloo.

    `function` must be importable (top level of a module). The first failing rank's traceback is
    raised here. Without `megatron` the CPU adaptation, and its slow import, are left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        start(_enter, args=(world_size, rendezvous, function, args, megatron), nprocs=world_size)


def _enter(
    rank: int, world_size: int, rendezvous: str, function: Callable[..., None], args: Any,
    megatron: bool,
) -> None:  # fmt: skip
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    import torch.distributed as dist

    from megatron_reason import platform

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    try:
        with platform.cpu() if megatron else nullcontext():
            function(rank, world_size, *args)
        dist.barrier()
    finally:
        dist.destroy_process_group()
