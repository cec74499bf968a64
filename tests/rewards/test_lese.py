r"""LESE's rewards on the vectors of its card; a wrong or missing answer keeps its format's part."""

import pytest

from megatron_reason.rewards.lese import grade_finely
from megatron_reason.rewards.lese_binary import grade_format_whole
from megatron_reason.schema.records import Status

WHOLE = "<think>a\n</think><answer>\\boxed{2}</answer>"
NO_ANSWER_TAGS = "<think>a</think>\\boxed{2}"


@pytest.mark.parametrize(
    ("response", "gold", "fine", "binary", "status"),
    [
        (WHOLE, "2", 3.1, 3.1, Status.OK),
        (WHOLE, "3", 1.1, 1.1, Status.WRONG),
        (NO_ANSWER_TAGS, "2", 1.5, 1.0, Status.OK),
        ("so \\boxed{2}", "2", 1.0, 1.0, Status.OK),
        # The answer stands outside of the tag that is there: core alone.
        ("<think>a\n</think><answer>?</answer> \\boxed{2}", "2", 2.1, 1.0, Status.OK),
        # Two thoughts: all present (0.4), two of four single (0.2), in order (0.3).
        ("<think>a</think><think>b</think><answer>\\boxed{2}</answer>", "2", 2.9, 2.0, Status.OK),
        # Closed before it was opened: two of three in order, and a thought that never ends.
        ("</think>a<think> <answer>\\boxed{2}</answer>", "2", 1.0, 0.0, Status.NO_ANSWER),
    ],
)
def test_total_is_core_strict_and_format(response, gold, fine, binary, status):
    for grade, expected in ((grade_finely, fine), (grade_format_whole, binary)):
        found = grade(response, gold)
        assert found.score == pytest.approx(expected), grade.__name__
        assert found.status is status
        core = expected - found.format_score
        assert core == pytest.approx(round(core))
        assert (core > 0) == (status is Status.OK)


def test_an_unfinished_thought_has_no_answer_and_keeps_its_format():
    found = grade_finely("<think> 1+1=2 and so on", "2")
    assert (found.status, found.score) == (Status.NO_ANSWER, pytest.approx(0.2))
