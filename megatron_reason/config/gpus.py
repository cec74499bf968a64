"""What data sheets say of GPUs. No settings, and no torch, so that plans need none."""

from dataclasses import dataclass
from typing import Literal

GpuName = Literal["A100-40", "A100-80", "H100-80", "H200-141"]
GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """What a data sheet says of a GPU."""

    memory: float
    """Bytes."""
    flops: float
    """Dense bfloat16 operations per second."""


GPUS: dict[GpuName, Gpu] = {
    "A100-40": Gpu(40 * GIB, 312e12),
    "A100-80": Gpu(80 * GIB, 312e12),
    "H100-80": Gpu(80 * GIB, 989e12),
    "H200-141": Gpu(141e9, 989e12),
}
_PEAKS = {
    "A100": GPUS["A100-80"].flops, "H100 80GB HBM3": GPUS["H100-80"].flops, "H100 PCIe": 756e12,
    "H200": GPUS["H200-141"].flops,
}  # fmt: skip
"""Dense bfloat16 operations per second, by a part of the name that the driver gives."""
_OTHER_KINDS = ("MIG", "NVL")
"""Parts of a GPU, and cards with another clock, have the name of the whole in theirs."""


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations per second of what its driver calls `device`; None if unknown."""
    if any(kind in device for kind in _OTHER_KINDS):
        return None
    return next((peak for part, peak in _PEAKS.items() if part in device), None)
