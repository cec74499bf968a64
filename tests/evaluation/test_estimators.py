import math
from itertools import combinations, product

import numpy as np
import pytest

from megatron_reason import pass_at_k
from megatron_reason.errors import DataError
from megatron_reason.evaluation.estimators import (
    avg_at_n,
    bootstrap,
    maj_at_k,
    mean_share,
    over_trainings,
    wilson,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (8, 3, 1, 0.375),
        (8, 3, 2, 0.6428571429),
        (8, 3, 4, 0.9285714286),
        (8, 3, 6, 1.0),
        (128, 1, 16, 0.125),
        (128, 5, 64, 0.9711811024),
        (64, 0, 8, 0.0),
    ],
)
def test_pass_at_k_golden(n: int, c: int, k: int, expected: float):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_equals_enumeration(n: int):
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([i < c for i in range(n)], k))
            share = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)
        assert avg_at_n(n, c) == pytest.approx(c / n, abs=1e-12)


def test_pass_at_k_of_many_samples_is_accurate():
    exact = 1 - math.comb(100_000 - 3, 5_000) / math.comb(100_000, 5_000)
    assert pass_at_k(100_000, 3, 5_000) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int):
    with pytest.raises(DataError, match=f"k = {k}"):
        pass_at_k(n, c, k)


def brute_majority(answers: list[str], correct: list[bool], k: int) -> float:
    wins = []
    for draw in combinations(range(len(answers)), k):
        labels = ["#" if correct[i] else answers[i] for i in draw if correct[i] or answers[i]]
        best = max((labels.count(label) for label in labels), default=0)
        winners = {label for label in labels if labels.count(label) == best}
        wins.append(1 / len(winners) if "#" in winners else 0.0)
    return sum(wins) / len(wins)


@pytest.mark.parametrize("k", range(1, 7))
def test_maj_at_k_equals_enumeration(k: int):
    answers = ["1/2", "0.5", "3", "3", "", "4"]
    correct = [True, True, False, False, False, False]
    assert maj_at_k(answers, correct, k) == pytest.approx(brute_majority(answers, correct, k))


def test_maj_at_k_cases():
    assert maj_at_k(["7", "7", "3"], [True, True, False], 3) == 1.0
    assert maj_at_k(["7", "3"], [True, False], 2) == 0.5
    assert maj_at_k(["", None], [False, False], 2) == 0.0


def test_maj_at_k_by_random_subsets_is_seeded_and_near_the_truth():
    answers = [str(i % 3) for i in range(24)]
    correct = [answer == "0" for answer in answers]
    value = maj_at_k(answers, correct, 12, seed=1)
    assert value == maj_at_k(answers, correct, 12, seed=1)
    assert value != maj_at_k(answers, correct, 12, seed=2)
    assert value == pytest.approx(1 / 3, abs=0.05)


def test_bootstrap_is_seeded_and_a_quotient_of_sums():
    sums, counts = [3.0, 0.0, 8.0], [4, 4, 8]
    estimate = bootstrap(sums, counts, seed=3, num_samples=16)
    assert estimate == bootstrap(sums, counts, seed=3, num_samples=16)
    assert estimate.value == pytest.approx(11 / 16)
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1
    assert estimate.n == 16
    with pytest.raises(DataError, match="nothing"):
        bootstrap([], [], seed=0, num_samples=0)
    with pytest.raises(DataError, match="nothing"):
        bootstrap([0.0], [0.0], seed=0, num_samples=0)


def test_bootstrap_interval_equals_enumeration_of_all_draws():
    """Four problems have 256 equally likely redraws: the quantiles are known."""
    values = [0.0, 0.25, 0.5, 1.0]
    means = [math.fsum(draw) / 4 for draw in product(values, repeat=4)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    found = bootstrap(values, [1, 1, 1, 1], seed=0, num_samples=4, num_draws=20_000)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_bootstrap_covers_the_truth_although_samples_are_clustered():
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        rates = generator.beta(1, 1, 40)
        correct = generator.binomial(16, rates)
        found = bootstrap(correct, [16] * 40, seed=trial, num_samples=640, num_draws=500)
        covered += found.low <= 0.5 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_equal_outcomes_do_not_give_an_interval_of_width_zero():
    """0 of 20 problems solved: the interval is Wilson's over problems, not [0, 0]."""
    none = mean_share([0.0] * 20, seed=0, num_samples=80)
    assert (none.value, none.low, none.n) == (0.0, pytest.approx(0.0, abs=1e-12), 80)
    assert none.high == pytest.approx(0.161125, abs=1e-6)
    every = mean_share([1.0] * 20, seed=0, num_samples=80)
    assert (every.low, every.high) == (pytest.approx(1 - 0.161125, abs=1e-6), 1.0)
    mixed = mean_share([0.0, 0.5], seed=0, num_samples=8)
    assert mixed == bootstrap([0.0, 0.5], [1, 1], seed=0, num_samples=8)
    for shares in ([0.25], [0.25] * 4):
        found = mean_share(shares, seed=0, num_samples=4 * len(shares))
        assert (found.value, found.n) == (0.25, 4 * len(shares))
        assert 0 < found.low < 0.25 < found.high < 1
    assert (found.low, found.high) == (wilson(1, 4).low, wilson(1, 4).high)
    with pytest.raises(DataError, match="nothing to average"):
        mean_share([], seed=0, num_samples=0)


def test_one_outcome_a_problem_has_wilsons_interval():
    found = mean_share([1.0] * 5 + [0.0] * 5, seed=0, num_samples=10)
    assert found == wilson(5, 10)


def test_intervals_of_few_problems_cover_the_truth():
    """One sample each of eight problems, 30 % of them right: no interval of width 0 among them."""
    generator = np.random.default_rng(0)
    draws = generator.binomial(1, 0.3, (2000, 8)).astype(float)
    found = [mean_share(draw.tolist(), seed=0, num_samples=8) for draw in draws]
    covered = sum(one.low <= 0.3 <= one.high for one in found)
    assert 0.93 <= covered / 2000 <= 0.99


def test_wilson_reference_values():
    half = wilson(5, 10)
    assert (half.low, half.high) == (
        pytest.approx(0.236593, abs=1e-6),
        pytest.approx(0.763407, abs=1e-6),
    )
    none = wilson(0, 20)
    assert (none.value, none.low) == (0.0, pytest.approx(0.0, abs=1e-12))
    assert none.high == pytest.approx(0.161125, abs=1e-6)
    with pytest.raises(DataError, match="impossible"):
        wilson(0, 0)


def test_interval_over_trainings_is_students():
    # 3 values with mean 2 and deviation 1: 4.303 / sqrt(3) to each side.
    found = over_trainings([1.0, 2.0, 3.0], num_samples=7)
    assert (found.value, found.n) == (2.0, 7)
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3))
    assert 2 - found.low == pytest.approx(4.303 / math.sqrt(3))
    # t(20) = 2.086 for 21 values.
    values = [float(i) for i in range(21)]
    half = over_trainings(values, num_samples=21).high - 10
    assert half == pytest.approx(2.086 * math.sqrt(38.5 / 21), rel=2e-3)
    with pytest.raises(DataError, match="no spread"):
        over_trainings([1.0], num_samples=1)
