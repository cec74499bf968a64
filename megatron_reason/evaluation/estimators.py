"""Numbers with intervals from graded samples: pure functions of counts.

n samples of a problem, c of them correct. A mean over samples or problems is always a quotient of
sums; its interval comes from drawing whole problems anew, because samples of one problem are not
independent. That of several trainings comes from how these differ. Not here: tables (`run.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from megatron_reason.errors import DataError

_NUM_DRAWS = 2000
_NUM_SUBSETS = 2000
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Quantiles of Student's t at 0.975 for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    """Samples behind it."""


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Unbiased probability that at least one of `k` samples is correct.

    1 - C(n - c, k) / C(n, k), as the product over i in n-c+1..n of (1 - k / i), which neither
    overflows nor cancels.

    Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    Args:
        num_samples: n, samples drawn.
        num_correct: c, those that are correct.
        k: size of the draw without replacement, at most n.

    Raises:
        DataError: counts that no draw can have.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise DataError(
            "pass_at_k",
            f"{num_correct} of {num_samples} samples correct, k = {k}, is impossible.",
            "Give 0 <= num_correct <= num_samples and 1 <= k <= num_samples.",
        )
    if num_samples - num_correct < k:
        return 1.0
    first = num_samples - num_correct + 1
    return 1.0 - math.prod(1.0 - k / i for i in range(first, num_samples + 1))


def avg_at_n(num_samples: int, num_correct: int) -> float:
    """Mean accuracy of n samples, which is the unbiased pass@1."""
    return pass_at_k(num_samples, num_correct, 1)


def maj_at_k(
    answers: Sequence[str | None], is_correct: Sequence[bool], k: int, *, seed: int = 0
) -> float:
    """Probability that the most frequent answer among `k` of the samples is correct.

    All correct answers count as one, however they are written; samples without an answer (None or
    empty) do not vote; a tie is broken by lot. The mean over all subsets of size k if there are at
    most 2000, else over 2000 random ones.

    Args:
        answers: extracted answer of each sample.
        is_correct: whether it was judged correct.
        k: votes, at most the number of samples.
        seed: of the random subsets.
    """
    votes = [
        "correct" if correct else f"wrong {answer}" if answer else ""
        for answer, correct in zip(answers, is_correct, strict=True)
    ]
    candidates = [vote for vote in dict.fromkeys(votes) if vote]
    if "correct" not in candidates:
        return 0.0
    # D draws, N samples, C candidates.
    is_for_NC = np.array([[vote == candidate for candidate in candidates] for vote in votes])
    count_DC = _subsets(len(votes), k, seed) @ is_for_NC.astype(np.float32)
    most_D = count_DC.max(axis=1)
    num_winners_D = (count_DC == most_D[:, None]).sum(axis=1)
    wins_D = (count_DC[:, candidates.index("correct")] == most_D) & (most_D > 0)
    return float((wins_D / num_winners_D).mean())


@lru_cache(maxsize=16)
def _subsets(num_samples: int, k: int, seed: int) -> NDArray[np.float32]:
    """[D, N]: 1 where a sample is in a subset of size `k`; all subsets, or random ones."""
    if math.comb(num_samples, k) <= _NUM_SUBSETS:
        subset_DK = np.array(list(combinations(range(num_samples), k)))
    else:
        order_DN = np.random.default_rng(seed).random((_NUM_SUBSETS, num_samples))
        subset_DK = np.argpartition(order_DN, k - 1, axis=1)[:, :k]
    is_in_DN = np.zeros((len(subset_DK), num_samples), dtype=np.float32)
    np.put_along_axis(is_in_DN, subset_DK, 1.0, axis=1)
    return is_in_DN


def bootstrap(
    sums: Sequence[float],
    counts: Sequence[float],
    *,
    seed: int,
    num_samples: int,
    num_draws: int = _NUM_DRAWS,
) -> Estimate:
    """Quotient of two totals over problems, with a percentile interval.

    Args:
        sums: per problem, the sum of the quantity.
        counts: per problem, how many items the sum is over.
        seed: of the draws.
        num_samples: samples behind the value, for the record.
        num_draws: how often the problems are drawn anew, with replacement.

    Raises:
        DataError: nothing to average.
    """
    sum_P, count_P = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    if not count_P.sum() > 0:
        raise DataError("bootstrap", "there is nothing to average.", "Evaluate a problem first.")
    times_DP = _redraws(len(sum_P), num_draws, seed)
    total, items = times_DP @ sum_P, times_DP @ count_P
    means = total[items > 0] / items[items > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(sum_P.sum() / count_P.sum()), float(low), float(high), num_samples)


@lru_cache(maxsize=1)
def _redraws(num_problems: int, num_draws: int, seed: int) -> NDArray[np.float64]:
    """[D, P]: how often each problem is in each draw with replacement; shared by all metrics."""
    generator = np.random.default_rng(seed)
    drawn_DP = generator.integers(0, num_problems, (num_draws, num_problems))
    place_DP = drawn_DP + num_problems * np.arange(num_draws)[:, None]
    counts = np.bincount(place_DP.ravel(), minlength=num_draws * num_problems)
    return counts.reshape(num_draws, num_problems).astype(np.float64)


def wilson(num_correct: int, num_samples: int, level: float = 0.95) -> Estimate:
    """Share of successes in independent trials with Wilson's score interval.

    For one sample per problem; with several, use `bootstrap`, or the interval is too narrow.

    Raises:
        DataError: no trials, or more successes than trials.
    """
    if not 0 <= num_correct <= num_samples or num_samples == 0:
        raise DataError(
            "wilson",
            f"{num_correct} successes in {num_samples} trials are impossible.",
            "Give 0 <= num_correct <= num_samples, with at least one trial.",
        )
    return _score_interval(num_correct / num_samples, num_samples, level)


def _score_interval(share: float, num_samples: int, level: float = 0.95) -> Estimate:
    """Wilson's interval around a share of so many trials."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    scale = 1 + z * z / num_samples
    centre = (share + z * z / (2 * num_samples)) / scale
    variance = share * (1 - share) / num_samples + z * z / (4 * num_samples**2)
    half = z * math.sqrt(variance) / scale
    return Estimate(share, max(centre - half, 0.0), min(centre + half, 1.0), num_samples)


def mean_share(shares: Sequence[float], *, seed: int, num_samples: int) -> Estimate:
    """Mean over problems of shares in [0, 1], with a 95 % interval.

    The bootstrap's interval, but Wilson's with problems as trials where every share is 0 or 1, and
    where all are equal or there is but one. Drawing equal values anew shows no spread, and an
    interval of width 0 would claim certainty; as shares in [0, 1] vary at most as much as outcomes
    0 and 1 of the same mean, Wilson's is then wide enough.

    Args:
        shares: one per problem.
        seed: of the draws.
        num_samples: samples behind the shares, for the record.

    Raises:
        DataError: nothing to average.
    """
    different = set(shares)
    if different <= {0.0, 1.0} or len(different) == 1:
        if not shares:
            raise DataError("mean", "there is nothing to average.", "Evaluate a problem first.")
        bounds = _score_interval(math.fsum(shares) / len(shares), len(shares))
        return Estimate(bounds.value, bounds.low, bounds.high, num_samples)
    return bootstrap(shares, [1.0] * len(shares), seed=seed, num_samples=num_samples)


def over_trainings(values: Sequence[float], *, num_samples: int) -> Estimate:
    """Mean of one number of several trainings that differ in their seed, with a 95 % t interval.

    The interval is about the mean of further such trainings, measured on the same problems; it says
    nothing of other problems.

    Args:
        values: of each training.
        num_samples: samples behind all of them, for the record.

    Raises:
        DataError: fewer than two values, which show no spread.
    """
    count = len(values)
    if count < 2:
        raise DataError(
            "interval over seeds",
            f"{count} trainings show no spread.",
            "Train with at least two seeds: run.seeds: [1, 2, 3].",
        )
    if len(set(values)) == 1:
        # Rounding would make up a spread.
        return Estimate(values[0], values[0], values[0], num_samples)
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = _t_975(count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, num_samples)


def _t_975(freedom: int) -> float:
    """Student's t at 0.975; above the table two terms of its expansion, within 0.2 %."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
