"""Statistics of one vocabulary shard, and merging the shards of a tensor-parallel group.

T tokens, V columns of this rank's shard, R ranks. One all-gather of [3, T] per call replaces the
usual MAX and SUM all-reduces; ranks merge in the same order, so all hold bitwise equal results.

Source: METHODS 10.1-10.2 (the primitive and its gradient). The entropies merge by the chain rule
H = sum_r w_r (H_r + lse - lse_r), which never subtracts large numbers. Not here: the LM head.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_SLAB_ELEMENTS = 1 << 20
"""Logits worked on at once on a CPU, 4 MiB in float32: out of cache a pass costs 5 times more."""


@dataclass(frozen=True)
class VocabShard:
    """Which columns of the vocabulary this rank holds."""

    start: int
    """Global index of the first column."""
    num_valid: int
    """Columns that are real; those after them are padding."""
    group: "ProcessGroup | None"
    """Ranks that hold the other columns; None where there are none."""

    @classmethod
    def of(
        cls, num_columns: int, vocab_size: int | None, group: "ProcessGroup | None"
    ) -> "VocabShard":
        """Shard of `num_columns` columns on this rank.

        Args:
            num_columns: columns held here, padding included; equal on all ranks.
            vocab_size: real vocabulary over all ranks; None if nothing is padding.
            group: the tensor-parallel group, or None.
        """
        rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
        start = rank * num_columns
        real = num_columns * size if vocab_size is None else vocab_size
        return cls(start, max(0, min(num_columns, real - start)), group)

    def local_target(self, target_T: Tensor) -> tuple[Tensor, Tensor]:
        """Column of each target in this shard (0 if elsewhere) and whether it is here."""
        column_T = target_T - self.start
        is_here_T = (column_T >= 0) & (column_T < self.num_valid)
        return torch.where(is_here_T, column_T, 0), is_here_T


@dataclass(frozen=True)
class RowStats:
    """Log-sum-exp, entropy and target logit of each row, over the whole vocabulary."""

    lse_T: Tensor
    entropy_T: Tensor
    target_logit_T: Tensor

    @property
    def logprob_T(self) -> Tensor:
        """[T]: log p(target)."""
        return self.target_logit_T - self.lse_T


def row_stats(
    logits_TV: Tensor, target_T: Tensor, shard: VocabShard, temperature: float = 1.0
) -> RowStats:
    """Statistics of each row, merged over the shard's group.

    Args:
        logits_TV: [T, V] any floating type, this rank's columns; computed on in float32 or wider.
        target_T: [T] int64, global column of the target.
        shard: which columns these are.
        temperature: divides the logits.
    """
    parts = [
        _local_stats(_prepared(slab, shard, temperature), target, shard)
        for slab, target in _slabs(logits_TV, target_T)
    ]
    local = torch.cat(parts, dim=1) if parts else logits_TV.new_zeros(3, 0, dtype=_wide(logits_TV))
    if shard.group is None:
        return RowStats(*local.unbind())
    gathered = [torch.empty_like(local) for _ in range(shard.group.size())]
    dist.all_gather(gathered, local, group=shard.group)
    return _merge(torch.stack(gathered, dim=1))


def row_gradient(  # noqa: PLR0913 - rows, their statistics and their cotangents
    logits_TV: Tensor, target_T: Tensor, shard: VocabShard, stats: RowStats,
    grad_logprob_T: Tensor, grad_entropy_T: Tensor | None, temperature: float = 1.0,
) -> Tensor:  # fmt: skip
    """d(loss)/d(logits) of this shard; needs no communication.

    Returns:
        [T, V], dtype of the logits: (g_lp (1[j = x] - p_j) - g_H p_j (log p_j + H)) / temperature,
        0 for padding.

    Source: METHODS 10.1.
    """
    grad_TV = torch.empty_like(logits_TV)
    begin = 0
    for slab, target in _slabs(logits_TV, target_T):
        rows = slice(begin, begin + len(slab))
        values = _prepared(slab, shard, temperature)
        entropy = None if grad_entropy_T is None else (stats.entropy_T[rows], grad_entropy_T[rows])
        part = _slab_gradient(values, stats.lse_T[rows], grad_logprob_T[rows], entropy)
        if shard.num_valid:
            column, is_here = shard.local_target(target)
            part.scatter_add_(1, column[:, None], (grad_logprob_T[rows] * is_here)[:, None])
        grad_TV[rows, : shard.num_valid] = part if temperature == 1.0 else part / temperature
        begin += len(slab)
    grad_TV[:, shard.num_valid :] = 0
    return grad_TV


def _slab_gradient(
    logits_TV: Tensor, lse_T: Tensor, grad_logprob_T: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    """The part of the gradient that every column has; `entropy` is H and its cotangent."""
    logprob_TV = logits_TV - lse_T[:, None]
    prob_TV = logprob_TV.exp()
    if entropy is None:
        return prob_TV.mul_(-grad_logprob_T[:, None])
    entropy_T, grad_entropy_T = entropy
    factor_TV = logprob_TV.add_(entropy_T[:, None]).mul_(grad_entropy_T[:, None])
    # p = 0 at a logit of -inf: 0 x -inf is NaN, and the limit is 0.
    return prob_TV.mul_(factor_TV.add_(grad_logprob_T[:, None]).neg_()).nan_to_num_(nan=0.0)


def _slabs(logits_TV: Tensor, target_T: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in pieces that a core's cache holds; all at once where there are thousands of cores."""
    rows = len(logits_TV)
    if logits_TV.device.type == "cpu":
        rows = max(1, _SLAB_ELEMENTS // max(logits_TV.shape[1], 1))
    yield from zip(logits_TV.split(max(rows, 1)), target_T.split(max(rows, 1)), strict=True)


def _prepared(logits_TV: Tensor, shard: VocabShard, temperature: float) -> Tensor:
    """Real columns, widened, tempered."""
    values_TV = logits_TV[:, : shard.num_valid].to(_wide(logits_TV))
    return values_TV if temperature == 1.0 else values_TV / temperature


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _local_stats(logits_TV: Tensor, target_T: Tensor, shard: VocabShard) -> Tensor:
    """[3, T]: log-sum-exp, entropy and target logit (0 if elsewhere) within the shard."""
    if not shard.num_valid:
        zero_T = logits_TV.new_zeros(len(logits_TV))
        return torch.stack([zero_T - torch.inf, zero_T, zero_T])
    max_T = logits_TV.amax(dim=1)
    shifted_TV = logits_TV - max_T[:, None]
    weight_TV = shifted_TV.exp()
    sum_T = weight_TV.sum(dim=1)
    # A logit of -inf has weight 0 and must not contribute 0 x -inf.
    moment_T = weight_TV.mul_(shifted_TV.clamp_(min=torch.finfo(logits_TV.dtype).min)).sum(dim=1)
    column_T, is_here_T = shard.local_target(target_T)
    target_logit_T = logits_TV.gather(1, column_T[:, None])[:, 0]
    log_sum_T = sum_T.log()
    return torch.stack(
        [
            max_T + log_sum_T,
            log_sum_T - moment_T / sum_T,
            torch.where(is_here_T, target_logit_T, 0.0),
        ]
    )


def _merge(parts_3RT: Tensor) -> RowStats:
    lse_RT, entropy_RT, target_logit_RT = parts_3RT.unbind()
    lse_T = torch.logsumexp(lse_RT, dim=0)
    share_RT = (lse_RT - lse_T).exp()
    within_RT = torch.where(share_RT > 0, entropy_RT + lse_T - lse_RT, 0.0)
    return RowStats(lse_T, (share_RT * within_RT).sum(dim=0), target_logit_RT.sum(dim=0))
