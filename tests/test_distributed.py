"""The helper that starts ranks: it joins them, and it reports the rank that is to blame."""

import pytest
import torch
import torch.distributed as dist

from tests.distributed import spawn


def sums(rank: int, world_size: int, offset: int) -> None:
    total = torch.tensor([rank + offset])
    dist.all_reduce(total)
    assert total.item() == sum(range(world_size)) + world_size * offset


def fails_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ValueError("rank 1 is to blame")
    dist.barrier()


def test_ranks_are_joined() -> None:
    spawn(sums, 2, 5, megatron=False)


def test_the_rank_that_failed_first_is_reported() -> None:
    with pytest.raises(AssertionError, match=r"rank1 failed first:\n[^$]*rank 1 is to blame"):
        spawn(fails_on_one, 2, megatron=False)
