"""Paired tests: is one model better than another on the same problems?

Differences are taken problem by problem, so that what both find hard cancels. Two answers to the
same question: an interval for the difference, from drawing whole problems anew; and the probability
of a difference this large if the models were exchangeable, from swapping them problem by problem.
With one sample a problem the latter is McNemar's exact test. Pure functions. Not here: which
evaluations may be compared (`compare.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_reason.errors import DataError

_NUM_DRAWS = 10_000
_MOST_ENUMERATED = 16


@dataclass(frozen=True)
class PairedTest:
    """A difference b - a over problems, and how sure it is."""

    value: float
    """Mean difference."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    p_value: float
    """Two-sided probability of a difference at least this large if a and b were exchangeable."""
    test: str
    """Name of the test behind `p_value`."""
    num_problems: int
    num_better: int
    """Problems on which b is better."""
    num_worse: int
    """Problems on which a is better."""

    @property
    def is_significant(self) -> bool:
        """Whether the probability is below 5 %."""
        return self.p_value < 0.05


def paired_test(a: Sequence[float], b: Sequence[float], *, seed: int) -> PairedTest:
    """Compare two models by one number per problem each, in the same order.

    Args:
        a: of the first model, for example the share of its samples that is right.
        b: of the second.
        seed: of the random draws.

    Raises:
        DataError: no problems, or unequally many.
    """
    if not a or len(a) != len(b):
        raise DataError(
            "paired test",
            f"{len(a)} and {len(b)} problems cannot be paired.",
            "Give one number per problem for both, in the same order.",
        )
    difference_P = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    low, high = _interval(difference_P, seed)
    num_better, num_worse = int((difference_P > 0).sum()), int((difference_P < 0).sum())
    if set(a) | set(b) <= {0.0, 1.0}:
        p_value, test = mcnemar(num_better, num_worse), "McNemar, exact"
    else:
        p_value, test = swap_test(difference_P.tolist(), seed)
    return PairedTest(
        value=float(difference_P.mean()),
        low=low,
        high=high,
        p_value=p_value,
        test=test,
        num_problems=len(difference_P),
        num_better=num_better,
        num_worse=num_worse,
    )


def mcnemar(num_better: int, num_worse: int) -> float:
    """Two-sided exact probability that, of the problems decided differently, so few are one way.

    Twice the tail of a binomial distribution with p = 1/2, at most 1.

    Source: McNemar 1947, in its exact binomial form.
    """
    total = num_better + num_worse
    tail = sum(math.comb(total, i) for i in range(min(num_better, num_worse) + 1))
    return min(1.0, 2 * tail / 2**total)


def _interval(difference_P: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean over problems drawn with replacement."""
    generator = np.random.default_rng(seed)
    num = len(difference_P)
    means = [
        difference_P[generator.integers(0, num, (500, num))].mean(axis=1)
        for _ in range(_NUM_DRAWS // 500)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def swap_test(differences: Sequence[float], seed: int) -> tuple[float, str]:
    """Probability that random signs of the differences give a sum at least as far from 0.

    Returns:
        The probability, and the name of the test.
    """
    difference_P = np.asarray(differences, dtype=float)
    nonzero = difference_P[difference_P != 0]
    observed = abs(float(nonzero.sum()))
    # Sums of the same numbers in another order differ in the last bits.
    bound = observed - 1e-9 * max(observed, 1.0)
    if len(nonzero) <= _MOST_ENUMERATED:
        codes = np.arange(1 << len(nonzero))
        sign_DP = 1.0 - 2.0 * ((codes[:, None] >> np.arange(len(nonzero))) & 1)
        extreme = np.abs(sign_DP @ nonzero) >= bound
        return float(extreme.mean()), "all swaps of the models, exact"
    generator = np.random.default_rng(seed + 1)
    num_extreme = 0
    for _ in range(_NUM_DRAWS // 500):
        sign_DP = generator.choice([-1.0, 1.0], (500, len(nonzero)))
        num_extreme += int((np.abs(sign_DP @ nonzero) >= bound).sum())
    return (num_extreme + 1) / (_NUM_DRAWS + 1), f"{_NUM_DRAWS} random swaps of the models"
