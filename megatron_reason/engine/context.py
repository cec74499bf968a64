"""What a context-parallel rank computes of a micro-batch, and what all of them make of it together.

Every rank of a context-parallel group is handed the whole micro-batch and holds the hidden states
of its own tokens. The LM head sees these alone; the statistics, a few numbers per token, are then
exchanged, so that whoever asks sees every token, and no method knows. N supervised tokens of the
micro-batch, M of them on this rank, D hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_reason.models.packed import own_places
from megatron_reason.schema.batch import PackedBatch, TokenStats
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.topology import Topology


@dataclass(frozen=True)
class Share:
    """The supervised tokens of a micro-batch that a rank computes; all of them without a group."""

    rows_M: Tensor
    """int64: their rows among the hidden states that this rank holds."""
    position_M: Tensor
    """int64: their positions in the pack."""
    index_M: Tensor | None = None
    """int64: which of all N they are; None where they are all."""
    count: int = 0
    """N."""
    group: ProcessGroup | None = None
    """Ranks that compute the others."""

    @classmethod
    def of(cls, batch: PackedBatch, topology: Topology) -> "Share":
        """This rank's share of `batch`."""
        position_N = batch.supervised_N
        if topology.cp_group is None:
            return cls(position_N, position_N, count=len(position_N))
        place_T = own_places(batch.cu_seqlens, topology.cp_rank, topology.cp_size)
        row_T = torch.full((batch.num_tokens,), -1, device=place_T.device)
        row_T[place_T] = torch.arange(len(place_T), device=place_T.device)
        index_M = (row_T[position_N] >= 0).nonzero()[:, 0]
        position_M = position_N[index_M]
        return cls(row_T[position_M], position_M, index_M, len(position_N), topology.cp_group)

    def completed(self, stats: TokenStats) -> TokenStats:
        """Statistics of all N tokens from those of each rank's own.

        Every rank computes the same loss of them all; its gradient flows to its own tokens alone.
        """
        own = [stats.logprob_T, stats.entropy_T]
        if stats.kl_ref_T is not None:
            own.append(stats.kl_ref_T)
        if self.index_M is None:
            return TokenStats(*own)
        whole = _Completed.apply(torch.stack(own), self.index_M, self.count, self.group)
        return TokenStats(*whole)

    def summed(self, metrics: StepMetrics, names: Sequence[str]) -> StepMetrics:
        """Metrics of all ranks from those of each rank's own tokens; only those in `names`."""
        if self.group is None:
            return metrics
        flat = [value for name in names for value in metrics.pairs.get(name, (0.0, 0.0))]
        total = torch.tensor(flat, dtype=torch.float64, device=self.rows_M.device)
        dist.all_reduce(total, group=self.group)
        return StepMetrics.from_pairs(names, total.tolist())


class _Completed(torch.autograd.Function):
    """[k, M] of every rank -> [k, N] on every rank."""

    @staticmethod
    def forward(  # noqa: ANN205 - torch's own contract
        ctx: Any,  # noqa: ANN401 - torch's own contract
        own_kM: Tensor, index_M: Tensor, count: int, group: ProcessGroup,
    ):  # fmt: skip
        ctx.save_for_backward(index_M)
        whole_kN = own_kM.new_zeros(len(own_kM), count).index_copy_(1, index_M, own_kM)
        dist.all_reduce(whole_kN, group=group)
        return whole_kN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor):  # noqa: ANN205, ANN401
        (index_M,) = ctx.saved_tensors
        return grads[0][:, index_M], None, None, None
