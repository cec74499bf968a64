"""Time and memory of the token statistics against other ways to get them, as ratios in one run.

    python tools/bench/token_stats.py --all
    python tools/bench/token_stats.py --tokens 1024 --dtype float32 --rounds 3
    torchrun --nproc-per-node 2 tools/bench/token_stats.py --tokens 1024

Three tasks: `head` (hidden states to both statistics and back, cotangents for both), `forward`
(no gradients), and `logits` (the same as `head` from logits that exist); and `log-prob`, `head`
without entropies, where a peer that has none is installed. Every implementation gets
the same inputs; rounds are interleaved; on a CPU the figure is the median of CPU seconds of one
thread per rank, because machines are shared, on a GPU of wall seconds. Memory is the peak beyond
what is resident before the call, of which the gradients every implementation must return are shown
apart. The floor is what nobody can do without, timed in the same rounds: the products alone, the
faster of torch's and ours, or from logits one pass that reads and writes them. A peer in
`token_stats_peers.py` counts for the ratio if it gives the entropy's gradient, as all there
do. Writes JSON and a table to `tools/bench/results/`. Sizes default to SmolLM2's head on a CPU, and
to Qwen2.5-7B's on a GPU.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from itertools import product as product_of
from pathlib import Path
from statistics import median

import token_stats_summary
import torch
import torch.distributed as dist
from token_stats_peers import (
    PEERS,
    WHOLE_VOCABULARY_ONLY,
    HeadPeer,
    LogprobPeer,
    Pair,
    Peer,
    head_peers,
    logprob_peers,
)
from torch import Tensor

from megatron_reason import platform
from megatron_reason.ops.head import chunks_of
from megatron_reason.ops.inputs import Request
from megatron_reason.ops.products import product
from megatron_reason.ops.streaming import streamed_loss
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from megatron_reason.schema.batch import TokenStats

RESULTS = Path(__file__).parent / "results"
KEEP_ALL = HeadOptions(saved_logits_bytes=2**40)
FORWARD = HeadOptions()
FLOORS = {"head": "products", "log-prob": "products", "forward": "product", "logits": "pass"}
"""What nobody can do without, by task: a part of the names of the measurements of it."""


@dataclass(frozen=True)
class Case:
    """Inputs that all implementations share."""

    hidden: Tensor
    weight: Tensor
    target: Tensor
    grad_logprob: Tensor
    grad_entropy: Tensor
    group: "dist.ProcessGroup | None"

    def loss(self, logprob: Tensor, entropy: Tensor, rows: slice = slice(None)) -> Tensor:
        """Weighted values of some tokens, of which the cotangents are the weights."""
        return logprob * self.grad_logprob[rows] + entropy * self.grad_entropy[rows]


@dataclass
class Row:
    """What was measured of one implementation."""

    name: str
    task: str
    is_own: bool
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Beyond what was resident before, without the gradients that the call returns."""
    gradients_mib: float = 0.0


@dataclass(frozen=True)
class Run:
    """One implementation at one task."""

    call: Callable[[], list[Tensor]]
    """What is timed; returns the gradients it made."""
    prepare: Callable[[], object] = lambda: None
    """What has to happen before each call and is not timed."""


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    on_gpu = platform.device().type == "cuda"
    parser.add_argument("--tokens", type=int, default=8192 if on_gpu else 1024)
    parser.add_argument("--width", type=int, default=3584 if on_gpu else 576)
    parser.add_argument("--vocab", type=int, default=151936 if on_gpu else 49152)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=4096 if on_gpu else 512)
    parser.add_argument("--all", action="store_true", help="every case of docs/token_stats.md")
    parser.add_argument("--only", default="", help="measure only tasks and names containing this")
    arguments = parser.parse_args()
    if arguments.all:
        measure_all(arguments.rounds)
        return
    if not on_gpu:
        torch.set_num_threads(1)
    with joined_ranks(), platform.cpu():
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(dist.get_world_size())
        case = make_case(arguments)
        runs = implementations(case, arguments.chunk)
        chosen = {key: run for key, run in runs.items() if arguments.only in " ".join(key)}
        rows = measure(chosen, arguments.rounds)
        if dist.get_rank() == 0:
            report(rows, arguments)


def measure_all(rounds: int) -> None:
    """Every case on a CPU, each in processes of its own, and what the page shows of them."""
    for tokens, dtype, ranks in product_of((1024, 2048), ("float32", "bfloat16"), (1, 2)):
        launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
        sizes = ["--tokens", str(tokens), "--dtype", dtype, "--rounds", str(rounds)]
        start = launcher if ranks > 1 else []
        subprocess.run([sys.executable, *start, __file__, *sizes], check=True)
    token_stats_summary.main()


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Torchrun's process group, or one of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        if dist.is_torchelastic_launched():
            dist.init_process_group(platform.distributed_backend())
        else:
            place = f"file://{folder}/rendezvous"
            dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def make_case(arguments: argparse.Namespace) -> Case:
    """Random hidden states and head of the asked sizes; logits of standard deviation about 3."""
    size, rank = dist.get_world_size(), dist.get_rank()
    dtype, device = getattr(torch, arguments.dtype), platform.device()
    torch.manual_seed(0)
    hidden = torch.randn(arguments.tokens, arguments.width) * 3 / arguments.width**0.5
    weight = torch.randn(arguments.vocab, arguments.width)
    own = weight[rank * arguments.vocab // size : (rank + 1) * arguments.vocab // size]
    return Case(
        hidden.to(device, dtype),
        own.to(device, dtype, copy=True),
        torch.randint(arguments.vocab, (arguments.tokens,)).to(device),
        torch.randn(arguments.tokens).to(device),
        torch.randn(arguments.tokens).to(device),
        dist.group.WORLD if size > 1 else None,
    )


def implementations(case: Case, chunk: int) -> dict[tuple[str, str], Run]:
    """Every implementation by task and name; names of ours begin with `own`."""
    logits = case.hidden @ case.weight.T
    copy = logits.clone()
    runs = {
        ("floor", "torch's products"): Run(partial(products, case, torch.mm)),
        ("floor", "own products"): Run(partial(products, case, product)),
        ("floor", "torch's product"): Run(partial(one_product, case, torch.mm)),
        ("floor", "own product"): Run(partial(one_product, case, product)),
        ("floor", "a pass over logits"): Run(partial(one_pass, copy)),
    }
    stream = HeadOptions(tokens_per_chunk=chunk)
    recompute = HeadOptions(saved_logits_bytes=0, tokens_per_chunk=chunk)
    for name, options in (("own, saved", KEEP_ALL), ("own, recomputed", recompute)):
        runs["head", name] = Run(partial(from_head, case, partial(own_stats, case, options)))
    runs["head", "own, streamed"] = Run(partial(own_streamed, case, stream))
    runs["forward", "own"] = Run(partial(forward_only, case, partial(own_stats, case, FORWARD)))
    runs["logits", "own"] = Run(partial(from_logits, case, logits, own_logits))
    overwritten = partial(from_logits, case, copy, partial(own_logits, overwrite=True))
    runs["logits", "own, overwriting"] = Run(overwritten, lambda: copy.copy_(logits))
    for name, peer in PEERS.items():
        if case.group is not None and name in WHOLE_VOCABULARY_ONLY:
            continue
        whole = partial(peer_stats, case, peer)
        runs["head", name] = Run(partial(from_head, case, whole))
        runs["forward", name] = Run(partial(forward_only, case, whole))
        runs["logits", name] = Run(partial(from_logits, case, logits, peer))
    for name, fused in head_peers().items():
        if fused is not None and case.group is None:
            whole = partial(fused_stats, case, fused)
            runs["head", name] = Run(partial(from_head, case, whole))
            runs["forward", name] = Run(partial(forward_only, case, whole))
    present = {name: peer for name, peer in logprob_peers().items() if peer is not None}
    if present and case.group is None:
        runs["log-prob", "own"] = Run(partial(own_streamed, case, stream, logprob_only=True))
        for name, alone in present.items():
            runs["log-prob", name] = Run(partial(logprob_from_head, case, alone))
    return runs


def own_stats(case: Case, options: HeadOptions, hidden: Tensor, weight: Tensor) -> Pair:
    """Our two-pass form."""
    stats = token_stats(hidden, weight, case.target, tp_group=case.group, options=options)
    return stats.logprob_T, stats.entropy_T


def own_logits(
    logits: Tensor, target: Tensor, group: "dist.ProcessGroup | None", *, overwrite: bool = False
) -> Pair:
    """Our form for logits that exist."""
    options = HeadOptions(overwrite_logits=overwrite)
    stats = token_stats_from_logits(logits, target, tp_group=group, options=options)
    return stats.logprob_T, stats.entropy_T


def own_streamed(case: Case, options: HeadOptions, *, logprob_only: bool = False) -> list[Tensor]:
    """Our one-pass form."""
    hidden, weight = (t.detach().requires_grad_() for t in (case.hidden, case.weight))

    def token_loss(stats: TokenStats, rows: slice) -> Tensor:
        if logprob_only:
            return stats.logprob_T * case.grad_logprob[rows]
        return case.loss(stats.logprob_T, stats.entropy_T, rows)

    loss, _ = streamed_loss(
        hidden, weight, case.target, token_loss, tp_group=case.group, options=options
    )
    return list(torch.autograd.grad(loss, (hidden, weight)))


def peer_stats(case: Case, peer: Peer, hidden: Tensor, weight: Tensor) -> Pair:
    """A plain head, then a peer; its gradient of hidden states still lacks the other ranks'."""
    return peer(hidden @ weight.T, case.target, case.group)


def fused_stats(case: Case, fused: HeadPeer, hidden: Tensor, weight: Tensor) -> Pair:
    """A peer that multiplies by the head itself."""
    return fused(hidden, weight, case.target)


def from_head(case: Case, stats: Callable[[Tensor, Tensor], Pair]) -> list[Tensor]:
    """Forward and backward through a head."""
    hidden, weight = (t.detach().requires_grad_() for t in (case.hidden, case.weight))
    loss = case.loss(*stats(hidden, weight)).sum()
    return list(torch.autograd.grad(loss, (hidden, weight)))


def logprob_from_head(case: Case, peer: LogprobPeer) -> list[Tensor]:
    """Forward and backward of log-probs alone."""
    hidden, weight = (t.detach().requires_grad_() for t in (case.hidden, case.weight))
    loss = (peer(hidden, weight, case.target) * case.grad_logprob).sum()
    return list(torch.autograd.grad(loss, (hidden, weight)))


def forward_only(case: Case, stats: Callable[[Tensor, Tensor], Pair]) -> list[Tensor]:
    """Forward through a head, without gradients."""
    with torch.no_grad():
        stats(case.hidden, case.weight)
    return []


def from_logits(case: Case, logits: Tensor, peer: Peer) -> list[Tensor]:
    """Forward and backward from logits."""
    leaf = logits.detach().requires_grad_()
    loss = case.loss(*peer(leaf, case.target, case.group)).sum()
    return list(torch.autograd.grad(loss, leaf))


def products(case: Case, multiply: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The three products nobody can do without, into new memory."""
    logits = multiply(case.hidden, case.weight.T)
    return [multiply(logits, case.weight), multiply(logits.T, case.hidden)]


def one_product(case: Case, multiply: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    """The product that statistics alone need."""
    multiply(case.hidden, case.weight.T)
    return []


def one_pass(logits: Tensor) -> list[Tensor]:
    """Read the logits and write as many numbers in their place."""
    logits.neg_()
    return []


def measure(runs: dict[tuple[str, str], Run], rounds: int) -> list[Row]:
    """Peak memory in a first round, then median seconds of interleaved rounds."""
    rows: list[Row] = []
    keep_tensors_apart(above=1 << 20)
    for (task, name), run in runs.items():
        run.prepare()
        gc.collect()
        before = resident_mib(reset=True)
        gradients = run.call()
        made = sum(gradient.nbytes for gradient in gradients) / 2**20
        del gradients
        peak = resident_mib(reset=False) - before
        rows.append(Row(name, task, name.startswith("own"), 0.0, peak - made, made))
    keep_tensors_apart(above=1 << 25)
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for taken, run in zip(seconds, runs.values(), strict=True):
            run.prepare()
            dist.barrier()
            started = clock()
            run.call()
            taken.append(clock() - started)
    for row, taken in zip(rows, seconds, strict=True):
        row.seconds = median(taken)
    return rows


def keep_tensors_apart(above: int) -> None:
    """Give larger blocks of memory back when they are freed, instead of leaving holes in the heap.

    Holes that earlier implementations left would count as memory of later ones. Pages of their own
    for 2 MiB would cost time, so that while it is taken the limit is the highest that glibc has,
    which it reaches by itself sooner or later, as it does the limit of what it keeps at its end.
    """
    if platform.device().type == "cpu":
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, above)
        libc.mallopt(m_trim_threshold, 2 * above)


def clock() -> float:
    """CPU seconds of this process, or wall seconds once the GPU is idle."""
    if platform.device().type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def resident_mib(*, reset: bool) -> float:
    """Memory in use now, after forgetting earlier peaks; or the peak since then."""
    if platform.device().type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    wanted = "VmRSS" if reset else "VmHWM"
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(wanted)) / 1024


def report(rows: list[Row], arguments: argparse.Namespace) -> None:
    """Print and store every row, with ratios to the fastest peer of its task and to the floor."""
    asked = Request(None, None, 1.0, HeadOptions(tokens_per_chunk=arguments.chunk))
    first = chunks_of(arguments.tokens, asked, getattr(torch, arguments.dtype))[0]
    title = (
        f"T = {arguments.tokens}, D = {arguments.width}, V = {arguments.vocab}, "
        f"{arguments.dtype}, TP = {dist.get_world_size()}, {platform.device().type}, chunks of "
        f"{first.stop} tokens"
    )
    lines = lines_of(rows, title)
    offered = head_peers() | logprob_peers()
    if absent := [name for name, peer in offered.items() if peer is None]:
        lines += ["", f"Not here: {', '.join(absent)}."]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    stem = (
        f"token_stats-{platform.device().type}-{arguments.dtype}-t{arguments.tokens}"
        f"-tp{dist.get_world_size()}"
    )
    record = {
        "date": date.today().isoformat(), "device": platform.name(), "case": title,
        "rounds": arguments.rounds, "chunk": arguments.chunk, "rows": [asdict(r) for r in rows],
    }  # fmt: skip
    if not arguments.only:
        (RESULTS / f"{stem}.json").write_text(json.dumps(record, indent=2) + "\n")
        (RESULTS / f"{stem}.md").write_text("\n".join(lines) + "\n")


def lines_of(rows: list[Row], title: str) -> list[str]:
    """The table."""
    floors = {
        task: min((r.seconds for r in rows if r.task == "floor" and name in r.name), default=0.0)
        for task, name in FLOORS.items()
    }
    lines = [
        f"### {title}", "",
        "| task | implementation | ms | x fastest peer | x floor | extra MiB | gradients MiB |"
        " x that peer's extra | with gradients |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for task in ("floor", "head", "forward", "logits", "log-prob"):
        mine = [row for row in rows if row.task == task]
        peers = [row for row in mine if not row.is_own and task != "floor"]
        best = min(peers, key=lambda r: r.seconds, default=None)
        lines += [
            line_of(row, best, floors.get(task, 0.0))
            for row in sorted(mine, key=lambda r: r.seconds)
        ]
    return lines


def line_of(row: Row, best: Row | None, floor: float) -> str:
    """One line of the table; `best` is the fastest peer at the same task."""
    taken = [f"{row.seconds * 1e3:.0f}", "", f"{row.seconds / floor:.2f}" if floor else ""]
    memory = [f"{row.peak_mib:.0f}", f"{row.gradients_mib:.0f}", "", ""]
    if best is not None:
        taken[1] = f"{row.seconds / best.seconds:.2f}"
        memory[2] = f"{row.peak_mib / best.peak_mib if best.peak_mib else 0.0:.2f}"
        whole = max(best.peak_mib + best.gradients_mib, 1e-9)
        memory[3] = f"{(row.peak_mib + row.gradients_mib) / whole:.2f}"
    return f"| {' | '.join([row.task, row.name, *taken, *memory])} |"


if __name__ == "__main__":
    main()
