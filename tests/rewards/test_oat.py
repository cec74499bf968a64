r"""Oat's grader: units, repetition, and the released grader's verdicts."""

import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_reason.rewards import _oat
from megatron_reason.rewards.oat import grade_response
from megatron_reason.schema.records import Status
from tests.rewards.released import check_accepts_what_the_released_grader_does, needs_data


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        (r"\boxed{5}", "5", Status.OK),
        (r"<think> perhaps \boxed{5}", "5", Status.OK),
        (r"\boxed{5 apples}", "5", Status.OK),
        (r"\boxed{5 \text{ kg}}", "5", Status.OK),
        (r"\boxed{6}", "5", Status.WRONG),
        ("5", "5", Status.NO_ANSWER),
        # Only math-verify sees these.
        (r"\boxed{a+b+c}", "c+b+a", Status.OK),
        (r"\boxed{2^{10}}", "1024", Status.OK),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", Status.OK),
    ],
)
def test_the_last_box_of_the_whole_response_decides(response, answer, status):
    assert grade_response(response, answer).status is status


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("5 m", "5"),
        ("5 more", "5"),
        ("m", "m"),
        (r"\begin{array}{cc} 1 & 2 \end{array}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"\begin{bmatrix} 1 \end{bmatrix}", r"\begin{pmatrix}1\end{pmatrix}"),
        (r"x \leq 3", r"x\le3"),
        (r"12\text{ ways}", "12"),
        (r"\text{ways}", r"ways"),
    ],
)
def test_normal_form(answer, normal):
    assert _oat.normal(answer) == normal


def test_repetition_is_the_share_of_suffixes_that_neighbours_have_in_common():
    assert _oat.is_repetitive("ab" * 200)
    assert not _oat.is_repetitive("".join(random.Random(0).choices("abcdefgh", k=400)))
    # Of "aaa": the suffixes a, aa, aaa have 1 + 2 characters in common, of 6 in all.
    assert _oat.is_repetitive("aaa")
    assert not _oat.is_repetitive("abc")
    assert not _oat.is_repetitive("")


@given(st.text("ab", min_size=1, max_size=12))
def test_substrings_are_counted_once(text):
    ends = range(1, len(text) + 1)
    assert _oat._distinct(text) == len({text[a:b] for b in ends for a in range(b)})


def test_a_long_answer_takes_little_memory():
    text = "".join(random.Random(0).choices("0123456789+-x", k=60_000))
    tracemalloc.start()
    assert not _oat.is_repetitive(text)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200e6


def test_long_repetitive_answers_are_not_parsed():
    assert grade_response(f"\\boxed{{{'1+' * 2000}1}}", "2001").status is Status.WRONG


@needs_data
def test_verdicts_are_those_of_the_released_grader():
    check_accepts_what_the_released_grader_does("oat")
