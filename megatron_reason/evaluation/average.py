"""The mean over benchmarks, each counted once: the last column of the papers' tables.

Of a model's pass@1, which is avg@k, and of the difference between two models. Each benchmark's
interval comes from drawing its own problems anew; benchmarks have no problem in common, so the
squares of these intervals' halves add up. Not here: one benchmark (`summary.py`, `paired.py`).

Source of the interval: Zou and Donner 2008 (MOVER), Statistics in Medicine 27.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.evaluation.paired import PairedTest, paired_test, swap_test
from megatron_reason.evaluation.summary import EvalSummary

METRIC = "pass@1"


def average_name(benchmarks: Iterable[str]) -> str:
    """What the mean over these benchmarks is called."""
    return f"mean of {', '.join(benchmarks)}"


def average(summaries: Mapping[str, EvalSummary]) -> EvalSummary:
    """Unweighted mean of pass@1 over several benchmarks, as the summary of a model.

    Args:
        summaries: of each benchmark, by name; at least one.
    """
    found = [summary.metrics[METRIC] for summary in summaries.values()]
    value, low, high = _mean([(one.value, one.low, one.high) for one in found])
    return EvalSummary(
        metrics={METRIC: Estimate(value, low, high, sum(one.n for one in found))},
        num_problems=sum(summary.num_problems for summary in summaries.values()),
        num_samples=sum(summary.num_samples for summary in summaries.values()),
        statuses={},
    )


def average_test(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], *, seed: int
) -> PairedTest:
    """Unweighted mean over benchmarks of the difference b - a.

    The probability is that of a mean this far from 0 if the models were swapped problem by problem;
    a problem of a small benchmark weighs more.

    Args:
        pairs: of each benchmark, one number per problem of a and of b, in the same order.
        seed: of the random draws.

    Raises:
        DataError: see `paired_test`.
    """
    tests = [paired_test(a, b, seed=seed) for a, b in pairs]
    value, low, high = _mean([(test.value, test.low, test.high) for test in tests])
    weighted = [
        (theirs - ours) / len(a) / len(pairs)
        for a, b in pairs
        for ours, theirs in zip(a, b, strict=True)
    ]
    p_value, name = swap_test(weighted, seed)
    return PairedTest(
        value=value,
        low=low,
        high=high,
        p_value=p_value,
        test=name,
        num_problems=sum(test.num_problems for test in tests),
        num_better=sum(test.num_better for test in tests),
        num_worse=sum(test.num_worse for test in tests),
    )


def _mean(parts: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of independent (value, low, high), with an interval of the same confidence."""
    value = math.fsum(value for value, _, _ in parts) / len(parts)
    below = math.hypot(*(value - low for value, low, _ in parts)) / len(parts)
    above = math.hypot(*(high - value for value, _, high in parts)) / len(parts)
    return value, value - below, value + above
