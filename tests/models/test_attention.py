import torch
from megatron.core.packed_seq_params import PackedSeqParams

from tests.distributed import spawn


def packed_equals_alone(rank: int, world_size: int) -> None:
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron_reason.models.attention import PackedAttention

    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2,
        attention_dropout=0.0,
    )  # fmt: skip
    attention = PackedAttention(config, 1, AttnMaskType.causal)
    torch.manual_seed(0)
    query, key, value = torch.randn(12, 4, 8), torch.randn(12, 2, 8), torch.randn(12, 2, 8)
    starts = torch.tensor([0, 5, 6, 12], dtype=torch.int32)
    packed = PackedSeqParams(qkv_format="thd", cu_seqlens_q=starts, cu_seqlens_kv=starts)
    together = attention(query, key, value, None, packed_seq_params=packed)
    assert together.shape == (12, 32)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        rows = slice(begin, end)
        alone = attention(*(x[rows, None] for x in (query, key, value)), None)
        torch.testing.assert_close(together[rows], alone[:, 0])
    last = torch.softmax(query[11, 3] @ key[6:12, 1].T / 8**0.5, dim=0) @ value[6:12, 1]
    torch.testing.assert_close(together[11, 24:], last)


def test_packed_sequences_see_only_themselves() -> None:
    spawn(packed_equals_alone, 1)
