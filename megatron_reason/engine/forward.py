"""What Megatron's schedule calls: micro-batch -> hidden states -> TokenStats -> one scalar.

T packed tokens, N of them supervised, M of those on this rank, C in a chunk, D hidden width. Only
supervised positions reach the LM head. Not here: anything a particular method does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from torch import Tensor, nn

from megatron_reason.engine.aggregation import (
    TermCounts,
    token_weights,
    weighted_loss,
    weighted_losses,
)
from megatron_reason.engine.context import Share
from megatron_reason.models.build import head_weight, stats_backend, vocab_size
from megatron_reason.models.packed import own_places, pack_of
from megatron_reason.ops.streaming import streamed_loss
from megatron_reason.ops.token_stats import HeadOptions, chosen_backend, token_stats
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats
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
    stats: frozenset[Stat] = frozenset()
    """What a method asks for: of these, `TOP1` and `SUM_P2` are computed only where asked for."""

    @property
    def extras(self) -> frozenset[Stat]:
        """Those that are not computed anyway, nor with the reference."""
        return self.stats & {Stat.TOP1, Stat.SUM_P2}


PLAIN = Head()


@dataclass(frozen=True)
class LossSpec:
    """Everything that turns hidden states into a scalar."""

    terms: Sequence[Term]
    token_losses: TokenLosses
    counts: Mapping[str, TermCounts]
    head: Head = PLAIN
    whole_sequences: bool = False
    """Whether `token_losses` must see every token of a sequence at once."""


def training_step(spec: LossSpec, topology: Topology) -> ForwardStep:
    """Forward step whose loss is this rank's share of the declared terms."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def loss(hidden: Tensor) -> tuple[Tensor, Tensor, StepMetrics]:
            share, stats, metrics = batch_loss(model, hidden, batch, topology, spec)
            metrics.merge(_entropies(stats, batch))
            return share, _no_tokens(), metrics

        return _hidden(model, batch, topology), loss

    return forward_step


def batch_loss(
    model: nn.Module, hidden: Tensor, batch: PackedBatch, topology: Topology, spec: LossSpec
) -> tuple[Tensor, TokenStats, StepMetrics]:
    """A micro-batch's share of the loss, its statistics, and its share of every term's mean.

    The gradient of the head is formed while its logits are there, wherever a token's loss needs no
    other token's statistics, nor a reference's distribution, nor statistics beyond those that every
    method gets.

    Args:
        model: this rank's last pipeline stage.
        hidden: [T / cp, 1, D], or [T / cp / tp, 1, D] under sequence parallelism.
        batch: the micro-batch.
        topology: this rank's place.
        spec: the loss.
    """
    is_streamed = not (spec.whole_sequences or spec.head.extras) and batch.ref_hidden_ND is None
    if is_streamed and chosen_backend(stats_backend(model)) == "torch":
        return _streamed(model, hidden, batch, topology, spec)
    stats = batch_stats(model, hidden, batch, topology, spec.head)
    losses_T = spec.token_losses(stats, batch)
    share, metrics = weighted_loss(spec.terms, losses_T, batch, spec.counts)
    return share, stats, metrics


def _streamed(
    model: nn.Module, hidden: Tensor, batch: PackedBatch, topology: Topology, spec: LossSpec
) -> tuple[Tensor, TokenStats, StepMetrics]:
    metrics = StepMetrics()
    share = Share.of(batch, topology)
    weights_T = {term.name: token_weights(term, batch, spec.counts) for term in spec.terms}

    def chunk_loss(stats: TokenStats, rows: slice) -> Tensor:
        position_C = share.position_M[rows]
        losses_C = spec.token_losses(stats, batch.part(position_C))
        weights_C = {name: weight_T[position_C] for name, weight_T in weights_T.items()}
        loss_C, measured = weighted_losses(spec.terms, losses_C, weights_C)
        metrics.merge(measured)
        return loss_C

    weight = head_weight(model)
    loss, stats = streamed_loss(
        _rows(hidden, batch, topology, share).to(weight.dtype),
        weight,
        batch.target_T[share.position_M],
        chunk_loss,
        tp_group=topology.tp_group,
        temperature=spec.head.temperature,
        vocab_size=vocab_size(model),
        options=spec.head.options,
    )
    metrics = share.summed(metrics, [term.metric for term in spec.terms])
    return loss, _aligned(share.completed(stats), batch), metrics


def statistics_step(
    topology: Topology, head: Head, collect: Callable[[TokenStats, PackedBatch], Any]
) -> ForwardStep:
    """Forward-only step that hands the statistics of each micro-batch to `collect`."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def collected(hidden: Tensor) -> tuple[Tensor, Tensor, Any]:
            stats = batch_stats(model, hidden, batch, topology, head)
            return hidden.new_zeros(()), _no_tokens(), collect(stats, batch)

        return _hidden(model, batch, topology), collected

    return forward_step


def hidden_step(topology: Topology) -> ForwardStep:
    """Forward-only step that collects the hidden states [M, D] of this rank's supervised tokens."""

    def forward_step(batches: Iterator[PackedBatch], model: nn.Module) -> tuple[Tensor, LossFunc]:
        batch = next(batches)

        def collected(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows_MD = _rows(hidden, batch, topology, Share.of(batch, topology))
            return hidden.new_zeros(()), _no_tokens(), rows_MD

        return _hidden(model, batch, topology), collected

    return forward_step


def batch_stats(
    model: nn.Module, hidden: Tensor, batch: PackedBatch, topology: Topology, head: Head = PLAIN
) -> TokenStats:
    """Statistics of every token of a micro-batch; zeros where nothing is supervised.

    Args:
        model: this rank's last pipeline stage.
        hidden: [T / cp, 1, D], or [T / cp / tp, 1, D] under sequence parallelism.
        batch: the micro-batch.
        topology: this rank's place.
        head: precision, temperature and reference of the head.
    """
    weight = head_weight(model)
    share = Share.of(batch, topology)
    compared = None
    if head.reference is not None and batch.ref_hidden_ND is not None:
        compared = (batch.ref_hidden_ND, head_weight(head.reference))
    stats = token_stats(
        _rows(hidden, batch, topology, share).to(weight.dtype),
        weight,
        batch.target_T[share.position_M],
        tp_group=topology.tp_group,
        temperature=head.temperature,
        vocab_size=vocab_size(model),
        backend=stats_backend(model),
        options=head.options,
        extras=head.extras,
        reference=compared,
    )
    return _aligned(replace(share.completed(stats), **_completed_extras(stats, share)), batch)


def _rows(hidden: Tensor, batch: PackedBatch, topology: Topology, share: Share) -> Tensor:
    """[M, D] of [T / cp, 1, D], which is first gathered where sequence parallelism split it."""
    if hidden.shape[0] != batch.num_tokens // topology.cp_size:
        hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
    return hidden[:, 0].index_select(0, share.rows_M)


def _hidden(model: nn.Module, batch: PackedBatch, topology: Topology) -> Tensor:
    rank, size = topology.cp_rank, topology.cp_size
    packed = pack_of(batch.cu_seqlens, batch.max_seqlen, cp_rank=rank, cp_size=size)
    ids_T, position_T = batch.ids_T, batch.position_T
    if size > 1:
        place_T = own_places(batch.cu_seqlens, rank, size)
        ids_T, position_T = ids_T[place_T], position_T[place_T]
    return model(
        input_ids=ids_T[None],
        position_ids=position_T[None],
        attention_mask=None,
        packed_seq_params=packed,
    )


def _completed_extras(stats: TokenStats, share: Share) -> dict[str, Tensor]:
    """Statistics [N] without a gradient, from those of each rank's own tokens."""
    own = {name: getattr(stats, name) for name in ("top1_prob_T", "is_top1_T", "sum_p2_T")}
    found: dict[str, Tensor] = {}
    for name, value_M in own.items():
        if value_M is not None:
            number_M = value_M.to(stats.logprob_T.dtype)
            whole_N = share.completed(TokenStats(number_M, number_M)).logprob_T
            found[name] = whole_N.to(value_M.dtype)
    return found


def _aligned(stats: TokenStats, batch: PackedBatch) -> TokenStats:
    """Statistics [N] of the supervised positions as [T], 0 elsewhere."""
    present = {name: value for name, value in vars(stats).items() if value is not None}
    return TokenStats(**{name: _scattered(value_N, batch) for name, value_N in present.items()})


def _scattered(value_N: Tensor, batch: PackedBatch) -> Tensor:
    value_T = value_N.new_zeros(batch.num_tokens)
    return value_T.index_copy(0, batch.supervised_N, value_N)


def _entropies(stats: TokenStats, batch: PackedBatch) -> StepMetrics:
    """Sums over the supervised tokens, and over those of each role."""
    metrics = StepMetrics()
    entropy_T = stats.entropy_T.detach()
    metrics.add(
        "train/entropy", float(entropy_T[batch.supervised_N].sum()), len(batch.supervised_N)
    )
    for role in Role:
        mask_T = batch.role_mask_T(role)
        if count := int(mask_T.sum()):
            metrics.add(f"train/entropy_{role}", float(entropy_T[mask_T].sum()), count)
    return metrics


def _no_tokens() -> Tensor:
    """Megatron's token count, unused: the weights already hold every denominator."""
    return torch.zeros((), dtype=torch.int)
