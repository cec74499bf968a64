"""Forward-only statistics: sums over whole sequences, and log-probs of single response tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import nn

from megatron_reason.config.train import BatchConfig
from megatron_reason.engine.forward import ForwardStep, Head, statistics_step
from megatron_reason.engine.packing import assign, microbatches_of_rank, pack
from megatron_reason.ops.token_stats import HeadOptions
from megatron_reason.schema.batch import PackedBatch, TokenizedSample, TokenStats
from megatron_reason.schema.topology import Topology

SEQUENCES_PER_ROUND = 512
Value = TypeVar("Value")


@dataclass(frozen=True)
class SequenceScore:
    """Statistics of the supervised tokens of one sequence."""

    logprob_sum: float
    """Sum of log p, in nats."""
    entropy_sum: float
    """Sum of the full-vocabulary entropies, in nats."""
    num_tokens: int
    """Supervised tokens."""
    min_logprob: float
    """Smallest log p, in nats; 0 without supervised tokens."""
    bfloat16_nll_sum: float
    """Sum of -log p, each rounded to bfloat16, in nats."""

    @property
    def mean_nll(self) -> float:
        """Mean of -log p, in nats; its exponential is the perplexity."""
        return -self.logprob_sum / self.num_tokens

    @property
    def bfloat16_mean_nll(self) -> float:
        """Mean of -log p with each term, the sum and the quotient in bfloat16, in nats."""
        total = torch.tensor(self.bfloat16_nll_sum, dtype=torch.bfloat16)
        return float(total / self.num_tokens)


def batch_for(
    samples: Sequence[TokenizedSample], max_tokens: int, topology: Topology
) -> BatchConfig:
    """Micro-batches of `max_tokens`, or of the longest sample where that does not fit."""
    longest = max((sample.num_positions for sample in samples), default=1)
    room = max(max_tokens, topology.rounding.of_sequence(longest))
    return BatchConfig(max_tokens_per_microbatch=room)


def score_sequences(
    model: nn.Module, samples: Sequence[TokenizedSample], batch: BatchConfig, topology: Topology,
    *, on_done: Callable[[int], None] | None = None, fp32_logits: bool = False,
) -> list[SequenceScore]:  # fmt: skip
    """Score every sample; statistics are float32 or wider, whatever the model's data type.

    Samples are packed in rounds of similar length and shared out over the data-parallel ranks.

    Args:
        model: this rank's pipeline stage.
        samples: the same list on every rank.
        batch: limits of a micro-batch.
        topology: this rank's place.
        on_done: called with the number of samples that just got finished.
        fp32_logits: multiply the LM head in float32, too.

    Returns:
        Scores in the order of `samples`, on every rank.
    """
    by_length = sorted(range(len(samples)), key=lambda i: samples[i].num_positions)
    scores: dict[int, SequenceScore] = {}
    for begin in range(0, len(samples), SEQUENCES_PER_ROUND):
        members = by_length[begin : begin + SEQUENCES_PER_ROUND]
        lengths = [topology.rounding.of_sequence(samples[i].num_positions) for i in members]
        shares = assign(lengths, batch, topology.dp_size)
        mine = [[members[i] for i in share] for share in shares[topology.dp_rank]]
        local = score_microbatches(
            model, [[samples[i] for i in s] for s in mine], topology, fp32_logits=fp32_logits
        )
        scored = {i: x for share, xs in zip(mine, local, strict=True)
                  for i, x in zip(share, xs, strict=False)}  # fmt: skip
        scores.update(_everywhere(scored, topology))
        if on_done is not None:
            on_done(len(members))
    return [scores[i] for i in range(len(samples))]


def score_microbatches(
    model: nn.Module, microbatches: Sequence[Sequence[TokenizedSample]], topology: Topology, *,
    fp32_logits: bool = False,
) -> list[list[SequenceScore]]:  # fmt: skip
    """Score this rank's micro-batches; results exist on the last pipeline stage only."""
    device = next(model.parameters()).device
    batches = [pack(s, rounding=topology.rounding).to(device) for s in microbatches]
    head = Head(HeadOptions(fp32_logits=fp32_logits, check=False))
    step = statistics_step(topology, head, sequence_scores)
    collected = forward_only(model, batches, step)
    return collected if topology.is_last_stage else [[] for _ in microbatches]


def response_logprobs(
    model: nn.Module, samples: Sequence[TokenizedSample], batch: BatchConfig, topology: Topology,
    *, temperature: float,
) -> list[tuple[float, ...]]:  # fmt: skip
    """Log-probs of the supervised tokens of each sample, under the model as it is.

    Samples are packed as an update over the same samples packs them, so that the ratio of the first
    such update is 1 to the last bit.

    Args:
        model: this rank's pipeline stage.
        samples: the same list on every rank.
        batch: limits of a micro-batch.
        topology: this rank's place.
        temperature: what the logits are divided by.

    Returns:
        Values in nats in the order of `samples`, on every rank.
    """
    device = next(model.parameters()).device
    batches = [
        packed.to(device)
        for packed in microbatches_of_rank(
            samples, batch, rank=topology.dp_rank, num_ranks=topology.dp_size,
            rounding=topology.rounding,
        )
    ]  # fmt: skip
    head = Head(temperature=temperature)
    found = forward_only(model, batches, statistics_step(topology, head, _token_logprobs))
    local = {index: values for part in found for index, values in part.items()}
    everywhere = _everywhere(local, topology)
    return [everywhere[index] for index in range(len(samples))]


def forward_only(model: nn.Module, batches: Sequence[PackedBatch], step: ForwardStep) -> list[Any]:
    """What `step` collects from each micro-batch, without gradients and in evaluation mode.

    Args:
        model: this rank's pipeline stage.
        batches: this rank's micro-batches.
        step: forward step; see `statistics_step`.

    Returns:
        One entry per micro-batch on the last pipeline stage; elsewhere empty.
    """
    was_training = model.training
    model.eval()
    with torch.no_grad():
        collected: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=max(batch.num_tokens for batch in batches),
            micro_batch_size=1,
            forward_only=True,
        )
    model.train(was_training)
    return collected


def sequence_scores(stats: TokenStats, batch: PackedBatch) -> list[SequenceScore]:
    """Scores of the S sequences of a micro-batch, from the statistics of its tokens."""
    logprob_N = stats.logprob_T[batch.supervised_N]
    entropy_N = stats.entropy_T[batch.supervised_N]
    segment_N = batch.segment_T[batch.supervised_N]
    values_KN = torch.stack(
        [value_N.double() for value_N in (logprob_N, entropy_N, -logprob_N.bfloat16())]
    )
    # One place more than there are sequences, for the padding of the pack.
    sums_KS = values_KN.new_zeros(len(values_KN), batch.num_sequences + 1)
    sums_KS.index_add_(1, segment_N, values_KN)
    least_S = values_KN.new_zeros(batch.num_sequences + 1)
    least_S.scatter_reduce_(0, segment_N, values_KN[0], "amin")
    tokens_S = batch.supervised_tokens_S().tolist()
    logprobs, entropies, rounded = sums_KS[:, :-1].tolist()
    return [
        SequenceScore(*fields)
        for fields in zip(
            logprobs, entropies, tokens_S, least_S[:-1].tolist(), rounded, strict=True
        )
    ]


def _token_logprobs(stats: TokenStats, batch: PackedBatch) -> dict[int, tuple[float, ...]]:
    """Log-probs of each sequence's supervised tokens, by its index in the global batch."""
    values_N = stats.logprob_T[batch.supervised_N].cpu()
    parts = values_N.split(batch.supervised_tokens_S().tolist())
    return {
        index: tuple(part.tolist())
        for index, part in zip(batch.index_S.tolist(), parts, strict=True)
    }


def _everywhere(local: dict[int, Value], topology: Topology) -> dict[int, Value]:
    """Union of the dictionaries of all ranks."""
    if topology.world_size == 1:
        return local
    parts: list[dict[int, Value] | None] = [None] * topology.world_size
    dist.all_gather_object(parts, local)
    return {index: score for part in parts if part for index, score in part.items()}
