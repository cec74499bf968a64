"""Row statistics and row gradients of logits that are in memory, on one rank.

T tokens, V columns of this rank's shard. All arithmetic is in float32, or float64 for float64
logits; on a CPU a few rows at a time, so that every pass after the first finds them in cache.

Source: docs/token_stats.md. Not here: communication (`vocab.py`)
and the LM head (`head.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_reason.ops.vocab import RowStats, VocabShard

_SLAB_ELEMENTS = 1 << 19
"""Logits worked on at once on a CPU: 2 MiB in float32, about a core's own cache."""
_NO_WEIGHT = -1e4
"""Log-probability below which exp() is 0 in float64 too; keeps 0 x -inf out of sums."""


@dataclass(frozen=True)
class RowLogits:
    """Logits of some tokens, and what is needed to read them."""

    logits_TV: Tensor
    """[T, V] any floating type."""
    target_T: Tensor
    """int64 [T]: global column of the target."""
    ref_logits_TV: Tensor | None = None
    """[T, V]: the reference's logits, for a divergence."""


@dataclass(frozen=True)
class Cotangents:
    """d(loss) / d(statistic) for each token; None where the loss does not depend on it."""

    logprob_T: Tensor
    entropy_T: Tensor | None = None
    kl_T: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Cotangents":
        return Cotangents(
            self.logprob_T[rows],
            None if self.entropy_T is None else self.entropy_T[rows],
            None if self.kl_T is None else self.kl_T[rows],
        )


def row_stats(
    rows: RowLogits, shard: VocabShard, temperature: float = 1.0, *, sum_p2: bool = False
) -> RowStats:
    """Statistics of each row over this rank's real columns.

    Args:
        rows: logits and targets; the divergence is computed if there are reference logits.
        shard: which columns these are.
        temperature: divides the logits, the reference's too.
        sum_p2: whether to compute the sum of squared probabilities.
    """
    whole: dict[str, Tensor] = {}
    for place, slab in _slabs(rows):
        values_TV = _prepared(slab.logits_TV, shard, temperature)
        ref_TV = None
        if slab.ref_logits_TV is not None:
            ref_TV = _prepared(slab.ref_logits_TV, shard, temperature)
        target = shard.local_target(slab.target_T)
        part = _slab_stats(values_TV, target, ref_TV, sum_p2=sum_p2)
        # Copied, so that nothing of a slab outlives it: small tensors that stay between large ones
        # that go would cut the heap to pieces, and every slab would get fresh memory.
        for name, value_T in zip(*part.fields(), strict=True):
            if name not in whole:
                whole[name] = value_T.new_empty(len(rows.target_T))
            whole[name][place] = value_T
    return RowStats(**whole)


def row_gradient(
    rows: RowLogits, shard: VocabShard, stats: RowStats, grads: Cotangents,
    temperature: float = 1.0, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """d(loss)/d(logits) of this shard; needs no communication.

    Args:
        rows: logits, targets, and reference logits if `grads.kl_T` is there.
        shard: which columns these are.
        stats: of these rows, over the whole vocabulary.
        grads: cotangents of the statistics.
        temperature: as in `row_stats`.
        out: [T, V] to write to, possibly the logits themselves; a new tensor like them if None.

    Returns:
        [T, V]: (g_lp (1[j = x] - p_j) - g_H p_j (log p_j + H) + g_KL p_j (log p_j - log q_j - KL))
        / temperature; 0 for padding.

    Source: docs/token_stats.md.
    """
    grad_TV = torch.empty_like(rows.logits_TV) if out is None else out
    for place, slab in _slabs(rows):
        values = _prepared(slab.logits_TV, shard, temperature)
        logq_TV = None
        if grads.kl_T is not None and slab.ref_logits_TV is not None:
            assert stats.ref_max_logit_T is not None, "a divergence has the reference's maxima"
            assert stats.ref_log_sum_T is not None, "a divergence has the reference's sums"
            ref_TV = _prepared(slab.ref_logits_TV, shard, temperature)
            logq_TV = (ref_TV - stats.ref_max_logit_T[place, None]).sub_(
                stats.ref_log_sum_T[place, None]
            )
        part_TV = _slab_gradient(values, shard, stats[place], grads[place], logq_TV)
        if shard.num_valid:
            column_T, is_here_T = shard.local_target(slab.target_T)
            here_T = grads.logprob_T[place] * is_here_T
            part_TV.scatter_add_(1, column_T[:, None], here_T[:, None])
        grad_TV[place, : shard.num_valid] = part_TV if temperature == 1 else part_TV / temperature
    grad_TV[:, shard.num_valid :] = 0
    return grad_TV


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type that statistics of `dtype` logits are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _slab_stats(
    logits_TV: Tensor, target: tuple[Tensor, Tensor], ref_TV: Tensor | None, *, sum_p2: bool
) -> RowStats:
    if not logits_TV.shape[1]:
        return _no_columns(logits_TV, sum_p2=sum_p2, with_reference=ref_TV is not None)
    max_T, log_sum_T, prob_TV = _softmax(logits_TV)
    sum_p2_T = prob_TV.square().sum(dim=1) if sum_p2 else None
    column_T, is_here_T = target
    target_logit_T = logits_TV.gather(1, column_T[:, None])[:, 0].where(is_here_T, 0.0)
    shifted_TV = (logits_TV - max_T[:, None]).clamp_(min=_NO_WEIGHT)
    ref_max_T = ref_log_sum_T = kl_T = None
    if ref_TV is not None:
        ref_max_T = _row_max(ref_TV)
        logq_TV = torch.log_softmax(ref_TV, dim=1)
        ref_log_sum_T = _negated_or_lowest(logq_TV.amax(dim=1))
        log_ratio_TV = torch.sub(shifted_TV, logq_TV, out=logq_TV).sub_(log_sum_T[:, None])
        kl_T = log_ratio_TV.mul_(prob_TV).masked_fill_(prob_TV == 0, 0).sum(dim=1)
    entropy_T = log_sum_T - prob_TV.mul_(shifted_TV).sum(dim=1)
    entropy_T.masked_fill_(log_sum_T == -torch.inf, 0)
    return RowStats(
        max_T, log_sum_T, entropy_T, target_logit_T, sum_p2_T, ref_max_T, ref_log_sum_T, kl_T
    )


def _softmax(logits_TV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row maximum, log of the sum of exp(logit - maximum), and probabilities.

    The fused softmax takes half the time of exp() alone; 1 over that sum is the largest
    probability. Where every logit is -inf, log_sum is -inf and the probabilities are NaN.
    """
    prob_TV = torch.softmax(logits_TV, dim=1)
    log_sum_T = _negated_or_lowest(prob_TV.amax(dim=1).log_())
    return _row_max(logits_TV), log_sum_T, prob_TV


def _row_max(logits_TV: Tensor) -> Tensor:
    return logits_TV.amax(dim=1).clamp_(min=torch.finfo(logits_TV.dtype).min)


def _negated_or_lowest(value_T: Tensor) -> Tensor:
    """-value, or -inf where a softmax had nothing but -inf and so gave NaN."""
    return value_T.neg_().nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _no_columns(like_TV: Tensor, *, sum_p2: bool, with_reference: bool) -> RowStats:
    zero_T = like_TV.new_zeros(len(like_TV))
    lowest_T, never_T = zero_T + torch.finfo(zero_T.dtype).min, zero_T - torch.inf
    ref = (lowest_T, never_T, zero_T) if with_reference else (None, None, None)
    return RowStats(lowest_T, never_T, zero_T, zero_T, zero_T if sum_p2 else None, *ref)


def _slab_gradient(
    logits_TV: Tensor, shard: VocabShard, stats: RowStats, grads: Cotangents,
    logq_TV: Tensor | None,
) -> Tensor:  # fmt: skip
    """The part of the gradient that every column has."""
    prob_TV = _probabilities(logits_TV, shard, stats)
    if grads.entropy_T is None and logq_TV is None:
        return prob_TV.mul_(-grads.logprob_T[:, None])
    factor_T = -grads.logprob_T
    slope_T = torch.zeros_like(factor_T)
    if logq_TV is not None:
        assert grads.kl_T is not None, "only a divergence with a cotangent brings logq"
        assert stats.kl_T is not None, "a divergence with a cotangent was computed"
        slope_T, factor_T = slope_T + grads.kl_T, factor_T - grads.kl_T * stats.kl_T
        logq_TV.clamp_(min=_NO_WEIGHT).mul_(grads.kl_T[:, None])
    if grads.entropy_T is not None:
        slope_T = slope_T - grads.entropy_T
        factor_T = factor_T - grads.entropy_T * stats.entropy_T
    shifted_TV = (logits_TV - stats.max_logit_T[:, None]).clamp_(min=_NO_WEIGHT)
    shifted_TV.mul_(slope_T[:, None])
    if logq_TV is not None:
        shifted_TV.sub_(logq_TV)
    # slope * log p = slope * (logit - max) - slope * log_sum
    return prob_TV.mul_(shifted_TV.add_((factor_T - slope_T * stats.log_sum_T)[:, None]))


def _probabilities(logits_TV: Tensor, shard: VocabShard, stats: RowStats) -> Tensor:
    """Probabilities among all ranks' columns."""
    if shard.group is None or not shard.num_valid:
        return torch.softmax(logits_TV, dim=1)
    max_T, log_sum_T, prob_TV = _softmax(logits_TV)
    share_T = ((max_T - stats.max_logit_T) + (log_sum_T - stats.log_sum_T)).exp_()
    return prob_TV.mul_(share_T[:, None]).masked_fill_((share_T == 0)[:, None], 0)


def _slabs(rows: RowLogits) -> Iterator[tuple[slice, RowLogits]]:
    """Rows in pieces that a core's cache holds; all at once where there are thousands of cores."""
    num_rows, num_columns = rows.logits_TV.shape
    size = max(num_rows, 1)
    if rows.logits_TV.device.type == "cpu":
        size = max(1, _SLAB_ELEMENTS // max(num_columns, 1))
    for begin in range(0, max(num_rows, 1), size):
        place = slice(begin, begin + size)
        ref_TV = None if rows.ref_logits_TV is None else rows.ref_logits_TV[place]
        yield place, RowLogits(rows.logits_TV[place], rows.target_T[place], ref_TV)


def _prepared(logits_TV: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    """Real columns, widened, tempered."""
    values_TV = logits_TV[:, : shard.num_valid].to(wide_dtype(logits_TV.dtype))
    return values_TV if temperature == 1 else values_TV / temperature
