import pytest

from megatron_reason.schema.metrics import StepMetrics, as_counts


def test_merging_is_addition_and_the_division_comes_last() -> None:
    left, right = StepMetrics(), StepMetrics()
    left.add("loss", 6.0, 3)
    right.add("loss", 1.0, 1)
    right.add("unseen", 0.0, 0)
    merged = StepMetrics.merged([left, right])
    assert merged.means() == {"loss": 7 / 4}
    assert left.pairs == {"loss": (6.0, 3)}


def test_pairs_survive_flattening() -> None:
    metrics = as_counts({"b": 2, "a": 1})
    flat = [value for name in metrics.names() for value in metrics.pairs[name]]
    assert StepMetrics.from_pairs(metrics.names(), flat) == metrics
    assert metrics.means() == pytest.approx({"a": 1.0, "b": 2.0})
