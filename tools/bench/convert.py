"""Throughput of import and export beside sequential reading and writing, and memory per rank.

    python tools/bench/convert.py --folder /disk/to/measure --rounds 5

A random checkpoint of the shape of Qwen2.5-1.5B (or `--layers` of it) in bfloat16. Each round, in
one process: `dd` reads the checkpoint's files into one buffer, we load them into a model that is
built already, both after the files' pages were dropped from the page cache, which `mincore`
confirms; a loop like `dd conv=fsync` writes as many random bytes, we export the model, whose files
are synced, too; what was written is removed within the time. Who goes first alternates, since the
second finds a host's caches filled. Ratios are those of a round, the result is their median: a
neighbour slows both sides.

Memory: RssAnon of each rank, sampled every 2 ms, over what it was before; that is all memory a rank
cannot give back. Pages of the mapped checkpoint are left out: they are the page cache, shared by
the ranks of a node and dropped when anybody needs room. Loading counts from before the model is
built, so the shard is in it; exporting counts from after the load, so the shard is added. Results
go to `tools/bench/results/`.
"""

import argparse
import ctypes
import gc
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

BLOCK = 1 << 24
RANDOM = os.urandom(BLOCK)
QWEN2_5_1_5B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
    "num_key_value_heads": 2, "tie_word_embeddings": True, "dtype": "bfloat16",
}  # fmt: skip
MEMORY_LAYOUTS = [(1, 1), (2, 1), (1, 2)]


@dataclass(frozen=True)
class Round:
    """GB/s of the four."""

    read: float
    load: float
    write: float
    export: float


@dataclass(frozen=True)
class Memory:
    """Peak of one rank, in bytes beyond what it held before."""

    layout: str
    rank: int
    shard: int
    load: int
    export: int


def make_checkpoint(folder: Path, layers: int) -> int:
    """Random weights in files of 1 GB; returns their bytes."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from megatron_reason.files import write_json
    from megatron_reason.models.checkpoint_files import Stored, write_safetensors

    config = Qwen2Config(num_hidden_layers=layers, **QWEN2_5_1_5B)
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = Qwen2ForCausalLM(config).state_dict()
    del state["lm_head.weight"]
    files: list[dict[str, Stored]] = [{}]
    for name, tensor in state.items():
        if sum(stored.nbytes for stored in files[-1].values()) > 10**9:
            files.append({})
        files[-1][name] = Stored(torch.bfloat16, tuple(tensor.shape))
    generator = torch.Generator().manual_seed(1)
    where: dict[str, str] = {}
    for number, tensors in enumerate(files):
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        where |= dict.fromkeys(tensors, file)
        blocks = (
            0.02 * torch.randn(stored.shape, generator=generator) for stored in tensors.values()
        )
        write_safetensors(folder / file, tensors, {"format": "pt"}, (b.bfloat16() for b in blocks))
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return sum(stored.nbytes for tensors in files for stored in tensors.values())


def drop(folder: Path) -> None:
    """Drop the weights' pages from the page cache, and make sure that they are gone."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert (left := resident_pages(path)) == 0, f"{left} pages of {path.name} are still cached"


def resident_pages(path: Path) -> int:
    """Pages of a file that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        size = len(mapped)
        view = (ctypes.c_char * size).from_buffer(mapped)
        flags = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        code = libc.mincore(ctypes.byref(view), ctypes.c_size_t(size), flags)
        assert code == 0, os.strerror(ctypes.get_errno())
        found = sum(flag & 1 for flag in bytes(flags))
        del view
    return found


def read_with_dd(folder: Path) -> None:
    """Run `dd` over the weights."""
    for path in sorted(folder.glob("*.safetensors")):
        subprocess.run(
            ["dd", f"if={path}", "of=/dev/null", f"bs={BLOCK}"],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def write_like_dd(folder: Path, size: int) -> None:
    """Write, sync and remove `size` random bytes."""
    target = folder / "written"
    block = RANDOM
    with target.open("wb", buffering=0) as file:
        for left in range(size, 0, -BLOCK):
            file.write(block[:left])
        os.fsync(file.fileno())
    target.unlink()


def give_back() -> None:
    """Hand memory that was freed back to the system, so that it cannot hide what is used next."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def peak() -> Iterator[list[int]]:
    """Holds the growth of this process' private memory to its peak, once the context is left."""
    before, most, over = rss_anon(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            most[0] = max(most[0], rss_anon() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def rss_anon() -> int:
    """Bytes of private memory of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in text.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def work(job: dict[str, Any]) -> None:
    """What each worker does; times are measured where it is alone."""
    from megatron_reason import platform
    from megatron_reason.config.model import ModelConfig
    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.logs import setup_logging

    source = Path(job["source"])
    tp, pp = job["layout"]
    model = ModelConfig(path=str(source))
    parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
    with platform.cpu():
        from megatron_reason.engine.startup import parallel_world
        from megatron_reason.models.build import build_model

        with parallel_world(parallel, seed=0) as topology:
            setup_logging(rank=topology.rank)

            def build() -> Any:  # noqa: ANN401 - Megatron's stage
                give_back()
                return build_model(source, model, parallel, topology)

            result = {"memory": memory(source, build, topology)}
            result["rounds"] = [
                asdict(race(source, job["size"], number, build(), topology))
                for number in range(job["rounds"])
            ]
        if topology.rank == 0:
            Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def memory(source: Path, build: Callable[[], Any], topology: Any) -> list[Any]:  # noqa: ANN401
    """Peaks of every rank."""
    import torch.distributed as dist

    from megatron_reason.models.exporter import export_hf
    from megatron_reason.models.importer import import_hf

    target = source.with_name("exported")
    # What the first model and the first collective allocate once is no part of a shard.
    build()
    give_back()
    if topology.rank == 0:
        drop(source)
    dist.barrier()
    with peak() as load:
        stage = build()
        import_hf(stage, source, topology)
    shard = sum(parameter.nbytes for parameter in stage.parameters())
    with peak() as export:
        export_hf(stage, source, target, topology)
    layout = f"TP {topology.tp_size} PP {topology.pp_size}"
    found = Memory(layout, topology.rank, shard, load[0], shard + export[0])
    everywhere: list[Any] = [None] * topology.world_size
    dist.all_gather_object(everywhere, asdict(found))
    if topology.rank == 0:
        shutil.rmtree(target)
    return everywhere


def race(source: Path, size: int, number: int, stage: Any, topology: Any) -> Round:  # noqa: ANN401
    """Round `number`: each of the four once; what is written is also removed."""
    from megatron_reason.models.exporter import export_hf
    from megatron_reason.models.importer import import_hf

    target = source.with_name("exported")

    def export() -> None:
        export_hf(stage, source, target, topology)
        shutil.rmtree(target)

    runners: dict[str, Callable[[], None]] = {
        "read": lambda: read_with_dd(source),
        "load": lambda: import_hf(stage, source, topology),
        "write": lambda: write_like_dd(source.parent, size),
        "export": export,
    }
    speed: dict[str, float] = {}
    for pair in (["read", "load"], ["write", "export"]):
        for name in pair[:: (-1) ** number]:
            drop(source)
            begin = time.perf_counter()
            runners[name]()
            speed[name] = size / 1e9 / (time.perf_counter() - begin)
    return Round(**speed)


def measure(source: Path, size: int, layout: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Run the workers of one layout, as the program starts its own."""
    from megatron_reason.launch.base import Job
    from megatron_reason.launch.local import LocalLauncher

    result = source.with_name("result.json")
    job = {"source": str(source), "size": size, "layout": layout, "rounds": rounds}
    LocalLauncher().run(
        Job(
            name=f"TP {layout[0]} PP {layout[1]}", module="tools.bench.convert",
            arguments=("--job", json.dumps({**job, "result": str(result)})),
            processes=layout[0] * layout[1], threads_per_process=1,
            log_file=source.with_name("log"), environment={"PYTHONPATH": str(ROOT)},
        )
    )  # fmt: skip
    return json.loads(result.read_text(encoding="utf-8"))


def page(
    size: int, layers: int, rounds: list[Round], memory: list[Memory], others: tuple[float, float]
) -> str:
    """The result as Markdown; `others` is the machine's load average before and after."""
    loads = [r.load / r.read for r in rounds]
    exports = [r.export / r.write for r in rounds]
    lines = [
        "# Import and export", "",
        f"Written by `tools/bench/convert.py` on {date.today()}: {os.cpu_count()} cores, a random "
        f"Qwen2 of the widths of Qwen2.5-1.5B with {layers} layers, {size / 1e9:.2f} GB in "
        "bfloat16, one process, page cache dropped "
        f"before each. Load average of the machine {others[0]:.1f} before and {others[1]:.1f} "
        "after; with more than 1, neighbours took part in every number.", "",
        "| round | dd reads | we load | share | dd writes | we export | share |", "|---" * 7 + "|",
    ]  # fmt: skip
    for number, (r, load, export) in enumerate(zip(rounds, loads, exports, strict=True), 1):
        lines.append(
            f"| {number} | {r.read:.2f} GB/s | {r.load:.2f} GB/s | {load:.0%} "
            f"| {r.write:.2f} GB/s | {r.export:.2f} GB/s | {export:.0%} |"
        )
    lines += [
        f"| median | | | {median(loads):.0%} | | | {median(exports):.0%} |", "",
        "Peak of private memory of a rank over its shard of the weights:", "",
        "| layout | rank | shard | load | export |", "|---" * 5 + "|",
    ]  # fmt: skip
    for m in memory:
        lines.append(
            f"| {m.layout} | {m.rank} | {m.shard / 1e6:.0f} MB | {m.load / m.shard:.1%} "
            f"| {m.export / m.shard:.1%} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job", help="for the workers")
    chosen = parser.parse_args()
    if chosen.job is not None:
        work(json.loads(chosen.job))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        source = Path(folder) / "source"
        size = make_checkpoint(source, chosen.layers)
        before = os.getloadavg()[0]
        rounds: list[Round] = []
        memory: list[Memory] = []
        for layout in MEMORY_LAYOUTS:
            alone = layout == (1, 1)
            found = measure(source, size, layout, chosen.rounds if alone else 0)
            rounds += [Round(**r) for r in found["rounds"]]
            memory += [Memory(**m) for m in found["memory"]]
    others = (before, os.getloadavg()[0])
    text = page(size, chosen.layers, rounds, memory, others)
    results = ROOT / "tools" / "bench" / "results"
    (results / "convert.md").write_text(text, encoding="utf-8")
    content = {
        "date": str(date.today()), "cores": os.cpu_count(), "layers": chosen.layers, "bytes": size,
        "load_average": others,
        "rounds": [asdict(r) for r in rounds], "memory": [asdict(m) for m in memory],
    }  # fmt: skip
    (results / "convert.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
