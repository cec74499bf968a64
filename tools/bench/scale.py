"""What rank 0 pays for control as ranks are added, simulated: 64 to 1024 ranks in one process.

    python tools/bench/scale.py

Megatron's process groups are built over torch's fake backend, which sends nothing; an update's
sequences are shared out over the data-parallel ranks as in training. What networks cost is not in
it. Writes `tools/bench/results/scale.md`.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TP, PP = 8, 2
PER_RANK = 8
"""Sequences of an update for each data-parallel rank."""


@dataclass(frozen=True)
class Cost:
    """What rank 0 of so many pays."""

    ranks: int
    groups_s: float
    """Seconds to build all process groups, once."""
    groups_mb: float
    """Growth of its memory by that."""
    share_s: float
    """Seconds to share out the sequences of one update."""


def measure(ranks: int) -> Cost:
    """Be rank 0 of `ranks`."""
    import psutil
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_reason import platform

    with platform.cpu():
        from megatron.core import parallel_state

        from megatron_reason.config.parallel import ParallelConfig
        from megatron_reason.config.train import BatchConfig
        from megatron_reason.engine.packing import assign
        from megatron_reason.engine.topology import init_topology

        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
        parallel = ParallelConfig(tensor_model_parallel_size=TP, pipeline_model_parallel_size=PP)
        before, started = psutil.Process().memory_info().rss, time.perf_counter()
        # torch has no fake of the second set, over gloo, that Megatron makes of some groups.
        build = partial(parallel_state.initialize_model_parallel, create_gloo_process_groups=False)
        with patch.object(parallel_state, "initialize_model_parallel", build):
            topology = init_topology(parallel)
        groups_s = time.perf_counter() - started
        grown = psutil.Process().memory_info().rss - before
        sizes = [1000 + 7919 * i % 31000 for i in range(PER_RANK * topology.dp_size)]
        started = time.perf_counter()
        assign(sizes, BatchConfig(max_tokens_per_microbatch=32768), topology.dp_size)
        return Cost(ranks, groups_s, grown / 1e6, time.perf_counter() - started)


def main() -> None:
    """Measure each number of ranks in a process of its own."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(asdict(measure(int(sys.argv[1])))))
        return
    rows: list[str] = []
    for ranks in (64, 128, 256, 512, 1024):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, str(ranks)], check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        cost = Cost(**json.loads(done.stdout.splitlines()[-1]))
        rows.append(
            f"| {ranks} | {ranks // (TP * PP)} | {cost.groups_s:.2f} | {cost.groups_mb:.0f} | "
            f"{1000 * cost.share_s:.1f} |"
        )
        sys.stdout.write(f"{rows[-1]}\n")
    head = (
        f"Control cost of rank 0, simulated in one process over torch's fake backend: TP {TP}, "
        f"PP {PP}, {PER_RANK} sequences of an update for each data-parallel rank.\n"
        "Made by tools/bench/scale.py on two CPU cores.\n\n"
        "| ranks | DP | process groups, once (s) | memory (MB) | sharing out an update (ms) |\n"
        "|---|---|---|---|---|\n"
    )
    out = ROOT / "tools" / "bench" / "results" / "scale.md"
    out.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
