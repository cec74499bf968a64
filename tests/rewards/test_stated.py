"""Where an answer stands in a response, on well-formed and on hostile text."""

import time

import pytest

from megatron_reason.rewards.stated import (
    MAX_ANSWER,
    are_one_answer,
    boxes_of,
    conclusion,
    has_box,
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("plain", "plain"),
        ("<think>a</think>b", "b"),
        ("a</think>b</think>c", "c"),
        ("<think>a", ""),
        ("<think>a</think>b<think>c", ""),
        ("", ""),
    ],
)
def test_conclusion(response, expected):
    assert conclusion(response) == expected


@pytest.mark.parametrize(
    ("text", "contents"),
    [
        ("no box", []),
        (r"\boxed{1} then \boxed{ 2 }", [" 2 ", "1"]),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"]),
        (r"\boxed{\{1\}}", [r"\{1\}"]),
        (r"\boxed{1} \boxed{2", ["1"]),
        (r"\fbox{3}", ["3"]),
        (r"\boxed{" + "1" * (MAX_ANSWER + 1) + "}", []),
    ],
)
def test_boxes(text, contents):
    assert [box.content for box in boxes_of(text)] == contents
    assert has_box(text) == ("box" in text and "{" in text)
    assert all(text[box.begin : box.end].endswith(box.content + "}") for box in boxes_of(text))


@pytest.mark.parametrize(
    ("text", "one"),
    [
        (r"\boxed{1} or \boxed{2}", True),
        (r"$\boxed{1}$, and $\boxed{2}$", True),
        (r"\boxed{1}. No: \boxed{2}", False),
        (r"\boxed{1} \boxed{2}", False),
    ],
)
def test_boxes_joined_by_a_word_are_one_answer(text, one):
    assert are_one_answer(text, boxes_of(text)) is one


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "<think>", "\\", "\\boxed{}", "a\x00"])
def test_time_is_bounded_on_a_megabyte(piece):
    started_s = time.process_time()
    text = conclusion(piece * (1_000_000 // len(piece)))
    boxes_of(text)
    boxes_of(piece * 20_000)
    # A quadratic one would take minutes.
    assert time.process_time() - started_s < 10
