import pytest
import torch
from torch import Tensor

from megatron_reason import platform
from megatron_reason.ops.products import add_product, onednn_product, product

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture(params=[False, pytest.param(True, marks=needs_onednn)], ids=["torch", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either library, whatever this machine prefers."""

    def prefers(values: Tensor) -> bool:
        return request.param and values.dtype == torch.float32

    monkeypatch.setattr(platform, "prefers_onednn", prefers)


def assert_is_product(found: Tensor, left: Tensor, right: Tensor) -> None:
    expected = left.double() @ right.double()
    # Rounding of a sum in float32, relative to the sum of absolute values.
    size = left.double().abs() @ right.double().abs()
    eps = torch.finfo(found.dtype).eps
    assert ((found.double() - expected).abs() <= 8 * eps * size).all()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (1030, 7), (7, 1030), (2049, 1025)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides_of_either_side(rows: int, columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = torch.randn(40, rows + columns).to(dtype)
    left_in_gaps, right_in_gaps = wide[:, :rows].T, wide[:, rows:]
    for left in (left_in_gaps, left_in_gaps.contiguous(), wide.T[:rows]):
        for right in (right_in_gaps, right_in_gaps.T.contiguous().T):
            assert_is_product(product(left, right), left, right)
            out = left.new_full((rows, columns), torch.nan)
            assert product(left, right, out=out) is out
            assert_is_product(out, left, right)


@pytest.mark.usefixtures("library")
def test_sums_of_products_in_the_operands_type_and_a_wider_one() -> None:
    torch.manual_seed(0)
    for dtype, rows in ((torch.float32, 2050), (torch.bfloat16, 4100), (torch.float64, 9)):
        left, right = torch.randn(16, rows).to(dtype).T, torch.randn(16, 6).to(dtype)
        wider = torch.promote_types(dtype, torch.float32)
        total = torch.ones(rows, 6, dtype=wider)
        add_product(total, left, right)
        assert total.dtype == wider
        expected = 1 + left.double() @ right.double()
        tolerance = 32 * torch.finfo(dtype).eps
        torch.testing.assert_close(total.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("library")
def test_nothing_times_something() -> None:
    assert product(torch.empty(0, 4), torch.empty(4, 3)).shape == (0, 3)
    assert torch.equal(product(torch.empty(2, 0), torch.empty(0, 3)), torch.zeros(2, 3))


@needs_onednn
def test_both_libraries_agree_and_repeat_themselves() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(64, 576), torch.randn(576, 3000)
    first, second = onednn_product(left, right), onednn_product(left, right)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, left @ right, atol=1e-4, rtol=1e-5)


def test_only_float32_on_a_cpu_may_go_to_onednn() -> None:
    assert not platform.prefers_onednn(torch.zeros(1, dtype=torch.bfloat16))
    assert not platform.prefers_onednn(torch.zeros(1, dtype=torch.float64))
    assert not platform.prefers_onednn(torch.zeros(1, device="meta"))
