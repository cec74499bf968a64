import math
from itertools import product

import numpy as np
import pytest

from megatron_reason.errors import DataError
from megatron_reason.evaluation.paired import mcnemar, paired_test


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 / 64)
    assert mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar(1, 8) == mcnemar(8, 1)


def test_single_samples_give_mcnemar_and_shares_all_swaps():
    a, b = [0, 0, 1, 1, 0, 0], [1, 1, 1, 0, 1, 1]
    found = paired_test(a, b, seed=0)
    assert found.test == "McNemar, exact"
    assert (found.num_better, found.num_worse, found.p_value) == (4, 1, mcnemar(4, 1))
    assert found.value == pytest.approx(0.5)
    assert found.low <= found.value <= found.high


def test_swaps_equal_enumeration():
    a = [0.25, 0.5, 0.0, 1.0, 0.75, 0.5]
    b = [0.5, 0.5, 0.25, 0.75, 1.0, 0.75]
    difference = [y - x for x, y in zip(a, b, strict=True)]
    observed = abs(math.fsum(difference))
    sums = [
        abs(math.fsum(s * d for s, d in zip(signs, difference, strict=True)))
        for signs in product((1, -1), repeat=6)
    ]
    expected = sum(total >= observed - 1e-12 for total in sums) / len(sums)
    found = paired_test(a, b, seed=0)
    assert found.p_value == pytest.approx(expected)
    assert found.test == "all swaps of the models, exact"
    assert paired_test(b, a, seed=0).p_value == pytest.approx(expected)


def test_many_problems_agree_with_enumeration_within_noise():
    rng = np.random.default_rng(0)
    a = rng.binomial(8, 0.5, 40) / 8
    assert paired_test(a.tolist(), a.tolist(), seed=0).p_value == 1.0
    better = np.clip(a + 0.25, 0, 1)
    found = paired_test(a.tolist(), better.tolist(), seed=0)
    assert found.p_value < 0.001
    assert found.is_significant
    assert found.low > 0
    assert "random swaps" in found.test


def test_the_level_holds_by_simulation():
    """Of two equal models, about 5 % of the comparisons are called different."""
    rng = np.random.default_rng(1)
    num_trials, num_called = 300, 0
    for trial in range(num_trials):
        rates = rng.beta(1, 1, 14)
        a, b = (rng.binomial(4, rates) / 4 for _ in range(2))
        num_called += paired_test(a.tolist(), b.tolist(), seed=trial).is_significant
    assert num_called / num_trials < 0.09


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DataError, match="0 and 0"):
        paired_test([], [], seed=0)
    with pytest.raises(DataError, match="1 and 2"):
        paired_test([1.0], [1.0, 0.0], seed=0)
