from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import spawn

STARTS = torch.tensor([0, 4, 12], dtype=torch.int32)


def attention(**options: Any) -> Any:
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_reason.models.attention import PackedAttention

    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2,
        attention_dropout=0.0,
    )  # fmt: skip
    return PackedAttention(config, 1, AttnMaskType.causal, **options)


def drawn(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries of four heads, keys and values of two groups, for twelve tokens."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 4, 8), (12, 2, 8), (12, 2, 8)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    return [value.to(device, dtype).requires_grad_() for value in values]


def packed_equals_alone(rank: int, world_size: int) -> None:
    from megatron_reason.models.packed import pack_of

    attend = attention()
    query, key, value = drawn()
    pack = pack_of(torch.tensor([0, 5, 6, 12], dtype=torch.int32), 6)
    together = attend(query, key, value, None, packed_seq_params=pack)
    assert together.shape == (12, 32)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        rows = slice(begin, end)
        alone = attend(*(x[rows, None] for x in (query, key, value)), None)
        torch.testing.assert_close(together[rows], alone[:, 0])
    last = torch.softmax(query[11, 3] @ key[6:12, 1].T / 8**0.5, dim=0) @ value[6:12, 1]
    torch.testing.assert_close(together[11, 24:], last)


def test_packed_sequences_see_only_themselves() -> None:
    spawn(packed_equals_alone, 1)


def shared_equals_whole(rank: int, world_size: int) -> None:
    import torch.distributed as dist
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron_reason.models.packed import own_places, pack_of

    whole = drawn()
    expected = attention()(*whole, None, packed_seq_params=pack_of(STARTS, 8))
    expected.square().sum().backward()
    places = own_places(STARTS, rank, world_size)
    mine = [value.detach()[places].requires_grad_() for value in whole]
    pack = pack_of(STARTS, 8, cp_rank=rank, cp_size=world_size)
    attend = attention(pg_collection=ProcessGroupCollection(cp=dist.group.WORLD))
    found = attend(*mine, None, packed_seq_params=pack)
    torch.testing.assert_close(found, expected[places])
    found.square().sum().backward()
    for own, all_of_it in zip(mine, whole, strict=True):
        assert all_of_it.grad is not None
        torch.testing.assert_close(own.grad, all_of_it.grad[places])


def test_ranks_that_share_sequences_compute_what_one_would() -> None:
    spawn(shared_equals_whole, 2)


@pytest.mark.parametrize("cp_size", [1, 2])
@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_one_kernel_attends_to_all_parts_at_once(device: str, cp_size: int) -> None:
    """On meta tensors shapes and arguments; on a GPU numbers and gradients as well."""
    from megatron_reason.models.packed import own_places, pack_of

    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    query, key, value = drawn(device, torch.bfloat16)
    pack = pack_of(STARTS.to(device) if device == "cuda" else STARTS, 8, cp_size=cp_size)
    rows = pack.key_rows
    if rows is not None:
        held = torch.cat([own_places(STARTS, rank, cp_size) for rank in range(cp_size)])
        query = query.detach()[: len(held) // cp_size].requires_grad_()
        key, value = (x.detach()[rows.to(device)].requires_grad_() for x in (key, value))
    attend = attention()
    outcomes: list[list[Tensor]] = []
    for way in (attend._attend_at_once, attend._attend_one_by_one):
        context = way(query, key, value, pack)
        assert context.shape == query.shape
        outcomes.append([context, *torch.autograd.grad(context.sum(), (query, key, value))])
    for at_once, one_by_one in zip(*outcomes, strict=True):
        assert at_once.shape == one_by_one.shape
        if device == "cuda":
            torch.testing.assert_close(at_once, one_by_one, atol=2e-2, rtol=2e-2)
