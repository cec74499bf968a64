"""Rates of verdicts: what they count, and when they stop a run."""

import pytest

from megatron_reason.errors import RewardError
from megatron_reason.rewards.base import Limits, StatusRates, verdict
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status


def rates_of(**counts):
    rates = StatusRates(Limits(failed=0.1, unread=0.5, from_answers=100))
    for status, number in counts.items():
        rates.add([verdict(Status(status))] * number)
    return rates


def test_shares_are_described():
    assert rates_of(ok=3, timeout=1).describe() == "4 answers: ok 75.00 %, timeout 25.00 %"
    assert rates_of().describe() == "no answers"


@pytest.mark.parametrize(
    ("counts", "stops"),
    [
        ({"ok": 90, "timeout": 10}, None),
        ({"ok": 89, "timeout": 6, "crash": 5}, "grading fails too often"),
        ({"timeout": 99}, None),
        ({"wrong": 50, "parse_error": 50}, None),
        ({"wrong": 49, "parse_error": 51}, "cannot be read"),
        ({"no_answer": 100}, None),
    ],
)
def test_stops_past_its_limits(counts, stops):
    rates = rates_of(**counts)
    if stops is None:
        rates.check("here")
    else:
        with pytest.raises(RewardError, match=stops):
            rates.check("here")


def test_a_pool_stops_when_gold_answers_are_no_answers():
    with (
        AnswerPool(workers=1, limits=Limits(from_answers=10)) as pool,
        pytest.raises(RewardError, match="parse_error 100"),
    ):
        pool.grade_many([("", f"\\boxed{{{number}}}") for number in range(10)])
