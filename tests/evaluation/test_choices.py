from collections import Counter

import pytest

from megatron_reason.evaluation.choices import read_choice

PROBLEM = "Which is prime?\n\nA) 4\nB) 6\nC) 7\nD) 9"


def test_options_of_lettered_and_numbered_lines_and_of_lists():
    choice = read_choice(PROBLEM, "C", {})
    assert (choice.stem, choice.options, choice.right) == (
        "Which is prime?", ("4", "6", "7", "9"), 2,
    )  # fmt: skip
    assert choice.text == PROBLEM
    numbered = read_choice("Which?\n\n1) a\n2) b\nand more of b\n3) c", "2", {})
    assert (numbered.options, numbered.letter) == (("a", "b\nand more of b", "c"), "B")
    listed = read_choice("Which?", "b", {"options": ["a", "b"]})
    assert (listed.options, listed.letter) == (("a", "b"), "B")
    hub = read_choice("Which?", 1, {"choices": ["1", "2", "3", "4"]})
    assert (hub.right, hub.letter) == (1, "B")
    assert read_choice("Which?", "1", {"choices": ["1", "2", "3", "4"]}).right == 0
    assert read_choice("Which?\n\n1) a\n2) b", 1, {}).right == 0
    within = read_choice("Read:\nA) a line of text\nIt says?\nA) x\nB) y", "B", {})
    assert within.options == ("x", "y")


def test_the_right_option_stays_right_wherever_it_goes():
    choice = read_choice(PROBLEM, "C", {})
    letters = Counter()
    for seed in range(400):
        shuffled = choice.shuffled(seed)
        assert shuffled == choice.shuffled(seed)
        assert shuffled.options[shuffled.right] == "7"
        assert sorted(shuffled.options) == sorted(choice.options)
        letters[shuffled.letter] += 1
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 60


@pytest.mark.parametrize(
    "last", ["all of the above", "Both A and B", "neither of them", "A and C only", "2 or 3"]
)
def test_options_that_speak_of_others_keep_their_place(last: str):
    choice = read_choice("Which?", "A", {"choices": ["x", "y", last]})
    assert all(choice.shuffled(seed) == choice for seed in range(20))


@pytest.mark.parametrize(
    ("problem", "answer", "row", "message"),
    [
        ("no options", "A", {}, "0 options"),
        ("Which?", "A", {"options": ["one"]}, "1 options"),
        ("Which?", "A", {"options": list("abcdefghijk")}, "11 options"),
        (PROBLEM, "E", {}, "none of A, B, C, D"),
        ("Which?", 2, {"choices": ["1", "2"]}, "the answer 2 is no index of 2 options"),
    ],
)
def test_rows_that_are_no_choice_are_refused(
    problem: str, answer: str | int, row: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        read_choice(problem, answer, row)
