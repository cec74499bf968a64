"""Verdicts of `numeric`."""

from fractions import Fraction

import pytest

from megatron_reason.rewards.numeric import grade_number, read_number
from megatron_reason.schema.records import Status


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 3 + 4 = 7\n#### 7", Fraction(7)),
        ("#### 1,234,567.5", Fraction("1234567.5")),
        ("#### $1,200", Fraction(1200)),
        ("#### -3", Fraction(-3)),
        (r"thus \boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"thus \boxed{\frac{-3}{4}} of 100", Fraction(-3, 4)),
        ("The answer is 3/4 of it, not 9", Fraction(3, 4)),
        ("I count 3, then 5.", Fraction(5)),
        ("A: 12, 13", Fraction(13)),
        ("none", None),
    ],
)
def test_reads_the_announced_number(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        ("#### 0.50", "1/2", Status.OK),
        ("#### 18", "#### 18", Status.OK),
        ("#### 18.0000001", "18", Status.WRONG),
        ("no number", "18", Status.NO_ANSWER),
        ("#### 18", "eighteen", Status.PARSE_ERROR),
        ("#### 1/0", "18", Status.PARSE_ERROR),
        ("#### " + "7" * 10_000, "18", Status.PARSE_ERROR),
    ],
)
def test_status(response, answer, status):
    assert grade_number(response, answer).status is status
