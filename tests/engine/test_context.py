from dataclasses import replace

import torch

from megatron_reason.schema.batch import PackedBatch, TokenStats
from megatron_reason.schema.metrics import StepMetrics
from megatron_reason.schema.topology import Topology
from tests.distributed import spawn
from tests.engine import invariance


def packed(topology: Topology) -> PackedBatch:
    from megatron_reason.engine.packing import pack

    return pack(invariance.samples(), rounding=topology.rounding)


def whole_without_a_group(rank: int, world_size: int) -> None:
    from megatron_reason.engine.context import Share

    batch = packed(Topology())
    share = Share.of(batch, Topology())
    assert share.rows_M is share.position_M is batch.supervised_N
    stats = TokenStats(torch.ones(share.count), torch.zeros(share.count))
    assert share.completed(stats).logprob_T is stats.logprob_T
    metrics = StepMetrics({"loss": (1.0, 2.0)})
    assert share.summed(metrics, ["loss"]) is metrics


def test_without_context_parallelism_a_share_is_the_whole_and_nothing_is_sent() -> None:
    spawn(whole_without_a_group, 1)


def shared_by_two(rank: int, world_size: int) -> None:
    import torch.distributed as dist

    from megatron_reason.engine.context import Share
    from megatron_reason.models.packed import own_places

    topology = replace(Topology(), cp_rank=rank, cp_size=2, cp_group=dist.group.WORLD)
    batch = packed(topology)
    share = Share.of(batch, topology)
    # What a rank finds in its rows is what stands at these positions of the pack.
    held_T = own_places(batch.cu_seqlens, rank, 2)
    assert held_T[share.rows_M].equal(share.position_M)
    counts: list[int | None] = [None, None]
    dist.all_gather_object(counts, len(share.rows_M))
    assert sum(filter(None, counts)) == share.count == len(batch.supervised_N)
    own_M = (share.position_M + 1.0).requires_grad_()
    whole = share.completed(TokenStats(own_M, -own_M, 2 * own_M))
    expected_N = batch.supervised_N + 1.0
    assert whole.logprob_T.equal(expected_N)
    assert whole.entropy_T.equal(-expected_N)
    assert whole.kl_ref_T is not None
    assert whole.kl_ref_T.equal(2 * expected_N)
    # Both ranks compute the same loss; each gets the gradient of its own tokens, once.
    whole.logprob_T.square().sum().backward()
    assert own_M.grad is not None
    assert own_M.grad.equal(2 * own_M.detach())
    mine = StepMetrics({"a": (1.0 + rank, 1.0)} if rank else {})
    assert share.summed(mine, ["a", "b"]).pairs == {"a": (2.0, 1.0), "b": (0.0, 0.0)}


def test_two_ranks_complete_each_others_statistics() -> None:
    spawn(shared_by_two, 2)
