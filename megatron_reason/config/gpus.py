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
_A100, _H100, _PCIE, _NVL = 312e12, 989e12, 756e12, 835e12
_PEAKS = {
    "A100": _A100, "A800": _A100, "H100 80GB HBM3": _H100, "H100 PCIe": _PCIE, "H100 NVL": _NVL,
    "H200": _H100, "H200 NVL": _NVL, "H800": _H100, "H800 PCIe": _PCIE,
}  # fmt: skip
"""Dense bfloat16 operations per second, by a part of the name that the driver gives. The names of
`GPUS` are ours, and leave out what a plan need not tell apart."""


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations per second of a device that its driver calls so; None if unknown.

    A part of a GPU (MIG) is unknown, and an H100 that is not listed, which has another clock.
    """
    found = [part for part in _PEAKS if part in device and "MIG" not in device]
    return _PEAKS[max(found, key=len)] if found else None
