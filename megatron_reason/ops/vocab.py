"""Statistics of the rows of one vocabulary shard, and merging those of several.

T tokens, V columns of this rank's shard, R parts of the vocabulary, K numbers per row. One
all-gather of [K, T] per call replaces the usual MAX and SUM all-reduces; ranks merge in the same
order, so all hold bitwise equal results.

Source: docs/token_stats.md. Entropies and divergences merge by their chain rules,
H = sum_r w_r (H_r - log w_r) and KL = sum_r w_r (KL_r + log w_r - log v_r) with w_r, v_r the two
distributions' shares of part r: no large number is ever subtracted from another. Not here: how the
statistics of a part come about (`rows.py`, `kernels/`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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
    """Statistics of each row over some columns: a part of the vocabulary, or all of it.

    Probabilities are those among these columns. Everything is relative to the largest logit, so
    that an offset common to a row's logits costs no digit.
    """

    max_logit_T: Tensor
    """[T]: largest logit; the lowest finite number where there is no column."""
    log_sum_T: Tensor
    """[T]: log of the sum of exp(logit - max_logit); -inf where there is no column."""
    entropy_T: Tensor
    """[T]: entropy, nats."""
    target_logit_T: Tensor
    """[T]: logit of the target; 0 where it is not among the columns."""
    sum_p2_T: Tensor | None = None
    """[T]: sum of squared probabilities."""
    ref_max_logit_T: Tensor | None = None
    """[T]: `max_logit_T` of the reference."""
    ref_log_sum_T: Tensor | None = None
    """[T]: `log_sum_T` of the reference."""
    kl_T: Tensor | None = None
    """[T]: sum of p (log p - log q) to the reference q, nats."""

    @property
    def logprob_T(self) -> Tensor:
        """[T]: log p(target); of the whole vocabulary only."""
        return (self.target_logit_T - self.max_logit_T) - self.log_sum_T

    @property
    def top1_prob_T(self) -> Tensor:
        """[T]: largest probability."""
        return (-self.log_sum_T).exp()

    @property
    def is_top1_T(self) -> Tensor:
        """Bool [T]: whether no column has a larger logit than the target."""
        return self.target_logit_T >= self.max_logit_T

    def __getitem__(self, rows: slice) -> "RowStats":
        present, values = self.fields()
        return RowStats(**dict(zip(present, (value[rows] for value in values), strict=True)))

    def fields(self) -> tuple[list[str], list[Tensor]]:
        """Names and values of the statistics that are there, in a fixed order."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return list(present), list(present.values())


def concatenated(parts: Sequence[RowStats]) -> RowStats:
    """Rows of several chunks of tokens, one after the other; at least one chunk."""
    present, _ = parts[0].fields()
    columns = zip(*(part.fields()[1] for part in parts), strict=True)
    return RowStats(**{name: torch.cat(c) for name, c in zip(present, columns, strict=True)})


def merged_over(group: "ProcessGroup | None", local: RowStats) -> RowStats:
    """Statistics over the columns of all ranks; one all-gather of [K, T], none without a group."""
    if group is None:
        return local
    present, values = local.fields()
    local_KT = torch.stack(values)
    gathered = [torch.empty_like(local_KT) for _ in range(group.size())]
    dist.all_gather(gathered, local_KT, group=group)
    whole = dict(zip(present, torch.stack(gathered, dim=1).unbind(), strict=True))
    return merge(RowStats(**whole))


def merge(parts_RT: RowStats) -> RowStats:
    """Statistics over all columns.

    Args:
        parts_RT: those of R disjoint sets of columns; every value is [R, T].

    Returns:
        [T] each.
    """
    max_T, log_sum_T, log_share_RT = _shares(parts_RT.max_logit_T, parts_RT.log_sum_T)
    share_RT = log_share_RT.exp()
    # Each is rounded; what they lack of one would be lost of an entropy of ten nats.
    share_RT = share_RT / share_RT.sum(dim=0)
    is_empty_RT = share_RT == 0
    entropy_RT = (parts_RT.entropy_T - log_share_RT).masked_fill(is_empty_RT, 0)
    sum_p2_T = ref_max_T = ref_log_sum_T = kl_T = None
    if parts_RT.sum_p2_T is not None:
        sum_p2_RT = parts_RT.sum_p2_T.masked_fill(is_empty_RT, 0)
        sum_p2_T = (share_RT.square() * sum_p2_RT).sum(dim=0)
    if parts_RT.kl_T is not None:
        assert parts_RT.ref_max_logit_T is not None, "kl_T comes with the reference's maxima"
        assert parts_RT.ref_log_sum_T is not None, "kl_T comes with the reference's sums"
        ref_max_T, ref_log_sum_T, log_ref_share_RT = _shares(
            parts_RT.ref_max_logit_T, parts_RT.ref_log_sum_T
        )
        kl_RT = (parts_RT.kl_T + log_share_RT - log_ref_share_RT).masked_fill(is_empty_RT, 0)
        kl_T = (share_RT * kl_RT).sum(dim=0)
    return RowStats(
        max_T, log_sum_T, (share_RT * entropy_RT).sum(dim=0), parts_RT.target_logit_T.sum(dim=0),
        sum_p2_T, ref_max_T, ref_log_sum_T, kl_T,
    )  # fmt: skip


def _shares(max_RT: Tensor, log_sum_RT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[T] maximum and log-sum over all parts, and [R, T] log of each part's share."""
    max_T = max_RT.amax(dim=0)
    log_sum_RT = (max_RT - max_T) + log_sum_RT
    log_sum_T = _log_of_sum(log_sum_RT)
    return max_T, log_sum_T, log_sum_RT - log_sum_T


def _log_of_sum(log_RT: Tensor) -> Tensor:
    """[T] log of the sum of exp(log) over parts; keeps its digits where it is next to 0."""
    first_T, *others = log_RT.sort(dim=0, descending=True).values
    if not others:
        return first_T
    # -inf less -inf, where no part has anything, is no number.
    lower_RT = (torch.stack(others) - first_T).nan_to_num_(nan=-torch.inf, neginf=-torch.inf)
    return first_T + lower_RT.exp_().sum(dim=0).log1p_()
