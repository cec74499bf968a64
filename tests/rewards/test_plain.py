"""What is decided without a computer algebra system, and what is left to it."""

import time

import pytest
from math_verify import parse, verify

from megatron_reason.rewards._plain import choice_of, equal, normal, stated_choice
from megatron_reason.rewards.plain import grade_plain
from megatron_reason.schema.records import Status


@pytest.mark.parametrize(
    ("stated", "gold", "expected"),
    [
        ("5", "5", True),
        ("05", "5", True),
        ("5.0", "5", True),
        ("-5", "5", False),
        ("1,250", "1250", True),
        ("1{,}250", "1250", True),
        ("1,25", "125", None),
        ("0.3333", "0.33333", None),
        ("0.33", "0.36", False),
        (r"\frac{2}{4}", r"\frac12", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
        ("1/2", "0.5", True),
        (r"\frac{1}{3}", "0.333333", None),
        (r"\frac{1}{3}", "0.35", False),
        (r"\frac{1}{3}", r"\frac{333333}{999998}", False),
        (r"\frac{6}{3}", "2", True),
        (r"\frac{1}{0}", r"\frac{1}{2}", None),
        (r"1\frac{1}{2}", r"\frac{3}{2}", None),
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        ("x", "y", None),
        ("", "", None),
        ("2 1/2", "10.5", None),
        ("2 1/2", "21/2", None),
        ("2 1/2", "2 1/2", True),
        (r"\frac{1 2}{3}", "4", None),
        (r"10\,000", "10000", True),
        ("1 250", "1250", True),
        ("(1, 2)", "(1,2)", True),
        ("52_8", "52_{8}", True),
        ("52_9", "52_8", False),
        ("7" * 9000, "7" * 9000 + "1", False),
        ("0" + "7" * 9000, "7" * 9000, True),
        ("1e5", "100000", None),
    ],
)
def test_equal(stated, gold, expected):
    assert equal(stated, gold) is expected


def test_what_is_decided_is_what_math_verify_decides():
    values = ["2", "-2", "0.5", "1/3", "0.333", "3.00", "0", "-0.25", "1000", "1,000", ".5", "007"]
    values += [rf"\frac{{{a}}}{{{b}}}" for a in (-4, 1, 2, 999_983) for b in (1, 2, 3, 999_979)]
    values += [r"-\frac{1}{2}", r"\frac12", r"-\frac13", "2/6", "6/3", "-1/2", "999983/999979"]
    values += ["2 1/2", "21/2", "10.5", "5/2", "1 1/2", "5.5", "1.5"]
    decided = 0
    for gold in values:
        for stated in values:
            found = equal(stated, gold)
            if found is None:
                continue
            decided += 1
            pair = parse(f"\\boxed{{{gold}}}"), parse(f"\\boxed{{{stated}}}")
            assert verify(*pair) == found, (gold, stated)
    assert decided > 0.9 * len(values) ** 2


def test_normal_keeps_what_has_a_meaning():
    assert normal(r"\leftarrow x\ y.") == r"\leftarrowxy"
    assert normal(r"\$ 5") == "5"


@pytest.mark.parametrize(
    ("gold", "letter"),
    [("C", "C"), ("(C)", "C"), (r"\text{(C)}", "C"), ("c", None), ("CA", None), ("K", None)],
)
def test_choice_of(gold, letter):
    assert choice_of(gold) == letter


@pytest.mark.parametrize(
    ("box", "text", "letter"),
    [
        ("C", "", "C"),
        (r"\textbf{(c)}\ 42", "", "C"),
        ("42", "answer is A", None),
        (None, "Answer: (B)", "B"),
        (None, "The answer is A. No, the answer is **D**.", "D"),
        (None, "A good answer is a long one", None),
    ],
)
def test_stated_choice(box, text, letter):
    assert stated_choice(box, text) == letter


@pytest.mark.parametrize("piece", ["1", "1,111,", "answer ", "\\left", "{,}", "_8", " "])
def test_time_is_bounded_on_long_answers(piece):
    text = piece * (10_000 // len(piece))
    started_s = time.process_time()
    equal(text, text + "1")
    stated_choice(text, text)
    stated_choice(None, text * 2)
    assert time.process_time() - started_s < 5


@pytest.mark.parametrize(
    ("response", "answer", "status"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2", Status.OK),
        (r"\boxed{\frac{1}{2}}", r"\dfrac{1}{2}", Status.OK),
        (r"\boxed{0.5}", r"\frac{1}{2}", Status.OK),
        (r"\boxed{1 + x}", "x + 1", Status.WRONG),
        (r"\boxed{1,000}", "1000", Status.OK),
        (r"\boxed{(B)}", "B", Status.OK),
        ("The answer is C.", "B", Status.WRONG),
        ("no letter", "B", Status.NO_ANSWER),
        ("so it is 12", "12", Status.OK),
        ("<think>12", "12", Status.NO_ANSWER),
        ("nothing", "12", Status.NO_ANSWER),
        ("nothing", "x+1", Status.NO_ANSWER),
    ],
)
def test_the_reward_plain_decides_everything(response: str, answer: str, status: Status):
    assert grade_plain(response, answer).status is status
