"""Memory of a rank and speed of a run, before there is one, and which layouts would do.

Memory is counted tensor by tensor as our engine makes them, and was compared with measurements on a
CPU (tools/bench/memory.py). Speed is floating-point operations over an assumed utilisation: it
ranks layouts, and hours follow the assumption. Not here: sizes of models (`_sizes.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from megatron_reason.config.gpus import GIB, GPUS, Gpu, GpuName
from megatron_reason.config.model import Precision
from megatron_reason.pipeline._sizes import Sizes
from megatron_reason.pipeline.engine_share import EngineShare
from megatron_reason.schema.method import Frozen, Needs

Recompute = Literal["none", "selective", "full"]
DEFAULT_MFU = 0.35
"""Assumed share of a GPU's peak, before what a layout costs."""
_OVERHEAD = 3 * GIB
"""CUDA context, communication buffers and workspaces of libraries; an assumption."""
_USABLE = 0.95
"""Share of a GPU's memory that fragmentation leaves; an assumption."""
_LOGITS_KEPT = 256 * 2**20
_LOGITS_CHUNK = 1024
"""Tokens at most whose logits exist at once (`HeadOptions.tokens_per_chunk`, twice)."""
# What a layout costs in speed; assumptions that order layouts.
_TP_COST = 0.05
_CP_COST = 0.05
_RECOMPUTE_COST: dict[Recompute, float] = {"none": 1.0, "selective": 1.15, "full": 4 / 3}


@dataclass(frozen=True)
class Layout:
    """How a training is laid over its ranks."""

    tp: int
    pp: int
    dp: int
    tokens: int
    """Tokens of a micro-batch, of which a context-parallel rank holds an equal part."""
    recompute: Recompute = "none"
    sequence_parallel: bool = False
    cp: int = 1

    @property
    def ranks(self) -> int:
        """All ranks."""
        return self.tp * self.pp * self.cp * self.dp

    @property
    def own_tokens(self) -> float:
        """Tokens of a micro-batch on one rank."""
        return self.tokens / self.cp

    def __str__(self) -> str:
        words = [f"TP {self.tp}", f"PP {self.pp}"]
        if self.cp > 1:
            words.append(f"CP {self.cp}")
        words += [f"DP {self.dp}", f"{self.tokens} tokens"]
        if self.recompute != "none":
            words.append(f"recompute {self.recompute}")
        return ", ".join(words)


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that holds most."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    reference: float = 0.0
    """A frozen copy of the weights, for methods that compare with one."""
    engine: float = 0.0
    """What an engine takes of the same GPU; of one that sleeps, what it takes beyond the rest."""

    @property
    def total(self) -> float:
        """All of it."""
        return (
            self.weights + self.gradients + self.optimizer + self.activations + self.logits
            + self.reference + self.engine
        )  # fmt: skip


@dataclass(frozen=True)
class Extras:
    """What a run holds besides the model it trains."""

    value_bytes: int = 2
    """Bytes of a weight and of an activation."""
    has_reference: bool = False
    """Whether a frozen copy of the weights is compared with."""
    engine: EngineShare | None = None
    """What an engine takes of the same GPU."""
    keeps_logits: bool = False
    """Whether the head's logits wait for a backward pass (docs/token_stats.md, Memory)."""
    optimizer_states: int = 1
    """Sets of moments."""

    @classmethod
    def of(cls, dtype: Precision, needs: Needs, engine: EngineShare | None = None) -> "Extras":
        """What a method adds to a model with weights of `dtype`."""
        frozen = needs.frozen & {Frozen.REF_LOGPROB, Frozen.REF_HIDDEN}
        keeps = needs.whole_sequences or Frozen.REF_HIDDEN in frozen
        return cls(
            4 if dtype == "float32" else 2, bool(frozen), engine, keeps,
            needs.optimizer_states,
        )  # fmt: skip


def memory_of(sizes: Sizes, layout: Layout, extras: Extras) -> Memory:
    """Memory of the rank that holds most, of the first and the last stage."""
    stages = {0, layout.pp - 1}
    return max((_stage(sizes, layout, extras, stage) for stage in stages), key=lambda m: m.total)


def _stage(sizes: Sizes, layout: Layout, extras: Extras, stage: int) -> Memory:
    is_first, is_last = stage == 0, stage == layout.pp - 1
    layers = sizes.layers // layout.pp
    ends = is_first + (is_last and not (sizes.tied and is_first))
    matrices = layers * sizes.layer_matrices + ends * sizes.embedding
    weights = matrices / layout.tp + layers * sizes.layer_small
    wide = extras.value_bytes == 4
    # Main weights are a copy only where the model's are not float32 themselves.
    per_weight = 8 * extras.optimizer_states + (0 if wide else 4)
    in_flight = layout.pp - stage
    activations = _activations(sizes, layout, extras.value_bytes, layers, in_flight)
    logits = _logits(sizes, layout, extras) if is_last else 0.0
    return Memory(
        weights=weights * extras.value_bytes,
        gradients=weights * 4,
        optimizer=weights * per_weight / (layout.dp * layout.cp),
        activations=activations,
        logits=logits,
        reference=weights * extras.value_bytes if extras.has_reference else 0.0,
        engine=extras.engine.beside(activations + logits) if extras.engine else 0.0,
    )


def _activations(
    sizes: Sizes, layout: Layout, value_bytes: int, layers: int, in_flight: int
) -> float:
    """What autograd keeps, for all micro-batches that a stage has begun and not ended."""
    shared = layout.tp if layout.sequence_parallel else 1
    attention = sizes.heads * sizes.head_dim / layout.tp
    keys = sizes.kv_heads * sizes.head_dim / layout.tp
    # The projection (whole, for the values are a view of it), rotated queries and keys, and the
    # context twice: from the kernel, and joined again from the packed sequences.
    mixing = (attention + 2 * keys) + (attention + keys) + 2 * attention
    if layout.cp > 1:
        # Keys and values of all ranks, as far as this rank's two pieces of a sequence see them.
        mixing += 2 * keys * (layout.cp + 0.5)
    # Gate and up, their activation, and the product that goes down.
    feed_forward = 4 * sizes.ffn / layout.tp
    norms = 4 * sizes.hidden / shared
    whole = norms + mixing + feed_forward
    kept = {
        "none": layers * whole,
        "selective": layers * (norms + mixing) + feed_forward,
        "full": layers * sizes.hidden / shared + whole,
    }[layout.recompute]
    return kept * layout.own_tokens * value_bytes * in_flight


def _logits(sizes: Sizes, layout: Layout, extras: Extras) -> float:
    """Chunks of logits, and float32 gradients of hidden states and head while they are formed."""
    vocab, value_bytes = sizes.vocab / layout.tp, extras.value_bytes
    row = vocab * value_bytes
    kept = min(_LOGITS_KEPT, layout.own_tokens * row) if extras.keeps_logits else 0.0
    chunk = min(_LOGITS_CHUNK, layout.own_tokens) * vocab * (value_bytes + 4)
    gradients = (layout.own_tokens + vocab) * sizes.hidden * (4 + value_bytes)
    return kept + chunk + gradients


@dataclass(frozen=True)
class Workload:
    """What one update of a run has to compute."""

    tokens_per_update: float
    longest: int
    """Tokens of the longest sequence; a micro-batch must hold it."""
    mean_length: float
    """Tokens of a sequence on average, for the cost of attention."""


def flops_per_token(sizes: Sizes, mean_length: float) -> float:
    """Operations of forward and backward pass: 6 per weight, and causal attention."""
    matrices = sizes.layers * sizes.layer_matrices + sizes.embedding
    attention = sizes.layers * sizes.heads * sizes.head_dim * mean_length
    return 6 * matrices + 6 * attention


def tokens_per_second(sizes: Sizes, layout: Layout, work: Workload, gpu: Gpu, mfu: float) -> float:
    """Tokens all ranks together train on in a second, if their GPUs reach `mfu` of their peak."""
    microbatches = max(1.0, work.tokens_per_update / (layout.dp * layout.tokens))
    bubble = (microbatches + layout.pp - 1) / microbatches
    cost = bubble * _RECOMPUTE_COST[layout.recompute]
    cost *= (1 + _TP_COST) ** _halvings(layout.tp) * (1 + _CP_COST) ** _halvings(layout.cp)
    rate = layout.ranks * gpu.flops * mfu / flops_per_token(sizes, work.mean_length)
    # Fewer micro-batches than data-parallel ranks leave some of these idle.
    idle = min(1.0, work.tokens_per_update / (layout.dp * layout.tokens))
    return rate * idle / cost


def _halvings(size: int) -> int:
    return (size - 1).bit_length()


@dataclass(frozen=True)
class Proposal:
    """A layout and what it comes to."""

    layout: Layout
    memory: Memory
    tokens_per_s: float
    fits: bool


@dataclass(frozen=True)
class Machine:
    """The GPUs a run may take."""

    gpu: GpuName
    count: int
    per_node: int = 8

    @property
    def usable(self) -> float:
        """Bytes of a GPU that tensors can take."""
        return GPUS[self.gpu].memory * _USABLE - _OVERHEAD


def propose(
    sizes: Sizes, layout: Layout, work: Workload, machine: Machine, extras: Extras, *, mfu: float
) -> Proposal:
    """What `layout` comes to on `machine`."""
    memory = memory_of(sizes, layout, extras)
    rate = tokens_per_second(sizes, layout, work, GPUS[machine.gpu], mfu)
    return Proposal(layout, memory, rate, memory.total <= machine.usable)


def ranked(
    sizes: Sizes, work: Workload, machine: Machine, extras: Extras, *, tokens: int, mfu: float
) -> list[Proposal]:
    """Layouts that fit, the fastest first."""
    found = [
        propose(sizes, layout, work, machine, extras, mfu=mfu)
        for layout in _layouts(sizes, machine, tokens)
    ]
    return sorted((p for p in found if p.fits), key=lambda p: -p.tokens_per_s)


def _layouts(sizes: Sizes, machine: Machine, tokens: int) -> Iterator[Layout]:
    recomputes: tuple[Recompute, ...] = ("none", "selective", "full")
    shared = (1, 2, 4, 8)
    for tp, cp, pp in product(shared, shared, range(1, machine.count + 1)):
        if machine.count % (tp * cp * pp) or tp * cp > machine.per_node:
            continue
        if _splits(sizes, tp, pp):
            dp = machine.count // (tp * cp * pp)
            for recompute in recomputes:
                yield Layout(tp, pp, dp, tokens, recompute, sequence_parallel=tp > 1, cp=cp)


def _splits(sizes: Sizes, tp: int, pp: int) -> bool:
    return sizes.splits(tp) and sizes.layers % pp == 0


def cheapest_changes(
    sizes: Sizes, layout: Layout, extras: Extras, *, limit: float, longest: int
) -> list[tuple[str, float]]:
    """Single changes, on as many ranks, under which memory stays below `limit` bytes.

    Returns:
        At most three: what to set, and the bytes predicted; the least cost in speed first.
    """
    changes: list[tuple[str, Layout]] = []
    if layout.tokens // 2 >= longest:
        halved = replace(layout, tokens=layout.tokens // 2)
        changes.append((f"train.batch.max_tokens_per_microbatch: {halved.tokens}", halved))
    if layout.tp > 1 and not layout.sequence_parallel:
        changes.append(
            ("train.parallel.sequence_parallel: true", replace(layout, sequence_parallel=True))
        )
    order: list[Recompute] = ["none", "selective", "full"]
    for recompute in order[order.index(layout.recompute) + 1 :]:
        changed = replace(layout, recompute=recompute)
        changes.append((f"train.parallel.recompute: {recompute}", changed))
    for key, factors in {
        "tensor": [(2 * layout.tp, layout.pp), (4 * layout.tp, layout.pp)],
        "pipeline": [(layout.tp, 2 * layout.pp), (layout.tp, 4 * layout.pp)],
    }.items():
        for tp, pp in factors:
            if layout.ranks % (tp * pp * layout.cp) or not _splits(sizes, tp, pp):
                continue
            size = tp if key == "tensor" else pp
            sequence = layout.sequence_parallel or key == "tensor"
            dp = layout.ranks // (tp * pp * layout.cp)
            changed = replace(layout, tp=tp, pp=pp, dp=dp, sequence_parallel=sequence)
            words = f"train.parallel.{key}_model_parallel_size: {size}"
            if sequence and not layout.sequence_parallel:
                words += " with sequence_parallel: true"
            changes.append((words, changed))
    for factor in (2, 4):
        if layout.dp % factor == 0:
            changed = replace(layout, cp=factor * layout.cp, dp=layout.dp // factor)
            changes.append((f"train.parallel.context_parallel_size: {changed.cp}", changed))
    totals = [(words, memory_of(sizes, changed, extras).total) for words, changed in changes]
    totals = [*_engine_changes(sizes, layout, extras, limit), *totals]
    return [(words, total) for words, total in totals if total <= limit][:3]


def _engine_changes(
    sizes: Sizes, layout: Layout, extras: Extras, limit: float
) -> Iterator[tuple[str, float]]:
    """What an engine on the same GPU can do for the trainer: take less of it, or sleep."""
    if extras.engine is None:
        return

    def total(engine: EngineShare) -> float:
        return memory_of(sizes, layout, replace(extras, engine=engine)).total

    for engine in extras.engine.smaller():
        if total(engine) <= limit:
            yield f"engine.gpu_memory_fraction: {engine.fraction:.2f}", total(engine)
            break
    if not extras.engine.sleeps:
        yield "engine.sleep_mode: true", total(replace(extras.engine, sleeps=True))
