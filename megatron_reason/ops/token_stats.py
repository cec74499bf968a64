"""Per-token log-probability and entropy over a sharded vocabulary, differentiable in both.

The one place where log-probs are computed: every loss, every perplexity and every entropy of the
package comes from here. `token_stats` takes hidden states and the LM head and never holds [T, V]
logits beyond a byte budget; `token_stats_from_logits` takes logits that exist already.

T tokens, D hidden width, V vocabulary columns of this rank. Source: METHODS 10.1-10.2.
Not here: the maths of a row (`vocab.py`) and any loss (`methods/`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_reason.errors import PlatformError
from megatron_reason.ops.vocab import RowStats, VocabShard, row_gradient, row_stats
from megatron_reason.schema.batch import TokenStats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Backend = Literal["auto", "torch", "reference"]


@dataclass(frozen=True)
class HeadOptions:
    """Precision and memory of the LM head; none of them changes what is computed."""

    fp32_logits: bool = False
    """Multiply in float32 whatever the operands' dtype (scoring, mismatch studies)."""
    tokens_per_chunk: int = 1024
    """Tokens whose logits exist at once."""
    saved_logits_bytes: int = 256 * 2**20
    """Logits kept for the backward pass; chunks beyond are recomputed."""


_DEFAULTS = HeadOptions()


@dataclass(frozen=True)
class _Head:
    tp_group: "ProcessGroup | None"
    vocab_size: int | None
    temperature: float
    options: HeadOptions


def token_stats(  # noqa: PLR0913 - the public signature other code relies on
    hidden: Tensor, weight: Tensor, target: Tensor, *, tp_group: "ProcessGroup | None" = None,
    temperature: float = 1.0, vocab_size: int | None = None, backend: Backend = "auto",
    options: HeadOptions = _DEFAULTS,
) -> TokenStats:  # fmt: skip
    """Log-probability and entropy of each target under an LM head.

    Args:
        hidden: [T, D] hidden states, the same on every rank of the group.
        weight: [V, D] this rank's rows of the head.
        target: [T] int64, global token ids.
        tp_group: ranks that share the vocabulary; None if this rank holds all of it.
        temperature: divides the logits.
        vocab_size: real vocabulary over all ranks, beyond which columns are padding; None if
            nothing is padding.
        backend: `torch` (chunked, fused backward), `reference` (plain autograd, the oracle of the
            tests), or `auto` for the fastest present.
        options: precision and memory.

    Returns:
        `TokenStats` in float32 (float64 for float64 input). Gradients flow to `hidden` (summed
        over the group) and `weight`.

    Raises:
        PlatformError: a backend that does not exist.
    """
    spec = _Head(tp_group, vocab_size, temperature, options)
    if _chosen(backend) == "reference":
        summed_TD = _SumGradient.apply(hidden, tp_group)
        return _reference(_head(summed_TD, weight, spec), target, spec)
    return TokenStats(*_HeadStats.apply(hidden, weight, target, spec))


def token_stats_from_logits(  # noqa: PLR0913 - the public signature other code relies on
    logits: Tensor, target: Tensor, *, tp_group: "ProcessGroup | None" = None,
    temperature: float = 1.0, vocab_size: int | None = None, backend: Backend = "auto",
    options: HeadOptions = _DEFAULTS,
) -> TokenStats:  # fmt: skip
    """Log-probability and entropy of each target from logits [T, V] of this rank's columns.

    Arguments, result and errors as in `token_stats`; the temperature divides the logits here too.
    """
    spec = _Head(tp_group, vocab_size, temperature, options)
    if _chosen(backend) == "reference":
        return _reference(logits, target, spec)
    return TokenStats(*_LogitsStats.apply(logits, target, spec))


class _HeadStats(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205 - torch's own contract
        ctx: Any,  # noqa: ANN401 - torch's own contract
        hidden_TD: Tensor,
        weight_VD: Tensor,
        target_T: Tensor,
        spec: _Head,
    ):
        shard = VocabShard.of(len(weight_VD), spec.vocab_size, spec.tp_group)
        parts: list[RowStats] = []
        kept: list[Tensor | None] = []
        budget = spec.options.saved_logits_bytes if ctx.needs_input_grad[0] else 0
        for hidden_CD, target_C in _chunks(spec, hidden_TD, target_T):
            logits_CV = _head(hidden_CD, weight_VD, spec)
            parts.append(row_stats(logits_CV, target_C, shard, spec.temperature))
            budget -= logits_CV.nbytes
            kept.append(logits_CV if budget >= 0 else None)
        stats = _concatenated(parts, hidden_TD)
        ctx.save_for_backward(
            hidden_TD, weight_VD, target_T, stats.lse_T, stats.entropy_T, stats.target_logit_T
        )
        ctx.spec, ctx.kept = spec, kept
        ctx.set_materialize_grads(False)
        return stats.logprob_T, stats.entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # noqa: ANN205, ANN401
        hidden_TD, weight_VD, target_T, *saved = ctx.saved_tensors
        spec: _Head = ctx.spec
        shard = VocabShard.of(len(weight_VD), spec.vocab_size, spec.tp_group)
        grad_logprob_T, grad_entropy_T = _cotangents(grads, saved[0])
        wide = _wide_dtype(hidden_TD.dtype)
        grad_hidden_TD = torch.zeros_like(hidden_TD, dtype=wide)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide)
        for index, begin in enumerate(range(0, len(target_T), spec.options.tokens_per_chunk)):
            rows = slice(begin, begin + spec.options.tokens_per_chunk)
            logits_CV = ctx.kept[index]
            ctx.kept[index] = None
            if logits_CV is None:
                logits_CV = _head(hidden_TD[rows], weight_VD, spec)
            grad_CV = row_gradient(
                logits_CV, target_T[rows], shard, RowStats(*(value[rows] for value in saved)),
                grad_logprob_T[rows], None if grad_entropy_T is None else grad_entropy_T[rows],
                spec.temperature,
            )  # fmt: skip
            operand = wide if spec.options.fp32_logits else hidden_TD.dtype
            grad_CV = grad_CV.to(operand)
            grad_hidden_TD[rows] = grad_CV @ weight_VD.to(operand)
            grad_weight_VD += grad_CV.T @ hidden_TD[rows].to(operand)
        if spec.tp_group is not None:
            dist.all_reduce(grad_hidden_TD, group=spec.tp_group)
        return grad_hidden_TD.to(hidden_TD.dtype), grad_weight_VD.to(weight_VD.dtype), None, None


class _LogitsStats(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, target_T: Tensor, spec: _Head):  # noqa: ANN205, ANN401
        shard = VocabShard.of(logits_TV.shape[1], spec.vocab_size, spec.tp_group)
        parts = [
            row_stats(logits_CV, target_C, shard, spec.temperature)
            for logits_CV, target_C in _chunks(spec, logits_TV, target_T)
        ]
        stats = _concatenated(parts, logits_TV)
        ctx.save_for_backward(
            logits_TV, target_T, stats.lse_T, stats.entropy_T, stats.target_logit_T
        )
        ctx.spec, ctx.shard = spec, shard
        ctx.set_materialize_grads(False)
        return stats.logprob_T, stats.entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # noqa: ANN205, ANN401
        logits_TV, target_T, *saved = ctx.saved_tensors
        spec: _Head = ctx.spec
        grad_logprob_T, grad_entropy_T = _cotangents(grads, saved[0])
        grad_TV = row_gradient(
            logits_TV, target_T, ctx.shard, RowStats(*saved), grad_logprob_T, grad_entropy_T,
            spec.temperature,
        )  # fmt: skip
        return grad_TV, None, None


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


def _reference(logits_TV: Tensor, target_T: Tensor, spec: _Head) -> TokenStats:
    """Plain autograd over the whole vocabulary; other ranks' columns enter as constants."""
    logits_TV = _widen(logits_TV) / spec.temperature
    full_TV = _gathered(logits_TV, spec.tp_group)[:, : spec.vocab_size]
    logprob_TV = torch.log_softmax(full_TV, dim=1)
    prob_TV = logprob_TV.exp()
    surprise_TV = torch.where(prob_TV > 0, prob_TV * logprob_TV, 0.0)
    return TokenStats(logprob_TV.gather(1, target_T[:, None])[:, 0], -surprise_TV.sum(dim=1))


def _gathered(logits_TV: Tensor, group: "ProcessGroup | None") -> Tensor:
    if group is None:
        return logits_TV
    shards = [torch.empty_like(logits_TV) for _ in range(group.size())]
    dist.all_gather(shards, logits_TV.detach().contiguous(), group=group)
    shards[group.rank()] = logits_TV
    return torch.cat(shards, dim=1)


def _head(hidden_TD: Tensor, weight_VD: Tensor, spec: _Head) -> Tensor:
    """[T, V] logits at temperature 1, in the operands' type, or float32 if asked for."""
    if spec.options.fp32_logits:
        hidden_TD, weight_VD = _widen(hidden_TD), _widen(weight_VD)
    return hidden_TD @ weight_VD.T


def _chunks(spec: _Head, rows: Tensor, target_T: Tensor) -> list[tuple[Tensor, Tensor]]:
    size = spec.options.tokens_per_chunk
    return [(rows[i : i + size], target_T[i : i + size]) for i in range(0, len(target_T), size)]


def _concatenated(parts: list[RowStats], like: Tensor) -> RowStats:
    if not parts:
        empty = like.new_zeros(0, dtype=_wide_dtype(like.dtype))
        return RowStats(empty, empty.clone(), empty.clone())
    return RowStats(
        torch.cat([part.lse_T for part in parts]),
        torch.cat([part.entropy_T for part in parts]),
        torch.cat([part.target_logit_T for part in parts]),
    )


def _cotangents(grads: tuple[Tensor | None, ...], like_T: Tensor) -> tuple[Tensor, Tensor | None]:
    grad_logprob_T, grad_entropy_T = grads
    if grad_logprob_T is None:
        grad_logprob_T = torch.zeros_like(like_T)
    return grad_logprob_T, grad_entropy_T


def _wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(_wide_dtype(tensor.dtype))


def _chosen(backend: str) -> str:
    if backend not in get_args(Backend):
        raise PlatformError(
            "token_stats",
            f"there is no backend called '{backend}'.",
            f"Use one of {', '.join(get_args(Backend))}.",
        )
    return "torch" if backend == "auto" else backend
