"""Seconds from the trainer's weights to an engine that answers with them, beside plain copies.

    python tools/bench/sync.py --model smollm2-135m --rounds 7

One trainer process on the CPU, one engine beside it, or servers on the same machine: `tcp` and
`broadcast` are `mreason serve` with that transport of their weights. Each server wants all cores,
so that several of them on one machine wait for each other more than for their weights.

Each round, in turn:

- copy: one `copy_` of as many bytes within a process, memory already touched;
- handover: what any way between two processes needs: one copy into shared memory, one out of it in
  the other process, one after the other;
- vllm: vLLM's own `reload_weights` of the same tensors from a file in memory, heads and cache
  included, which is what its repacking of every matrix takes on a CPU (not for `transformers`);
- sync: `WeightSync.push`, from gathering the first tensor until the engine is ready, with checksums
  on both sides; the probe is timed apart.

Ratios are those of a round, the result is their median: a neighbour slows all. Beside seconds by
the clock stand CPU seconds of all processes that take part, which a neighbour changes little. Goes
to `tools/bench/results/`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Cost:
    """What something took."""

    wall: float
    """Seconds by the clock."""
    cpu: float
    """CPU seconds of all processes that took part."""


@dataclass(frozen=True)
class Round:
    """One after the other."""

    copy: Cost
    handover: Cost
    vllm: Cost | None
    sync: Cost
    probe: float
    probe_difference: float


def cost(action: Callable[[], object], *others: int) -> Cost:
    """What `action` takes here and in the processes with these ids."""

    def cpu() -> float:
        own = [psutil.Process(pid).cpu_times() for pid in others]
        return time.process_time() + sum(times.user + times.system for times in own)

    begun, used = time.perf_counter(), cpu()
    action()
    return Cost(time.perf_counter() - begun, cpu() - used)


def take_out(connection: Connection, path: str, size: int) -> None:
    """In another process: copy what lies in shared memory, whenever asked, and say so."""
    import torch

    from megatron_reason.generation.buckets import mapped

    torch.set_num_threads(1)
    memory = mapped(path, size)
    target = torch.ones(size, dtype=torch.uint8)
    connection.send("ready")
    while connection.recv() == "take":
        target.copy_(memory)
        connection.send("taken")


class Handover:
    """Two copies of `size` bytes, in two processes."""

    def __init__(self, size: int) -> None:
        import torch

        from megatron_reason.generation.buckets import SharedBuffer, described

        self._bucket = [described("bytes", torch.ones(size, dtype=torch.uint8))]
        self._buffer = SharedBuffer()
        self._buffer.fill(self._bucket)
        self._connection, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=take_out, args=(theirs, self._buffer.path, size), daemon=True
        )
        process.start()
        assert process.pid is not None, "it was started"
        self.pid = process.pid
        self._connection.recv()
        self()

    def close(self) -> None:
        """End the other process."""
        self._connection.send("enough")

    def __call__(self) -> None:
        """Do it once."""
        self._buffer.fill(self._bucket)
        self._connection.send("take")
        self._connection.recv()


@contextmanager
def opened(kind: str, model: Path, scratch: Path, servers: int) -> Iterator[tuple[Any, list[int]]]:
    """An engine, started on the model, and the processes in which it computes."""
    from megatron_reason.config.sampling import EngineConfig
    from megatron_reason.generation.open import open_engine

    settings: dict[str, Any] = {"max_model_len": 256, "kv_cache_mb": 64}
    served: list[psutil.Process] = []
    with ExitStack() as stack:
        if kind in ("tcp", "broadcast"):
            settings["weight_transport"] = kind
            served = [stack.enter_context(server(model, scratch, settings)) for _ in range(servers)]
            where = {"servers_folder": str(scratch / "servers"), "num_servers": servers}
            settings |= {"name": "vllm-server", **where}
        else:
            settings["name"] = kind
        config = EngineConfig.model_validate(settings)
        engine: Any = open_engine(model, config, dtype="bfloat16", log_folder=scratch)
        stack.callback(engine.close)
        pids = [child.pid for one in served for child in one.children(recursive=True)]
        yield engine, [engine.pid] if kind == "vllm" else pids


@contextmanager
def server(model: Path, scratch: Path, settings: dict[str, Any]) -> Iterator[psutil.Process]:
    """`mreason serve`."""
    run = scratch / "run.yaml"
    content = {"run": {"name": "served", "dir": str(scratch)},
               "model": {"path": str(model), "dtype": "bfloat16"}, "engine": settings}  # fmt: skip
    run.write_text(json.dumps(content), encoding="utf-8")
    command = [sys.executable, "-m", "megatron_reason.cli.app", "serve", str(run), "--port", "0"]
    with subprocess.Popen([*command, "--register", str(scratch / "servers")]) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def push_into(reports: list[Any], sync: Any, version: int) -> None:  # noqa: ANN401
    """Push, and keep the report."""
    reports.append(sync.push(version))


def race(model: Path, kind: str, bucket_mb: int, rounds: int, servers: int) -> dict[str, Any]:
    """All rounds with one engine."""
    import torch

    from megatron_reason import platform
    from megatron_reason.config.model import ModelConfig
    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.config.sync import SyncConfig

    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as scratch,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
        platform.cpu(),
        opened(kind, model, Path(scratch), servers) as (engine, children),
    ):
        from megatron_reason.engine.startup import load_model, parallel_world
        from megatron_reason.rollout.weight_sync import WeightSync

        shutil.copytree(model, memory, dirs_exist_ok=True)
        with parallel_world(ParallelConfig(), seed=1) as topology:
            config = ModelConfig(path=str(model), dtype="bfloat16")
            stage = load_model(config, model, ParallelConfig(), topology)
            sync = WeightSync(
                stage, model, topology=topology, engine=engine,
                config=SyncConfig(bucket_mb=bucket_mb),
            )  # fmt: skip
            first = sync.push(0)
            size = first.num_bytes
            source, target = torch.ones(2, size, dtype=torch.uint8)
            handover = Handover(size)
            found: list[Round] = []
            for number in range(rounds):
                copy = cost(lambda: target.copy_(source))
                over = cost(handover, handover.pid)
                own = None
                if children:
                    own = cost(lambda: engine.load_weights(Path(memory)), *children)
                reports: list[Any] = []
                push = partial(push_into, reports, sync, number + 1)
                both = cost(push, *children)
                (report,) = reports
                # The probe's share of the CPU is taken for that of its time.
                share = report.seconds / (report.seconds + report.probe_seconds)
                moved = Cost(report.seconds, both.cpu * share)
                found.append(
                    Round(
                        copy, over, own, moved, report.probe_seconds, report.probe_difference
                    )
                )  # fmt: skip
            handover.close()
    return {"engine": kind, "bytes": size, "buckets": first.num_buckets,
            "rounds": [asdict(one) for one in found]}  # fmt: skip


def page(results: list[dict[str, Any]], about: str) -> str:
    """The table."""
    lines = [
        f"# Weight sync\n\n{about}\n",
        "| engine | MB | buckets | what | copy (ms) | handover (ms) | vLLM's own reload (ms) "
        "| sync (ms) | sync / copy | sync / handover | sync / reload | probe (ms, clock) "
        "| probe difference (nats) |",
        "| --- " * 13 + "|",
    ]
    for result in results:
        for kind, title in (("wall", "clock"), ("cpu", "CPU")):
            lines.append(row(result, kind, title))
    return "\n".join(lines) + "\n"


def row(result: dict[str, Any], kind: str, title: str) -> str:
    """One line of the table: medians, and medians of a round's ratios."""
    rounds: list[dict[str, Any]] = result["rounds"]
    named = {
        name: [one[name][kind] for one in rounds]
        for name in ("copy", "handover", "vllm", "sync")
        if rounds[0][name] is not None
    }
    times = [f"{1e3 * median(named[n]):.0f}" if n in named else "-"
             for n in ("copy", "handover", "vllm", "sync")]  # fmt: skip
    ratios = [
        f"{median(a / b for a, b in zip(named['sync'], named[n], strict=True)):.1f}"
        if n in named else "-"
        for n in ("copy", "handover", "vllm")
    ]  # fmt: skip
    cells = [
        result["engine"], f"{result['bytes'] / 1e6:.0f}", result["buckets"], title, *times, *ratios,
        f"{1e3 * median(one['probe'] for one in rounds):.0f}",
        f"{median(one['probe_difference'] for one in rounds):.4f}",
    ]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--engines", nargs="+", default=["vllm", "transformers", "tcp", "broadcast"]
    )
    parser.add_argument("--bucket-mb", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--servers", type=int, default=1, help="of tcp and of broadcast")
    chosen = parser.parse_args()
    from megatron_reason.models.sources import resolve_model

    model = resolve_model(chosen.model, ROOT / "models")
    found = [
        race(model, kind, chosen.bucket_mb, chosen.rounds, chosen.servers)
        for kind in chosen.engines
    ]
    about = (
        f"`python tools/bench/sync.py --model {chosen.model} --rounds {chosen.rounds} --bucket-mb "
        f"{chosen.bucket_mb} --servers {chosen.servers}`, {date.today()}, "
        f"{len(os.sched_getaffinity(0))} CPU cores, bfloat16."
    )
    text = page(found, about)
    print(text)
    results = ROOT / "tools" / "bench" / "results"
    (results / "sync.md").write_text(text, encoding="utf-8")
    content = {"about": about, "results": found}
    (results / "sync.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
