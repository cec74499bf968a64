"""Declared terms + global counts -> per-token weights. The only place where a loss is divided.

Counts are integers known before the forward pass and summed once over the data-parallel ranks, so
the loss is `sum of weight x value` everywhere: no factor of DP, micro-batches or packing appears.
T packed tokens, S sequences. What is averaged how: `schema/method.py`, `Mean`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.schema.batch import PackedBatch
from megatron_reason.schema.method import Term
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.topology import Topology


@dataclass(frozen=True)
class TermCounts:
    """How much a term covers, over the whole global batch and in each of its C cells.

    A cell is what the term takes a mean within: a chunk where it goes by chunks, else a prompt.
    """

    sequences: int
    tokens: int
    sequences_C: Tensor
    """int64 [C]: sequences of each cell, on the batch's device."""
    tokens_C: Tensor
    """int64 [C]: tokens of each cell, on the batch's device."""

    @property
    def cells(self) -> int:
        """Cells with tokens."""
        return int((self.tokens_C > 0).sum())


def global_counts(
    terms: Sequence[Term], batches: Sequence[PackedBatch], topology: Topology,
    device: torch.device,
) -> dict[str, TermCounts]:  # fmt: skip
    """Sequences and supervised tokens of each term over all micro-batches of all ranks.

    Args:
        terms: summands of the loss.
        batches: this rank's micro-batches.
        topology: this rank's place; one all-reduce over its data-parallel group.
        device: where the collective runs.
    """
    num_cells = max((batch.num_global_sequences for batch in batches), default=0)
    local = torch.zeros(len(terms), 2, num_cells, dtype=torch.int64, device=device)
    for (sequences_C, tokens_C), term in zip(local, terms, strict=True):
        for batch in batches:
            tokens_S, cell_S = _tokens_of_sequences(term, batch), _cells_S(term, batch)
            sequences_C.index_add_(0, cell_S, (tokens_S > 0).long())
            tokens_C.index_add_(0, cell_S, tokens_S)
    if topology.dp_group is not None:
        dist.all_reduce(local, group=topology.dp_group)
    return {
        term.name: TermCounts(int(row[0].sum()), int(row[1].sum()), row[0], row[1])
        for term, row in zip(terms, local, strict=True)
    }


def token_weights(term: Term, batch: PackedBatch, counts: Mapping[str, TermCounts]) -> Tensor:
    """Weight of each token in `term`, its coefficient left out.

    Returns:
        [T] float64; 0 where the token is not supervised or has another role. Summed over all
        tokens of all ranks the weights of a mean of token means are 1.
    """
    mask_T = batch.per_token(term.members_S(batch)) & batch.loss_mask_T
    covered = counts[term.name]
    if not covered.tokens:
        return torch.zeros_like(mask_T, dtype=torch.float64)
    return mask_T.to(torch.float64) / _denominator(term, batch, covered)


def weighted_loss(
    terms: Sequence[Term], losses_T: Mapping[str, Tensor], batch: PackedBatch,
    counts: Mapping[str, TermCounts],
) -> tuple[Tensor, StepMetrics]:  # fmt: skip
    """`weighted_losses` of a whole micro-batch, summed: the scalar to call backward on.

    Args:
        terms: summands, as declared.
        losses_T: [T] unreduced, unmasked values of each term; keys equal the terms' names.
        batch: the micro-batch.
        counts: what `global_counts` returned.
    """
    weights_T = {term.name: token_weights(term, batch, counts) for term in terms}
    share_T, metrics = weighted_losses(terms, losses_T, weights_T)
    return share_T.sum(), metrics


def weighted_losses(
    terms: Sequence[Term], losses_T: Mapping[str, Tensor], weights_T: Mapping[str, Tensor]
) -> tuple[Tensor, StepMetrics]:
    """The share of each token in the loss, and of all of them in each term's mean.

    Args:
        terms: summands, as declared.
        losses_T: [T] unreduced, unmasked values of each term; keys equal the terms' names.
        weights_T: [T] what `token_weights` returned for each term.

    Returns:
        [T] whose sum is to be differentiated; the sums of all micro-batches of all ranks add up to
        the loss. Metrics named by the terms, whose mean is the term without its coefficient.
    """
    assert set(losses_T) == {term.name for term in terms}, (
        f"token_losses returned {sorted(losses_T)}, terms declared {[t.name for t in terms]}"
    )
    metrics = StepMetrics()
    shares: list[Tensor] = []
    for term in terms:
        value_T = losses_T[term.name]
        weight_T = weights_T[term.name].to(value_T.dtype)
        # A masked token's value may be inf or NaN: select, never multiply by zero.
        share_T = weight_T * torch.where(weight_T > 0, value_T, 0.0)
        if term.coef:
            shares.append(term.coef * share_T)
        # Every rank adds the same total count once per step, in `means_of`; here only the share.
        metrics.add(term.metric, float(share_T.detach().sum()), 0.0)
    return torch.stack(shares).sum(0), metrics


def means_of(terms: Sequence[Term], merged: StepMetrics) -> dict[str, float]:
    """Each term's mean and the whole loss, from the metrics of all micro-batches of all ranks."""
    means = {term.metric: merged.pairs[term.metric][0] for term in terms}
    return means | {"train/loss": sum(term.coef * means[term.metric] for term in terms)}


def _tokens_of_sequences(term: Term, batch: PackedBatch) -> Tensor:
    """int64 [S]: supervised tokens of each sequence the term covers, 0 for the others."""
    return torch.where(term.members_S(batch), batch.supervised_tokens_S(), 0)


def _cells_S(term: Term, batch: PackedBatch) -> Tensor:
    """int64 [S]: the cell of each sequence, below the number of sequences of the global batch."""
    by_chunk = term.mean == "chunk_mean_token_mean"
    return batch.index_S // term.chunk if by_chunk else batch.group_S


def _denominator(term: Term, batch: PackedBatch, covered: TermCounts) -> Tensor | float:
    """What a token's value is divided by: one number, or [T] float64."""
    match term.mean:
        case "token_mean":
            return covered.tokens
        case "seq_mean_token_sum":
            return covered.sequences
        case "seq_mean_token_sum_norm":
            return covered.sequences * term.constant
        case "sum_over_constant":
            return term.constant
        case "seq_mean_token_mean":
            tokens_S = _tokens_of_sequences(term, batch) * covered.sequences
        case "group_mean_token_mean":
            tokens_S = covered.tokens_C[batch.group_S] * covered.cells
        case "chunk_mean_token_mean":
            cell_S = _cells_S(term, batch)
            # A cell counts by its sequences, so that a last one with fewer weighs less.
            sequences_S = covered.sequences_C[cell_S].clamp(min=1).to(torch.float64)
            tokens_S = covered.tokens_C[cell_S] * covered.sequences / sequences_S
    return batch.per_token(tokens_S).clamp(min=1).to(torch.float64)
