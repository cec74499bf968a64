import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from megatron_reason.models.blockwise import blockwise_attention


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
def test_it_is_what_sdpa_computes(length: int, heads: int, groups: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(number: int) -> torch.Tensor:
        return torch.randn(number, length, 16, generator=generator, dtype=torch.float64)

    query, key, value = draw(heads), draw(groups), draw(groups)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=True, scale=0.3
    )[0]
    torch.testing.assert_close(blockwise_attention(query, key, value, 0.3), expected)


def test_bfloat16_is_rounded_no_more_than_by_sdpa() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(6, 150, 64, generator=generator).bfloat16()
    key, value = torch.randn(2, 2, 150, 64, generator=generator).bfloat16().unbind()

    def error(found: torch.Tensor) -> float:
        exact = scaled_dot_product_attention(
            query[None].double(), key[None].double(), value[None].double(),
            is_causal=True, enable_gqa=True,
        )[0]  # fmt: skip
        return float((found.double() - exact).abs().mean())

    ours = blockwise_attention(query, key, value, 64**-0.5)
    theirs = scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=True
    )[0]
    assert ours.dtype == torch.bfloat16
    assert error(ours) <= 1.05 * error(theirs)
