"""Matrix products with the LM head, by the library that is fastest at them on this machine.

M rows, K inner width, N columns. A GPU and most CPUs get torch's own product. Where the platform
prefers oneDNN, its kernels are called on blocks of the longer side, which are written from cache
into memory that exists: fresh pages for a whole product cost a quarter of its time. Not here: which
machine prefers what (`platform.py`), chunks of tokens and gradients (`head.py`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from megatron_reason import platform

_BLOCK = 1024
"""Rows or columns that oneDNN computes at once: a few MiB, which a core's caches hold."""
_ROWS_PER_SUM = 4096
"""Rows whose products are added to wider sums at once, for the same reason."""


def product(left_MK: Tensor, right_KN: Tensor, out: Tensor | None = None) -> Tensor:
    """Left @ right in the operands' type.

    Args:
        left_MK: [M, K], of any strides.
        right_KN: [K, N], of any strides.
        out: [M, N] of the same type to write to; new memory if None.
    """
    if platform.prefers_onednn(left_MK) and left_MK.numel() and right_KN.numel():
        return onednn_product(left_MK, right_KN, out)
    return torch.mm(left_MK, right_KN, out=out)


def add_product(total_MN: Tensor, left_MK: Tensor, right_KN: Tensor) -> None:
    """Add left @ right to a total of the same type or a wider one."""
    is_wider = total_MN.dtype != left_MK.dtype
    if not is_wider and not platform.prefers_onednn(left_MK):
        total_MN.addmm_(left_MK, right_KN)
        return
    step = _ROWS_PER_SUM if is_wider else _BLOCK
    for begin in range(0, len(total_MN), step):
        block = slice(begin, begin + step)
        total_MN[block] += product(left_MK[block], right_KN)


def onednn_product(left_MK: Tensor, right_KN: Tensor, out: Tensor | None = None) -> Tensor:
    """`product` by oneDNN whatever the platform prefers; float32 on a CPU, nothing empty."""
    shape = (len(left_MK), right_KN.shape[1])
    if out is None and max(shape) <= _BLOCK:
        return _multiplied(left_MK, right_KN)
    out = left_MK.new_empty(shape) if out is None else out
    for rows, columns in _blocks(*shape):
        out[rows, columns] = _multiplied(left_MK[rows], right_KN[:, columns])
    return out


def _multiplied(left_MK: Tensor, right_KN: Tensor) -> Tensor:
    """What torch's compiler calls for a linear layer; torch.mm has no way to ask for oneDNN."""
    right_NK = _dense(right_KN).T
    return torch.ops.mkldnn._linear_pointwise(_dense(left_MK), right_NK, None, "none", [], "")


def _dense(matrix: Tensor) -> Tensor:
    """Without gaps, in the order it has: oneDNN crawls over a slice of columns."""
    return matrix.T.contiguous().T if matrix.stride(0) == 1 else matrix.contiguous()


def _blocks(num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of the longer side, whole in the other."""
    by_rows = num_rows > num_columns
    for begin in range(0, max(num_rows, num_columns), _BLOCK):
        block = slice(begin, begin + _BLOCK)
        yield (block, slice(None)) if by_rows else (slice(None), block)
