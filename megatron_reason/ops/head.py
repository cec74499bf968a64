"""The torch backend: LM head and row statistics, a chunk of tokens at a time, fused backward.

T tokens, C of them in a chunk, D hidden width, V vocabulary columns of this rank. Logits of the
first chunks are kept for the backward pass within a byte budget and overwritten by their own
gradient there; those of later chunks, and the reference's, are computed twice. Not here: the maths
of a row (`rows.py`) and its merging over ranks (`vocab.py`).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.errors import DataError
from megatron_reason.ops.inputs import Reference, Request
from megatron_reason.ops.oracle import operand
from megatron_reason.ops.products import add_product, product
from megatron_reason.ops.rows import Cotangents, RowLogits, row_gradient, row_stats, wide_dtype
from megatron_reason.ops.vocab import RowStats, VocabShard, concatenated, merged_over
from megatron_reason.schema.batch import Stat, TokenStats


def head_stats(
    hidden: Tensor, weight: Tensor, target: Tensor, request: Request, reference: Reference | None
) -> TokenStats:
    """`token_stats` in chunks of tokens."""
    ref = (None, None) if reference is None else reference
    return TokenStats(*_HeadStats.apply(hidden, weight, target, request, *ref))


def logits_stats(
    logits: Tensor, target: Tensor, request: Request, ref_logits: Tensor | None
) -> TokenStats:
    """`token_stats_from_logits` in a single pass each way over the logits."""
    return TokenStats(*_LogitsStats.apply(logits, target, request, ref_logits))


class ChunkedHead:
    """Logits of one chunk of tokens after the other, in memory that is used again.

    Args:
        hidden_TD: hidden states of all tokens.
        weight_VD: this rank's rows of the head.
        request: precision and tokens per chunk.
    """

    def __init__(self, hidden_TD: Tensor, weight_VD: Tensor, request: Request) -> None:
        self._hidden_TD = hidden_TD
        self._weight_VD = operand(weight_VD, request)
        self._request = request
        self._memory_CV: Tensor | None = None

    def logits(self, rows: slice, *, own_memory: bool = False) -> Tensor:
        """[C, V]; overwritten by the next call unless it gets memory of its own."""
        hidden_CD = operand(self._hidden_TD[rows], self._request)
        if own_memory:
            return product(hidden_CD, self._weight_VD.T)
        if self._memory_CV is None:
            self._memory_CV = hidden_CD.new_empty(len(hidden_CD), len(self._weight_VD))
        return product(hidden_CD, self._weight_VD.T, out=self._memory_CV[: len(hidden_CD)])

    def release(self) -> None:
        """Let go of the memory, before something else needs as much."""
        self._memory_CV = None

    def num_bytes(self, rows: slice) -> int:
        """Size of the logits of some tokens."""
        return (rows.stop - rows.start) * len(self._weight_VD) * self._weight_VD.element_size()


@dataclass
class HeadGradient:
    """Gradients of hidden states and LM head, accumulated over chunks in float32 or wider."""

    request: Request
    hidden_TD: Tensor
    weight_VD: Tensor
    wants_hidden: bool = True
    wants_weight: bool = True
    _chunks_TD: list[Tensor] = field(default_factory=list[Tensor])
    _weight_VD: Tensor | None = None

    def add(self, rows: slice, grad_CV: Tensor, is_live_C: Tensor) -> None:
        """Take in d(loss)/d(logits) of the next `rows`.

        Args:
            rows: which of all tokens.
            grad_CV: their gradient.
            is_live_C: bool, on the host; rows that are not are all zeros (samples of a group that
                were all rewarded alike, say). Where they are half of the chunk or more, they cost
                no product; fewer are not worth a copy of the others.
        """
        wide = wide_dtype(self.hidden_TD.dtype)
        hidden_CD = operand(self.hidden_TD[rows], self.request)
        grad_CV = grad_CV.to(hidden_CD.dtype)
        live = is_live_C.nonzero()[:, 0].to(grad_CV.device)
        if len(live) == 0:
            self.add_zeros(rows)
            return
        is_thin = 2 * len(live) <= len(is_live_C)
        if is_thin:
            grad_CV, hidden_CD = grad_CV[live], hidden_CD[live]
        if self.wants_hidden:
            part_CD = product(grad_CV, operand(self.weight_VD, self.request))
            if is_thin:
                part_CD = part_CD.new_zeros(self.hidden_TD[rows].shape).index_copy_(
                    0, live, part_CD
                )
            self._chunks_TD.append(part_CD)
        if not self.wants_weight:
            return
        if self._weight_VD is None:
            self._weight_VD = product(grad_CV.T, hidden_CD)
        else:
            self._weight_VD = self._weight_VD.to(wide)
            add_product(self._weight_VD, grad_CV.T, hidden_CD)

    def add_zeros(self, rows: slice) -> None:
        """Take in that the loss does not depend on the next `rows`."""
        if self.wants_hidden:
            self._chunks_TD.append(torch.zeros_like(self.hidden_TD[rows]))

    def totals(self) -> tuple[Tensor | None, Tensor | None]:
        """[T, D], summed over the group, and [V, D], in the operands' types; None if unwanted."""
        grad_hidden_TD = grad_weight_VD = None
        if self.wants_hidden:
            wide = wide_dtype(self.hidden_TD.dtype)
            none_TD = torch.zeros_like(self.hidden_TD[:0])
            grad_hidden_TD = torch.cat([none_TD, *self._chunks_TD]).to(wide)
            if self.request.tp_group is not None:
                dist.all_reduce(grad_hidden_TD, group=self.request.tp_group)
            grad_hidden_TD = grad_hidden_TD.to(self.hidden_TD.dtype)
        if self.wants_weight:
            total_VD = self._weight_VD
            if total_VD is None:
                total_VD = torch.zeros_like(self.weight_VD)
            grad_weight_VD = total_VD.to(self.weight_VD.dtype)
        return grad_hidden_TD, grad_weight_VD


def chunks_of(num_tokens: int, request: Request, summed: torch.dtype | None = None) -> list[slice]:
    """Rows of each chunk; one empty chunk where there is no token.

    Args:
        num_tokens: all rows.
        request: says how many tokens a chunk has.
        summed: type of the gradient that is summed over chunks; None if there is none. Sums of
            several chunks are wider than bfloat16 and outweigh the logits of a second chunk, so two
            chunks are one.
    """
    size = request.options.tokens_per_chunk
    is_narrow = summed is not None and wide_dtype(summed) != summed
    if is_narrow and not request.options.fp32_logits and num_tokens <= 2 * size:
        size *= 2
    return [slice(i, min(i + size, num_tokens)) for i in range(0, max(num_tokens, 1), size)]


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205, PLR0913 - torch's own contract; it takes tensors one by one
        ctx: Any,  # noqa: ANN401 - torch's own contract
        hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, request: Request,
        ref_hidden_TD: Tensor | None, ref_weight_VD: Tensor | None,
    ):  # fmt: skip
        shard = VocabShard.of(len(weight_VD), request.vocab_size, request.tp_group)
        parts: list[RowStats] = []
        kept: list[Tensor | None] = []
        budget = request.options.saved_logits_bytes if any(ctx.needs_input_grad[:2]) else 0
        head = ChunkedHead(hidden_TD, weight_VD, request)
        ref_head = None
        if ref_hidden_TD is not None and ref_weight_VD is not None:
            ref_head = ChunkedHead(ref_hidden_TD, ref_weight_VD, request)
        summed = hidden_TD.dtype if any(ctx.needs_input_grad[:2]) else None
        ctx.chunks = chunks_of(len(target_T), request, summed)
        for rows in ctx.chunks:
            budget -= head.num_bytes(rows)
            logits_CV = head.logits(rows, own_memory=budget >= 0)
            ref_CV = None if ref_head is None else ref_head.logits(rows)
            parts.append(
                row_stats(
                    RowLogits(logits_CV, target_T[rows], ref_CV), shard, request.temperature,
                    sum_p2=request.sum_p2,
                )
            )  # fmt: skip
            kept.append(logits_CV if budget >= 0 else None)
        stats = merged_over(request.tp_group, concatenated(parts))
        ctx.names, values = stats.fields()
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, ref_hidden_TD, ref_weight_VD, *values)
        ctx.request, ctx.kept = request, kept
        return outputs(ctx, stats, request)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # noqa: ANN205, ANN401
        hidden_TD, weight_VD, target_T, ref_hidden_TD, ref_weight_VD, *values = ctx.saved_tensors
        request: Request = ctx.request
        stats = RowStats(**dict(zip(ctx.names, values, strict=True)))
        shard = VocabShard.of(len(weight_VD), request.vocab_size, request.tp_group)
        cotangents = cotangents_of(grads, stats)
        total = HeadGradient(request, hidden_TD, weight_VD, *ctx.needs_input_grad[:2])
        head = ChunkedHead(hidden_TD, weight_VD, request)
        ref_head = None
        if cotangents.kl_T is not None:
            ref_head = ChunkedHead(ref_hidden_TD, ref_weight_VD, request)

        is_live_T = cotangents.is_live_T.cpu()

        def add(index: int, rows: slice) -> None:
            logits_CV = ctx.kept[index]
            ctx.kept[index] = None
            if not is_live_T[rows].any():
                total.add_zeros(rows)
                return
            if logits_CV is None:
                logits_CV = head.logits(rows)
            ref_CV = None if ref_head is None else ref_head.logits(rows)
            grad_CV = row_gradient(
                RowLogits(logits_CV, target_T[rows], ref_CV), shard, stats[rows],
                cotangents[rows], request.temperature, out=logits_CV,
            )  # fmt: skip
            total.add(rows, grad_CV, is_live_T[rows])

        for index, rows in enumerate(ctx.chunks):
            add(index, rows)
        head.release()
        return *total.totals(), None, None, None, None


class _LogitsStats(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205 - torch's own contract
        ctx: Any,  # noqa: ANN401 - torch's own contract
        logits_TV: Tensor, target_T: Tensor, request: Request, ref_logits_TV: Tensor | None,
    ):  # fmt: skip
        shard = VocabShard.of(logits_TV.shape[1], request.vocab_size, request.tp_group)
        local = row_stats(
            RowLogits(logits_TV, target_T, ref_logits_TV), shard, request.temperature,
            sum_p2=request.sum_p2,
        )  # fmt: skip
        stats = merged_over(request.tp_group, local)
        ctx.names, values = stats.fields()
        ctx.save_for_backward(logits_TV, target_T, ref_logits_TV, *values)
        ctx.request, ctx.shard, ctx.is_overwritten = request, shard, False
        return outputs(ctx, stats, request)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # noqa: ANN205, ANN401
        if ctx.is_overwritten:
            raise DataError(
                "token_stats_from_logits backward",
                "its logits were overwritten by their gradient in an earlier backward pass.",
                "Leave out HeadOptions(overwrite_logits=True) where the graph is used twice.",
            )
        logits_TV, target_T, ref_logits_TV, *values = ctx.saved_tensors
        ctx.is_overwritten = ctx.request.options.overwrite_logits
        stats = RowStats(**dict(zip(ctx.names, values, strict=True)))
        grad_TV = row_gradient(
            RowLogits(logits_TV, target_T, ref_logits_TV), ctx.shard, stats,
            cotangents_of(grads, stats), ctx.request.temperature,
            out=logits_TV.detach() if ctx.is_overwritten else None,
        )  # fmt: skip
        return grad_TV, None, None, None


def outputs(
    ctx: Any,  # noqa: ANN401 - torch's own context
    stats: RowStats,
    request: Request,
) -> tuple[Tensor | None, ...]:
    """The fields of `TokenStats`, of which the first three have gradients."""
    top1 = (stats.top1_prob_T, stats.is_top1_T) if Stat.TOP1 in request.extras else (None, None)
    constant = [value for value in (*top1, stats.sum_p2_T) if value is not None]
    ctx.mark_non_differentiable(*constant)
    ctx.set_materialize_grads(False)
    return stats.logprob_T, stats.entropy_T, stats.kl_T, *top1, stats.sum_p2_T


def cotangents_of(grads: tuple[Tensor | None, ...], stats: RowStats) -> Cotangents:
    """What autograd hands back for the first three of `outputs`."""
    grad_logprob_T, grad_entropy_T, grad_kl_T = grads[:3]
    if grad_logprob_T is None:
        grad_logprob_T = torch.zeros_like(stats.entropy_T)
    return Cotangents(grad_logprob_T, grad_entropy_T, grad_kl_T)
