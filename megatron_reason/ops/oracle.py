"""The token statistics as one would write them on paper: plain autograd, everything in memory.

The other backends are tested against it. T tokens, V vocabulary columns of this rank. Source:
docs/token_stats.md. Not here: anything fast.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.ops.inputs import Reference, Request
from megatron_reason.ops.rows import wide_dtype
from megatron_reason.schema.batch import Stat, TokenStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def oracle_stats(
    hidden: Tensor, weight: Tensor, target: Tensor, request: Request, reference: Reference | None
) -> TokenStats:
    """`token_stats` by plain autograd, over all ranks' columns."""
    summed_TD = _SumGradient.apply(hidden, request.tp_group)
    ref_logits_TV = None
    if reference is not None:
        ref_logits_TV = head_logits(reference[0].detach(), reference[1].detach(), request)
    return oracle_stats_from_logits(
        head_logits(summed_TD, weight, request), target, request, ref_logits_TV
    )


def oracle_stats_from_logits(
    logits_TV: Tensor, target_T: Tensor, request: Request, ref_logits_TV: Tensor | None
) -> TokenStats:
    """`token_stats_from_logits` by plain autograd; other ranks' columns enter as constants."""
    logprob_TV = _logprobs(logits_TV, request)
    prob_TV = logprob_TV.exp()
    # Masked before the product: a logit of -inf must send no 0 x inf backwards.
    surprise_TV = prob_TV * logprob_TV.where(prob_TV > 0, 0.0)
    logprob_T = logprob_TV.gather(1, target_T[:, None])[:, 0]
    kl_T = None
    if ref_logits_TV is not None:
        log_ratio_TV = logprob_TV - _logprobs(ref_logits_TV.detach(), request)
        kl_T = (prob_TV * log_ratio_TV.where(prob_TV > 0, 0.0)).sum(dim=1)
    best_T = logprob_TV.detach().amax(dim=1)
    has_top1 = Stat.TOP1 in request.extras
    return TokenStats(
        logprob_T, -surprise_TV.sum(dim=1), kl_T,
        best_T.exp() if has_top1 else None,
        logprob_T.detach() >= best_T if has_top1 else None,
        prob_TV.detach().square().sum(dim=1) if request.sum_p2 else None,
    )  # fmt: skip


def head_logits(hidden_TD: Tensor, weight_VD: Tensor, request: Request) -> Tensor:
    """[T, V] logits at temperature 1, in the operands' type, or float32 if asked for."""
    return operand(hidden_TD, request) @ operand(weight_VD, request).T


def operand(tensor: Tensor, request: Request) -> Tensor:
    """The tensor in the type that products are formed in."""
    return tensor.to(wide_dtype(tensor.dtype)) if request.options.fp32_logits else tensor


class _SumGradient(torch.autograd.Function):
    """Identity whose gradient is summed over the tensor-parallel group."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: "ProcessGroup | None"):  # noqa: ANN205, ANN401
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        summed = grads[0].contiguous()
        if ctx.group is not None:
            dist.all_reduce(summed, group=ctx.group)
        return summed, None


def _logprobs(logits_TV: Tensor, request: Request) -> Tensor:
    """[T, all columns]: log-softmax over the whole vocabulary, padding left out."""
    logits_TV = logits_TV.to(wide_dtype(logits_TV.dtype)) / request.temperature
    full_TV = _gathered(logits_TV, request.tp_group)[:, : request.vocab_size]
    return torch.log_softmax(full_TV, dim=1)


def _gathered(logits_TV: Tensor, group: "ProcessGroup | None") -> Tensor:
    if group is None:
        return logits_TV
    shards = [torch.empty_like(logits_TV) for _ in range(group.size())]
    dist.all_gather(shards, logits_TV.detach().contiguous(), group=group)
    shards[group.rank()] = logits_TV
    return torch.cat(shards, dim=1)
