"""Metrics as named (sum, count) pairs: merging is addition, and the division comes last.

Not here: writing them anywhere (`tracking`) or reducing them over ranks (`engine/update.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MEASURED = "eval/"
"""How names of metrics begin that held-out problems gave of the weights as they are at a step."""


@dataclass
class StepMetrics:
    """Sums and counts of one step, by metric name."""

    pairs: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])

    def add(self, name: str, total: float, count: float) -> None:
        """Add `total` over `count` items to metric `name`."""
        old_total, old_count = self.pairs.get(name, (0.0, 0.0))
        self.pairs[name] = (old_total + total, old_count + count)

    def merge(self, other: "StepMetrics") -> None:
        """Add every pair of `other`."""
        for name, (total, count) in other.pairs.items():
            self.add(name, total, count)

    def means(self) -> dict[str, float]:
        """Quotients of all metrics with a non-zero count."""
        return {name: total / count for name, (total, count) in self.pairs.items() if count}

    def names(self) -> list[str]:
        """Metric names, sorted: the order in which ranks agree to reduce them."""
        return sorted(self.pairs)

    @classmethod
    def from_pairs(cls, names: Iterable[str], flat: Iterable[float]) -> "StepMetrics":
        """Inverse of flattening `names` to s0, c0, s1, c1, ..."""
        values = list(flat)
        return cls({name: (values[2 * i], values[2 * i + 1]) for i, name in enumerate(names)})

    @classmethod
    def merged(cls, parts: Iterable["StepMetrics"]) -> "StepMetrics":
        """Sum of `parts`."""
        whole = cls()
        for part in parts:
            whole.merge(part)
        return whole


def as_counts(values: Mapping[str, float]) -> StepMetrics:
    """Metrics that are plain totals (count 1 each)."""
    return StepMetrics({name: (float(value), 1.0) for name, value in values.items()})
