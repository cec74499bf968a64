"""Row statistics and row gradients of logits that are in memory, on one rank.

T tokens, V columns of this rank's shard. All arithmetic is in float32, or float64 for float64
logits; on a CPU a few rows at a time, so that every pass after the first finds them in cache.

Source: docs/token_stats.md. Not here: communication (`vocab.py`)
and the LM head (`head.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_reason.ops.vocab import RowStats, VocabShard

_SLAB_ELEMENTS = 1 << 19
"""Logits worked on at once on a CPU: 2 MiB in float32, about a core's own cache."""
_GPU_SLAB_ELEMENTS = 1 << 27
"""The same on a GPU: 512 MiB in float32, so that no copy of all logits is ever made."""
_SLAB_ROWS = 8
"""Rows worked on at once at least: a vocabulary may be large, and the loss has a price per call."""
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

    @property
    def is_live_T(self) -> Tensor:
        """Bool [T]: whether the loss depends on any statistic of the token."""
        live_T = self.logprob_T != 0
        for other_T in (self.entropy_T, self.kl_T):
            live_T = live_T if other_T is None else live_T | (other_T != 0)
        return live_T

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
    whole, memory = _Whole(len(rows.target_T)), _Memory(shard, temperature)
    for place, slab in _slabs(rows):
        ref_TV = None
        if slab.ref_logits_TV is not None:
            ref_TV = memory.prepared("reference", slab.ref_logits_TV)
        if shard.num_valid:
            part = _slab_stats(_softmax(slab, memory), memory, ref_TV, sum_p2=sum_p2, keep=False)
        else:
            part = _no_columns(slab.logits_TV, sum_p2=sum_p2, with_reference=ref_TV is not None)
        whole.put(place, part)
    return whole.stats()


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
    memory = _Memory(shard, temperature)
    for place, slab in _slabs(rows) if shard.num_valid else ():
        soft = _softmax(slab, memory)
        if shard.group is not None:
            soft = _among_all(soft, stats[place])
        logq_TV = None
        if grads.kl_T is not None and slab.ref_logits_TV is not None:
            assert stats.ref_max_logit_T is not None, "a divergence has the reference's maxima"
            assert stats.ref_log_sum_T is not None, "a divergence has the reference's sums"
            ref_TV = memory.prepared("reference", slab.ref_logits_TV)
            logq_TV = (ref_TV - stats.ref_max_logit_T[place, None]).sub_(
                stats.ref_log_sum_T[place, None]
            )
        own_T = _target_gradient(slab, shard, stats[place], grads[place], logq_TV)
        part_TV = _slab_gradient(soft, stats[place], grads[place], logq_TV)
        _write(part_TV, grad_TV[place], own_T, slab, shard, temperature)
    grad_TV[:, shard.num_valid :] = 0
    return grad_TV


def row_stats_and_gradient(
    rows: RowLogits, shard: VocabShard, cotangents: Callable[[RowStats, slice], Cotangents],
    temperature: float = 1.0,
) -> RowStats:  # fmt: skip
    """Both at once where this rank has the whole vocabulary: no probability is computed twice.

    Args:
        rows: logits, which are overwritten by their gradient, and targets; no reference.
        shard: all columns, without a group.
        cotangents: of some rows, from their statistics and their place among `rows`.
        temperature: as in `row_stats`.
    """
    assert shard.group is None, "other ranks' columns belong to the statistics"
    whole, memory = _Whole(len(rows.target_T)), _Memory(shard, temperature)
    for place, slab in _slabs(rows):
        soft = _softmax(slab, memory)
        stats = _slab_stats(soft, memory, None, sum_p2=False, keep=True)
        whole.put(place, stats)
        grads = cotangents(stats, place)
        own_T = _target_gradient(slab, shard, stats, grads, None)
        part_TV = _slab_gradient(soft, stats, grads, None)
        _write(part_TV, slab.logits_TV, own_T, slab, shard, temperature)
    rows.logits_TV[:, shard.num_valid :] = 0
    return whole.stats()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type that statistics of `dtype` logits are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class _Softmax:
    """Softmax of some rows over this rank's columns, and what it is relative to."""

    max_T: Tensor
    """[T]: largest logit; the lowest finite number where every logit is -inf."""
    log_sum_T: Tensor
    """[T]: log of the sum of exp(logit - maximum); -inf where every logit is."""
    column_T: Tensor
    """int64 [T]: the target among the columns; 0 where it is elsewhere."""
    is_here_T: Tensor
    """Bool [T]: whether the target is among the columns."""
    target_logit_T: Tensor
    """[T]: logit of the target; 0 where it is not among the columns."""
    prob_TV: Tensor
    """[T, V]: probabilities but for `scale_T`; NaN where every logit is -inf."""
    scale_T: Tensor
    """[T]: what `prob_TV` is to be multiplied by, to add up to 1 over the columns it is of."""
    shifted_TV: Tensor
    """[T, V]: logit - maximum; finite."""

    def scaled(self, value_T: Tensor) -> Tensor:
        """[T, 1]: a factor of the probabilities, times their scale."""
        return (value_T * self.scale_T)[:, None]


class _Whole:
    """Statistics of all rows, of which slabs are put in place one by one.

    They are copied, so that nothing of a slab outlives it: small tensors that stay between large
    ones that go would cut the heap to pieces, and every slab would get fresh memory.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._values: dict[str, Tensor] = {}

    def put(self, place: slice, part: RowStats) -> None:
        for name, value_T in zip(*part.fields(), strict=True):
            if name not in self._values:
                self._values[name] = value_T.new_empty(self._num_rows)
            self._values[name][place] = value_T

    def stats(self) -> RowStats:
        return RowStats(**self._values)


class _Memory:
    """Where slabs are worked on, one after the other.

    It is used again and again: fresh pages cost a CPU more time than the arithmetic in them.
    """

    def __init__(self, shard: VocabShard, temperature: float) -> None:
        self.shard = shard
        self._temperature = temperature
        self._tensors: dict[str, Tensor] = {}

    def like(self, name: str, logits_TV: Tensor) -> Tensor:
        """[T, V] for the real columns of a slab, wide; no slab has more rows than the first."""
        if name not in self._tensors:
            shape = (len(logits_TV), self.shard.num_valid)
            self._tensors[name] = logits_TV.new_empty(shape, dtype=wide_dtype(logits_TV.dtype))
        return self._tensors[name][: len(logits_TV)]

    def prepared(self, name: str, logits_TV: Tensor) -> Tensor:
        """Real columns, widened, tempered; a view where that changes nothing."""
        real_TV = logits_TV[:, : self.shard.num_valid]
        if self._temperature == 1 and real_TV.dtype == wide_dtype(real_TV.dtype):
            return real_TV
        values_TV = self.like(name, logits_TV).copy_(real_TV)
        return values_TV if self._temperature == 1 else values_TV.div_(self._temperature)


def _softmax(slab: RowLogits, memory: _Memory) -> _Softmax:
    """Of at least one column.

    The fused softmax takes half the time of exp() alone. But on a CPU it adds up each lane in
    float32, column by column, and errs by tens of ulps over a large vocabulary; sum() goes by
    pairs, and finds by how much.
    """
    values_TV = memory.prepared("values", slab.logits_TV)
    column_T, is_here_T = memory.shard.local_target(slab.target_T)
    target_logit_T = values_TV.gather(1, column_T[:, None])[:, 0].where(is_here_T, 0.0)
    max_T = _row_max(values_TV)
    prob_TV = torch.softmax(values_TV, dim=1, out=memory.like("probabilities", values_TV))
    total_T, log_sum_T = _sums(prob_TV, column_T, is_here_T)
    shifted_TV = torch.sub(values_TV, max_T[:, None], out=memory.like("values", values_TV))
    return _Softmax(
        max_T, log_sum_T, column_T, is_here_T, target_logit_T, prob_TV, total_T.reciprocal_(),
        shifted_TV.clamp_(min=_NO_WEIGHT),
    )  # fmt: skip


def _sums(prob_TV: Tensor, column_T: Tensor, is_here_T: Tensor) -> tuple[Tensor, Tensor]:
    """[T] sum of the probabilities, and log of it over the largest; -inf where they are NaN.

    The target is left out of the sum and added last: where it has nearly all of the probability,
    log p is that of the others together, of which 1 + them would keep hardly a digit.
    """
    column_T1 = column_T[:, None]
    there_T1 = prob_TV.gather(1, column_T1)
    target_T = there_T1[:, 0].where(is_here_T, 0.0)
    prob_TV.scatter_(1, column_T1, there_T1.masked_fill(is_here_T[:, None], 0))
    others_T = prob_TV.sum(dim=1)
    prob_TV.scatter_(1, column_T1, there_T1)
    largest_T, total_T = prob_TV.amax(dim=1), others_T + target_T
    log_sum_T = torch.where(
        target_T == largest_T, (others_T / target_T).log1p_(), (total_T / largest_T).log_()
    )
    return total_T, _or_lowest(log_sum_T)


def _row_max(logits_TV: Tensor) -> Tensor:
    return logits_TV.amax(dim=1).clamp_(min=torch.finfo(logits_TV.dtype).min)


def _among_all(soft: _Softmax, stats: RowStats) -> _Softmax:
    """Relative to all ranks' columns: `log_sum_T` is such that log p = shifted - log_sum."""
    lower_T = soft.max_T - stats.max_logit_T
    share_T = (lower_T + (soft.log_sum_T - stats.log_sum_T)).exp_()
    log_sum_T = stats.log_sum_T - lower_T.clamp(min=_NO_WEIGHT)
    # NaN where this rank has nothing but -inf: 0 of the whole. A NaN logit is in the share, too.
    prob_TV, scale_T = soft.prob_TV.nan_to_num_(nan=0.0), soft.scale_T.nan_to_num_(nan=0.0)
    return replace(soft, log_sum_T=log_sum_T, prob_TV=prob_TV, scale_T=scale_T.mul_(share_T))


def _slab_stats(
    soft: _Softmax, memory: _Memory, ref_TV: Tensor | None, *, sum_p2: bool, keep: bool
) -> RowStats:
    """Uses `soft` up unless told to keep it."""
    sum_p2_T = None
    if sum_p2:
        product_TV = memory.like("products", soft.prob_TV)
        sum_p2_T = torch.square(soft.prob_TV, out=product_TV).sum(dim=1)
        sum_p2_T.mul_(soft.scale_T.square())
    ref_max_T = ref_log_sum_T = kl_T = None
    if ref_TV is not None:
        ref_max_T = _row_max(ref_TV)
        ref_prob_TV = torch.softmax(ref_TV, dim=1)
        _, ref_log_sum_T = _sums(ref_prob_TV, soft.column_T, soft.is_here_T)
        # log p - log q, of which log-sums are the same for all columns.
        log_ratio_TV = torch.sub(ref_TV, ref_max_T[:, None], out=ref_prob_TV).neg_()
        log_ratio_TV.add_(soft.shifted_TV).add_((ref_log_sum_T - soft.log_sum_T)[:, None])
        log_ratio_TV.mul_(soft.prob_TV).masked_fill_(soft.prob_TV == 0, 0)
        kl_T = log_ratio_TV.sum(dim=1).mul_(soft.scale_T)
    product_TV = memory.like("products", soft.prob_TV) if keep else soft.shifted_TV
    mean_T = torch.mul(soft.prob_TV, soft.shifted_TV, out=product_TV).sum(dim=1)
    entropy_T = soft.log_sum_T - mean_T.mul_(soft.scale_T)
    entropy_T.masked_fill_(soft.log_sum_T == -torch.inf, 0)
    return RowStats(
        soft.max_T, soft.log_sum_T, entropy_T, soft.target_logit_T, sum_p2_T, ref_max_T,
        ref_log_sum_T, kl_T,
    )  # fmt: skip


def _or_lowest(value_T: Tensor) -> Tensor:
    """The value, or -inf where a softmax had nothing but -inf and so gave NaN."""
    return value_T.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _no_columns(logits_TV: Tensor, *, sum_p2: bool, with_reference: bool) -> RowStats:
    zero_T = logits_TV.new_zeros(len(logits_TV), dtype=wide_dtype(logits_TV.dtype))
    lowest_T, never_T = zero_T + torch.finfo(zero_T.dtype).min, zero_T - torch.inf
    ref = (lowest_T, never_T, zero_T) if with_reference else (None, None, None)
    return RowStats(lowest_T, never_T, zero_T, zero_T, zero_T if sum_p2 else None, *ref)


def _slab_gradient(
    soft: _Softmax, stats: RowStats, grads: Cotangents, logq_TV: Tensor | None
) -> Tensor:
    """The part of the gradient that every column has; uses `soft` and `logq_TV` up."""
    if grads.entropy_T is None and logq_TV is None:
        return soft.prob_TV.mul_(soft.scaled(-grads.logprob_T))
    factor_T = -grads.logprob_T
    slope_T = torch.zeros_like(factor_T)
    if logq_TV is not None:
        assert grads.kl_T is not None, "only a divergence with a cotangent brings logq"
        assert stats.kl_T is not None, "a divergence with a cotangent was computed"
        slope_T, factor_T = slope_T + grads.kl_T, factor_T - grads.kl_T * stats.kl_T
        logq_TV.clamp_(min=_NO_WEIGHT).mul_(soft.scaled(grads.kl_T))
    if grads.entropy_T is not None:
        slope_T = slope_T - grads.entropy_T
        factor_T = factor_T - grads.entropy_T * stats.entropy_T
    slopes_TV = soft.shifted_TV.mul_(soft.scaled(slope_T))
    if logq_TV is not None:
        slopes_TV.sub_(logq_TV)
    # slope * log p = slope * shifted - slope * log_sum
    slopes_TV.add_(soft.scaled(factor_T - slope_T * soft.log_sum_T))
    return soft.prob_TV.mul_(slopes_TV)


def _target_gradient(
    slab: RowLogits, shard: VocabShard, stats: RowStats, grads: Cotangents,
    logq_TV: Tensor | None,
) -> Tensor:  # fmt: skip
    """[T]: what the target's own column gets, of use where it is among the columns.

    Unlikelihood's cotangent of log p is p / (1 - p): next to p = 1 the difference of it and its
    product with p has hardly a digit left, its product with 1 - p has them all.
    """
    logprob_T = stats.logprob_T.clamp(min=_NO_WEIGHT)
    prob_T = logprob_T.exp()
    own_T = -grads.logprob_T * torch.expm1(logprob_T)
    if grads.entropy_T is not None:
        own_T = own_T - grads.entropy_T * prob_T * (logprob_T + stats.entropy_T)
    if logq_TV is not None:
        assert grads.kl_T is not None, "only a divergence with a cotangent brings logq"
        assert stats.kl_T is not None, "a divergence with a cotangent was computed"
        column_T, _ = shard.local_target(slab.target_T)
        logq_T = logq_TV.gather(1, column_T[:, None])[:, 0].clamp(min=_NO_WEIGHT)
        own_T = own_T + grads.kl_T * prob_T * (logprob_T - logq_T - stats.kl_T)
    return own_T


def _write(
    part_TV: Tensor, grad_TV: Tensor, own_T: Tensor, slab: RowLogits, shard: VocabShard,
    temperature: float,
) -> None:  # fmt: skip
    """Put in what the target's column has, and store the real columns."""
    column_T, is_here_T = shard.local_target(slab.target_T)
    there_T = part_TV.gather(1, column_T[:, None])[:, 0]
    part_TV.scatter_(1, column_T[:, None], torch.where(is_here_T, own_T, there_T)[:, None])
    grad_TV[:, : shard.num_valid] = part_TV if temperature == 1 else part_TV.div_(temperature)


def _slabs(rows: RowLogits) -> Iterator[tuple[slice, RowLogits]]:
    """Rows in pieces that a core's cache holds, or that a GPU's memory hardly feels."""
    num_rows, num_columns = rows.logits_TV.shape
    is_cpu = rows.logits_TV.device.type == "cpu"
    elements = _SLAB_ELEMENTS if is_cpu else _GPU_SLAB_ELEMENTS
    size = max(_SLAB_ROWS, elements // max(num_columns, 1))
    for begin in range(0, max(num_rows, 1), size):
        place = slice(begin, min(begin + size, num_rows))
        ref_TV = None if rows.ref_logits_TV is None else rows.ref_logits_TV[place]
        yield place, RowLogits(rows.logits_TV[place], rows.target_T[place], ref_TV)
