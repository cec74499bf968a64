"""What Megatron's schedule calls: micro-batch -> hidden states -> TokenStats -> one scalar.

T packed tokens, N of them supervised, D hidden width. Only supervised positions reach the LM head.
Not here: anything a particular method does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn

from megatron_reason.engine.aggregation import TermCounts, weighted_loss
from megatron_reason.models.build import head_weight, stats_backend, vocab_size
from megatron_reason.ops.token_stats import HeadOptions, token_stats
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import Term
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.topology import Topology

TokenLosses = Callable[[TokenStats, PackedBatch], Mapping[str, Tensor]]
LossFunc = Callable[[Tensor], tuple[Tensor, Tensor, Any]]
ForwardStep = Callable[[Iterator[PackedBatch], nn.Module], tuple[Tensor, LossFunc]]


@dataclass(frozen=True)
class Head:
    """How hidden states become statistics."""

    # Values are checked once, when a table is read: here a check would wait for the device, and
    # refuse non-finite states that the guard on gradients is there to skip and report.
    options: HeadOptions = field(default_factory=lambda: HeadOptions(check=False))
    """Precision and memory."""
    temperature: float = 1.0
    """What the logits are divided by."""
    reference: nn.Module | None = None
    """This rank's stage of the reference model, whose LM head turns its hidden states to logits."""


PLAIN = Head()


@dataclass(frozen=True)
class LossSpec:
    """Everything that turns hidden states into a scalar."""

    terms: Sequence[Term]
    token_losses: TokenLosses
    counts: Mapping[str, TermCounts]
    head: Head = PLAIN


def training_step(spec: LossSpec, topology: Topology) -> ForwardStep:
    """Forward step whose loss is this rank's share of the declared terms."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def loss(hidden: Tensor) -> tuple[Tensor, Tensor, StepMetrics]:
            stats = batch_stats(model, hidden, batch, topology, spec.head)
            losses_T = spec.token_losses(stats, batch)
            share, metrics = weighted_loss(spec.terms, losses_T, batch, spec.counts)
            metrics.merge(_entropies(stats, batch))
            return share, _no_tokens(), metrics

        return _hidden(model, batch), loss

    return forward_step


def statistics_step(
    topology: Topology, head: Head, collect: Callable[[TokenStats, PackedBatch], Any]
) -> ForwardStep:
    """Forward-only step that hands the statistics of each micro-batch to `collect`."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def collected(hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
            stats = batch_stats(model, hidden, batch, topology, head)
            return hidden.new_zeros(()), _no_tokens(), collect(stats, batch)

        return _hidden(model, batch), collected

    return forward_step


def hidden_step() -> ForwardStep:
    """Forward-only step that collects the hidden states [N, D] of the supervised positions."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def collected(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return hidden.new_zeros(()), _no_tokens(), _supervised_rows(hidden, batch)

        return _hidden(model, batch), collected

    return forward_step


def batch_stats(
    model: nn.Module, hidden: Tensor, batch: PackedBatch, topology: Topology, head: Head = PLAIN
) -> TokenStats:
    """Statistics of every token of a micro-batch; zeros where nothing is supervised.

    Args:
        model: this rank's last pipeline stage.
        hidden: [T, 1, D], or [T / tp, 1, D] under sequence parallelism.
        batch: the micro-batch.
        topology: this rank's place.
        head: precision, temperature and reference of the head.
    """
    weight = head_weight(model)
    rows_ND = _supervised_rows(hidden, batch)
    compared = None
    if head.reference is not None and batch.ref_hidden_ND is not None:
        compared = (batch.ref_hidden_ND, head_weight(head.reference))
    stats = token_stats(
        rows_ND.to(weight.dtype),
        weight,
        batch.target_T[batch.supervised_N],
        tp_group=topology.tp_group,
        temperature=head.temperature,
        vocab_size=vocab_size(model),
        backend=stats_backend(model),
        options=head.options,
        reference=compared,
    )
    return TokenStats(
        _scattered(stats.logprob_T, batch),
        _scattered(stats.entropy_T, batch),
        None if stats.kl_ref_T is None else _scattered(stats.kl_ref_T, batch),
    )


def _supervised_rows(hidden: Tensor, batch: PackedBatch) -> Tensor:
    """[N, D] of [T, 1, D], which is first gathered where sequence parallelism split it."""
    if hidden.shape[0] != batch.num_tokens:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return hidden[:, 0].index_select(0, batch.supervised_N)


def _hidden(model: nn.Module, batch: PackedBatch) -> Tensor:
    packed = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )
    return model(
        input_ids=batch.ids_T[None],
        position_ids=batch.position_T[None],
        attention_mask=None,
        packed_seq_params=packed,
    )


def _scattered(value_N: Tensor, batch: PackedBatch) -> Tensor:
    value_T = value_N.new_zeros(batch.num_tokens)
    return value_T.index_copy(0, batch.supervised_N, value_N)


def _entropies(stats: TokenStats, batch: PackedBatch) -> StepMetrics:
    metrics = StepMetrics()
    entropy_T = stats.entropy_T.detach()
    for role in Role:
        mask_T = batch.role_mask_T(role)
        if count := int(mask_T.sum()):
            metrics.add(f"train/entropy_{role}", float(entropy_T[mask_T].sum()), count)
    return metrics


def _no_tokens() -> Tensor:
    """Megatron's token count, unused: the weights already hold every denominator."""
    return torch.zeros((), dtype=torch.int)
