"""What a training run is about to do, said before it does: its texts, its batches, its rate.

Not here: doing any of it (`offline.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_reason.config.train import TrainConfig
from megatron_reason.engine.optim import learning_rate
from megatron_reason.engine.order import rows_of_update
from megatron_reason.engine.packing import assign
from megatron_reason.generation.templates import Template
from megatron_reason.schema.batch import TokenizedSample
from megatron_reason.schema.method import Method, TrainState
from megatron_reason.schema.topology import Topology
from megatron_reason.training.data import TrainingSet

_MOST_UPDATES = 32
_LONGEST_TEXT = 600
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def describe_sample(sample: TokenizedSample, template: Template, *, coloured: bool) -> str:
    """A sequence as text, with what is supervised set off from what is not."""
    ending = sample.ids[-len(template.turn_end_ids) :]
    stops = [id for id in ending if id in template.stop_token_ids]
    end = (
        f"ends with {template.tokenizer.convert_ids_to_tokens(stops[0])}, which stops generation"
        if stops
        else "is cut: its last token does not stop generation"
    )
    first = max(sample.num_prompt_tokens, 1)
    prompt, supervised = _decoded(template, sample.ids[:first], sample.ids[first:])
    if coloured:
        supervised = f"{_GREEN}{supervised}{_PLAIN}"
    return (
        f"{sample.role} {sample.sample_id}: {sample.num_targets} of {sample.num_positions} "
        f"positions supervised; {end}\n"
        f"  context    | {prompt}\n"
        f"  supervised | {supervised}"
    )


def _decoded(template: Template, *parts: Sequence[int]) -> list[str]:
    texts = [str(template.tokenizer.decode(list(ids))).replace("\n", "\\n") for ids in parts]
    half = _LONGEST_TEXT // 2
    return [t if len(t) <= _LONGEST_TEXT else f"{t[:half]} [...] {t[-half:]}" for t in texts]


@dataclass(frozen=True)
class Outlook:
    """The derived sizes of a run, from the batches of its first updates."""

    updates: int
    samples_per_update: int
    tokens_per_update: float
    microbatches_per_rank: float
    tokens_per_microbatch: float
    waiting: float
    """Share of the data-parallel ranks' time spent waiting for the fullest, counted in tokens."""
    padding: float
    """Share of all positions that only fill up to a multiple or an empty micro-batch."""

    def line(self, topology: Topology) -> str:
        """One line for the log."""
        return (
            f"batch: {self.samples_per_update} sequences x {self.updates} updates; per update "
            f"{self.tokens_per_update:.0f} tokens, per rank {self.microbatches_per_rank:.1f} "
            f"micro-batches of {self.tokens_per_microbatch:.0f} tokens; padding "
            f"{self.padding:.1%}, waiting for the fullest of {topology.dp_size} ranks "
            f"{self.waiting:.1%}"
        )


def look_ahead(
    method: Method[Any], data: TrainingSet, train: TrainConfig, topology: Topology, *,
    total: int, seed: int,
) -> Outlook:  # fmt: skip
    """Pack the first updates of a run, whose samples are known, and measure them."""
    lengths = data.frame["ids"].list.len().to_list()
    consumed: dict[Any, int] = {}
    tokens = batches = fullest = placed = filled = sequences = 0
    seen = min(total, _MOST_UPDATES)
    for update in range(seen):
        plan = method.plan(TrainState(update, total))
        rows = rows_of_update(data.pools, plan, consumed, seed)
        consumed |= {role: consumed.get(role, 0) + n for role, n in plan.counts.items()}
        sizes = [max(lengths[row] - 1, 0) for row in rows]
        rooms = [topology.rounding.of_sequence(size) for size in sizes]
        shares = assign(rooms, train.batch, topology.dp_size)
        loads = [[sum(rooms[i] for i in members) for members in share] for share in shares]
        filled += sum(topology.rounding.of_pack(load) for share in loads for load in share)
        fullest += max(map(sum, loads))
        placed += sum(rooms)
        batches += len(shares[0])
        tokens += sum(sizes)
        sequences = max(sequences, len(rows))
    return Outlook(
        updates=total,
        samples_per_update=sequences,
        tokens_per_update=tokens / seen,
        microbatches_per_rank=batches / seen,
        tokens_per_microbatch=tokens / max(batches * topology.dp_size, 1),
        waiting=1 - placed / max(fullest * topology.dp_size, 1),
        padding=1 - tokens / max(filled, 1),
    )


def rate_line(train: TrainConfig, total: int) -> str:
    """The learning rate at the updates that tell its shape."""
    optim = train.optim
    rates = [learning_rate(optim, update, total) for update in range(total)]
    peak = max(range(total), key=lambda update: rates[update])
    marks = {"first": 0, "peak": peak, "middle": total // 2, "last": total - 1}
    shown = ", ".join(f"{name} (update {u + 1}) {rates[u]:.3g}" for name, u in marks.items())
    return f"learning rate, {optim.schedule}: {shown}"
