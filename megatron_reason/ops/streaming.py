"""Loss and gradients in one pass over the tokens, for losses that are a sum over tokens.

Where each token's loss depends on that token's statistics only, and every denominator is known
before the forward pass, the cotangents of a chunk can be formed as soon as its statistics are: its
logits become their own gradient in place and are never computed twice. Three products instead of
the four of recomputation, with the logits of one chunk in memory. T tokens, C of them in a chunk, D
hidden width, V vocabulary columns of this rank. Not here: losses of whole sequences, which need the
two passes of `token_stats`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_reason.errors import DataError
from megatron_reason.ops.head import ChunkedHead, HeadGradient, chunks_of, cotangents_of
from megatron_reason.ops.inputs import HeadOptions, Request, check_head
from megatron_reason.ops.rows import (
    Cotangents,
    RowLogits,
    row_gradient,
    row_stats,
    row_stats_and_gradient,
    wide_dtype,
)
from megatron_reason.ops.vocab import RowStats, VocabShard, concatenated, merged_over
from megatron_reason.schema.batch import TokenStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

TokenLoss = Callable[[TokenStats, slice], Tensor]
"""Weighted losses [C] of a chunk: its statistics, and which tokens of all T it holds."""

_DEFAULTS = HeadOptions()


def streamed_loss(  # noqa: PLR0913 - the arguments of `token_stats`
    hidden: Tensor, weight: Tensor, target: Tensor, token_loss: TokenLoss, *,
    tp_group: "ProcessGroup | None" = None, temperature: float = 1.0,
    vocab_size: int | None = None, options: HeadOptions = _DEFAULTS,
) -> tuple[Tensor, TokenStats]:  # fmt: skip
    """Sum of `token_loss` over all tokens, with the gradients `token_stats` would give.

    Args:
        hidden: [T, D] hidden states, the same on every rank of the group.
        weight: [V, D] this rank's rows of the head.
        target: [T] int64, global token ids.
        token_loss: differentiable, elementwise in the statistics, the same on every rank.
        tp_group: ranks that share the vocabulary; None if this rank holds all of it.
        temperature: divides the logits.
        vocab_size: real vocabulary over all ranks; None if nothing is padding.
        options: precision, checks, and tokens per chunk; no logits are kept.

    Returns:
        The loss, a scalar with gradients to `hidden` and `weight`, and `TokenStats` without.
        Communicates once per chunk, and once for the gradient of `hidden`.

    Raises:
        DataError: as in `token_stats`, or values of `token_loss` that are not [C].
    """
    request = Request(tp_group, vocab_size, temperature, options)
    check_head(hidden, weight, target, request, None)
    loss, logprob_T, entropy_T = _StreamedLoss.apply(hidden, weight, target, token_loss, request)
    return loss, TokenStats(logprob_T, entropy_T)


class _StreamedLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205 - torch's own contract
        ctx: Any,  # noqa: ANN401 - torch's own contract
        hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, token_loss: TokenLoss,
        request: Request,
    ):  # fmt: skip
        shard = VocabShard.of(len(weight_VD), request.vocab_size, request.tp_group)
        total = HeadGradient(request, hidden_TD, weight_VD, *ctx.needs_input_grad[:2])
        loss = _RunningLoss(token_loss, hidden_TD.new_zeros((), dtype=wide_dtype(hidden_TD.dtype)))
        head = ChunkedHead(hidden_TD, weight_VD, request)

        def stream(rows: slice) -> RowStats:
            chunk = RowLogits(head.logits(rows), target_T[rows])
            stats = _overwritten(chunk, shard, request, loss.of(rows))
            is_live_C = loss.take_live()
            if any(ctx.needs_input_grad[:2]):
                total.add(rows, chunk.logits_TV, is_live_C)
            return stats

        summed = hidden_TD.dtype if any(ctx.needs_input_grad[:2]) else None
        parts = [stream(rows) for rows in chunks_of(len(target_T), request, summed)]
        head.release()
        ctx.save_for_backward(*total.totals())
        whole = concatenated(parts)
        ctx.mark_non_differentiable(logprob_T := whole.logprob_T, whole.entropy_T)
        return loss.total, logprob_T, whole.entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        saved: tuple[Tensor | None, ...] = ctx.saved_tensors
        scaled = [_scaled(value, grads[0]) for value in saved]
        return *scaled, None, None, None


class _RunningLoss:
    """Sum of the losses of tokens, and what their derivatives are."""

    def __init__(self, token_loss: TokenLoss, zero: Tensor) -> None:
        self._token_loss = token_loss
        self._live: list[Tensor] = []
        self.total = zero

    def of(self, rows: slice) -> Callable[[RowStats, slice], Cotangents]:
        """For places counted from the first of `rows`."""

        def cotangents(stats: RowStats, place: slice) -> Cotangents:
            return self._add(stats, slice(rows.start + place.start, rows.start + place.stop))

        return cotangents

    def take_live(self) -> Tensor:
        """Bool [C], on the host: which tokens since the last call have a gradient."""
        live, self._live = self._live, []
        return torch.cat(live).cpu()

    def _add(self, stats: RowStats, rows: slice) -> Cotangents:
        with torch.enable_grad():
            logprob_C = stats.logprob_T.detach().requires_grad_()
            entropy_C = stats.entropy_T.detach().requires_grad_()
            loss_C = self._token_loss(TokenStats(logprob_C, entropy_C), rows)
            if loss_C.shape != logprob_C.shape:
                raise DataError(
                    "streamed_loss token_loss",
                    f"it returned values of shape {list(loss_C.shape)} for {len(logprob_C)} "
                    "tokens.",
                    "Return one value per token of the chunk, already weighted and not summed.",
                )
            loss = loss_C.sum()
            grads: list[Tensor | None] = list(
                torch.autograd.grad(loss, (logprob_C, entropy_C), allow_unused=True)
            )
        self.total += loss.detach()
        cotangents = cotangents_of((*grads, None), stats)
        self._live.append(cotangents.is_live_T)
        return cotangents


def _overwritten(
    chunk: RowLogits, shard: VocabShard, request: Request,
    cotangents: Callable[[RowStats, slice], Cotangents],
) -> RowStats:  # fmt: skip
    """Statistics of a chunk, whose logits become their own gradient."""
    if request.tp_group is None:
        return row_stats_and_gradient(chunk, shard, cotangents, request.temperature)
    stats = merged_over(request.tp_group, row_stats(chunk, shard, request.temperature))
    grads = cotangents(stats, slice(0, len(chunk.target_T)))
    row_gradient(chunk, shard, stats, grads, request.temperature, out=chunk.logits_TV)
    return stats


def _scaled(value: Tensor | None, factor: Tensor) -> Tensor | None:
    """Product of a gradient and the loss's own; spares the pass where a CPU sees that it is 1."""
    if value is None or (factor.device.type == "cpu" and float(factor) == 1.0):
        return value
    return value * factor.to(value.dtype)
