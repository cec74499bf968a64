"""The Gaussian sampler: golden numbers of the published script, and its properties."""

import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_reason.curation._gaussian import GaussianBins
from megatron_reason.curation.select import select_gaussian
from megatron_reason.errors import ConfigError

OXA = {"std": 0.25, "low": 1.0, "high": 5.0, "bin_width": 0.05}
TINY = {"mean": 3.0, "std": 0.5, "low": 1.0, "high": 5.0, "bin_width": 0.5}
ITEMS = [
    ("q1", "r1", 2.6, 100), ("q1", "r2", 2.7, 300), ("q2", "r3", 2.9, 200),
    ("q3", "r4", 2.55, 50), ("q1", "r5", 3.1, 500), ("q2", "r6", 3.3, 400),
    ("q4", "r7", 3.2, 450), ("q5", "r8", 3.4, 60), ("q6", "r9", 3.0, 10),
    ("q7", "r10", 1.9, 999), ("q8", "r11", 2.2, 5), ("q3", "r12", 3.6, 70),
]  # fmt: skip


def frame(items):
    return pl.DataFrame(
        items, schema=["query_id", "response_id", "ppl", "token_len"], orient="row", strict=False
    )


def by_bin(rows):
    bins = GaussianBins(**TINY)
    found = {}
    for row in rows.sort("token_len", descending=True).to_dicts():
        found.setdefault(bins.index(row["ppl"]), []).append(row["response_id"])
    return found


def test_golden_targets_of_50000():
    around_2_5 = GaussianBins(mean=2.5, **OXA).targets(50_000)
    assert len(around_2_5) == 80
    assert sum(around_2_5) == 50_000
    assert around_2_5[24:36] == [
        2178, 2661, 3123, 3521, 3814, 3970, 3970, 3814, 3521, 3123, 2661, 2178,
    ]  # fmt: skip
    assert [i for i, target in enumerate(around_2_5) if target] == list(range(9, 51))
    assert around_2_5[9] == around_2_5[50] == 1
    around_3 = GaussianBins(mean=3.0, **OXA).targets(50_000)
    assert sum(around_3) == 50_000
    assert around_3[36:44] == [3123, 3521, 3814, 3970, 3970, 3814, 3521, 3123]


def test_golden_tiny_targets_and_bins():
    bins = GaussianBins(**TINY)
    assert bins.targets(10) == [0, 0, 1, 4, 4, 1, 0, 0]
    found = [
        bins.index(ppl)
        for ppl in (0.999, 1.0, 1.5, 2.25, 4.999, 5.0, 5.0001, 1.49999999999, math.nan, math.inf)
    ]
    assert found == [None, 0, 1, 2, 7, 7, None, 1, None, None]


@pytest.mark.parametrize("exact", ["official", "fixed"])
def test_golden_one_response_per_query(exact):
    rows = select_gaussian(frame(ITEMS), **TINY, total=10, max_per_query=1, exact=exact)
    assert by_bin(rows) == {2: ["r11"], 3: ["r2", "r3", "r4"], 4: ["r7", "r8", "r9"]}


def test_golden_two_responses_per_query():
    official = select_gaussian(frame(ITEMS), **TINY, total=10, max_per_query=2)
    assert by_bin(official) == {
        2: ["r11"], 3: ["r2", "r2", "r3", "r4"], 4: ["r7", "r6", "r8", "r9"], 5: ["r12"],
    }  # fmt: skip
    fixed = select_gaussian(frame(ITEMS), **TINY, total=10, max_per_query=2, exact="fixed")
    assert by_bin(fixed)[3] == ["r2", "r3", "r1", "r4"]


def test_prefers_as_told():
    items = [("q1", "short", 3.1, 5), ("q2", "long", 3.1, 50)]
    for prefer in ("short", "long"):
        rows = select_gaussian(frame(items), **TINY, total=2, max_per_query=1, prefer=prefer)
        assert rows["response_id"].to_list() == [prefer]


def test_a_bell_outside_the_range_is_refused():
    with pytest.raises(ConfigError, match="no mass"):
        GaussianBins(mean=500.0, **OXA).targets(10)


rows_strategy = st.lists(
    st.tuples(
        st.integers(0, 8).map(lambda i: f"q{i}"),
        st.just(""),
        st.floats(0.5, 6.0) | st.sampled_from([math.nan, math.inf, 1.0, 5.0, 3.0]),
        st.integers(1, 20),
    ),
    max_size=60,
).map(lambda items: [(q, f"r{i}", ppl, n) for i, (q, _, ppl, n) in enumerate(items)])


@settings(max_examples=150, deadline=None)
@given(
    items=rows_strategy,
    total=st.integers(0, 40),
    cap=st.integers(1, 4),
    mean=st.floats(1, 5),
    std=st.floats(0.1, 3),
    prefer=st.sampled_from(["long", "short", "any"]),
)
def test_properties_of_the_fixed_sampler(items, total, cap, mean, std, prefer):
    bins = GaussianBins(mean, std, 1.0, 5.0, 0.5)
    targets = bins.targets(total)
    assert sum(targets) == total
    assert min(targets) >= 0
    arguments = {
        "mean": mean, "std": std, "low": 1.0, "high": 5.0, "bin_width": 0.5, "total": total,
        "max_per_query": cap, "prefer": prefer, "exact": "fixed",
    }  # fmt: skip
    rows = select_gaussian(frame(items), **arguments)
    assert rows.equals(select_gaussian(frame(items), **arguments))
    taken = Counter(bins.index(ppl) for ppl in rows["ppl"])
    assert all(taken[index] <= target for index, target in enumerate(targets))
    assert None not in taken
    assert max(Counter(rows["query_id"]).values(), default=0) <= cap
    assert rows["response_id"].n_unique() == len(rows)
    # A bin is short only if every row of it was taken or belongs to a query at its cap.
    per_query = Counter(rows["query_id"])
    chosen = set(rows["response_id"])
    for query, response, ppl, _ in items:
        index = bins.index(ppl)
        if index is not None and taken[index] < targets[index] and response not in chosen:
            assert per_query[query] == cap


def test_the_seed_decides_ties_and_order():
    items = [(f"q{i}", f"r{i}", 3.0 + i % 5 / 10, 10) for i in range(100)]
    picks = [
        select_gaussian(frame(items), **TINY, total=20, max_per_query=1, seed=seed)["response_id"]
        for seed in (1, 1, 2)
    ]
    assert picks[0].equals(picks[1])
    assert set(picks[0]) != set(picks[2])


def test_as_the_paper_writes_it():
    floors = GaussianBins(mean=2.5, **OXA).targets(50_000, hand_out_rest=False)
    assert sum(floors) == 49_976
    assert sum(GaussianBins(mean=3.0, **OXA).targets(50_000, hand_out_rest=False)) == 49_976
    rows = select_gaussian(frame(ITEMS), **TINY, total=10, max_per_query=2, exact="paper")
    # Floors [0, 0, 1, 3, 3, 1, 0, 0]; the longest of a bin, whatever their query.
    assert by_bin(rows) == {2: ["r11"], 3: ["r2", "r3", "r1"], 4: ["r7", "r6", "r8"], 5: ["r12"]}


@given(st.floats(0, 7))
def test_all_bins_at_once_are_the_bins_one_by_one(ppl):
    bins = GaussianBins(mean=2.5, **OXA)
    one = bins.index(ppl)
    assert bins.indices(np.array([ppl]))[0] == (-1 if one is None else one)
