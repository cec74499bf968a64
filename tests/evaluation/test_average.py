import math

import numpy as np
import pytest

from megatron_reason.errors import DataError
from megatron_reason.evaluation.average import average, average_name, average_test
from megatron_reason.evaluation.estimators import Estimate, mean_share
from megatron_reason.evaluation.paired import paired_test
from megatron_reason.evaluation.summary import EvalSummary


def summary(shares, num_samples):
    """Summary of a benchmark with these shares of right samples."""
    found = mean_share(shares, seed=0, num_samples=num_samples * len(shares))
    return EvalSummary({"pass@1": found}, len(shares), num_samples * len(shares), {"ok": 1})


def test_each_benchmark_counts_once_however_large_it_is():
    small, large = summary([1.0, 0.5], 4), summary([0.0, 0.25] * 50, 1)
    found = average({"aime24": small, "math500": large})
    mean = found.metrics["pass@1"]
    assert mean.value == pytest.approx((0.75 + 0.125) / 2)
    assert (found.num_problems, found.num_samples, mean.n) == (102, 108, 108)
    assert found.metrics.keys() == {"pass@1"}
    assert average_name(["aime24", "math500"]) == "mean of aime24, math500"


def test_halves_of_independent_intervals_add_up_as_squares():
    parts = {"a": Estimate(0.5, 0.2, 0.9, 1), "b": Estimate(0.3, 0.3 - 0.4, 0.3 + 0.3, 1)}
    found = average({name: EvalSummary({"pass@1": e}, 1, 1, {}) for name, e in parts.items()})
    mean = found.metrics["pass@1"]
    assert mean.low == pytest.approx(0.4 - math.hypot(0.3, 0.4) / 2)
    assert mean.high == pytest.approx(0.4 + math.hypot(0.4, 0.3) / 2)


def test_the_interval_is_that_of_drawing_the_problems_of_each_benchmark_anew():
    generator = np.random.default_rng(0)
    groups = [generator.beta(1, 2, size) for size in (30, 30, 200, 100)]
    found = average({str(i): summary([*shares], 4) for i, shares in enumerate(groups)})
    draws = [
        np.mean([generator.choice(shares, len(shares)).mean() for shares in groups])
        for _ in range(4000)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    mean = found.metrics["pass@1"]
    assert (mean.low, mean.high) == (pytest.approx(low, abs=0.003), pytest.approx(high, abs=0.003))


def test_the_difference_of_means_is_tested_by_swapping_all_problems():
    pairs = [([0.0, 0.0], [1.0, 1.0]), ([0.5] * 4, [0.75, 0.5, 0.5, 0.25])]
    found = average_test(pairs, seed=0)
    assert found.value == pytest.approx((1.0 + 0.0) / 2)
    assert (found.num_problems, found.num_better, found.num_worse) == (6, 3, 1)
    # Signs of 1/4, 1/4 (the small benchmark's) and 1/32, 1/32: as far from 0 are 6 of 16.
    assert found.p_value == pytest.approx(6 / 16)
    one = average_test(pairs[1:], seed=0)
    same = paired_test(*pairs[1], seed=0)
    assert (one.value, one.low, one.high, one.p_value) == pytest.approx(
        (same.value, same.low, same.high, same.p_value)
    )
    with pytest.raises(DataError, match="cannot be paired"):
        average_test([([0.0], [])], seed=0)
