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
    "A100": 312e12, "A800": 312e12, "H100 80GB HBM3": 989e12, "H100 PCIe": 756e12,
    "H100 NVL": 835e12, "H200": 989e12, "H800": 989e12,
}  # fmt: skip
"""Dense bfloat16 operations per second, by a part of the name that the driver gives."""


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations per second of a device that its driver calls so; None if unknown.

    Another H100 than those listed runs at another clock, and is unknown.
    """
    found = [peak for part, peak in _PEAKS.items() if part in device]
    return found[0] if found else None
