"""Qwen2.5-Math's harness on Minerva: words of units stay."""

from megatron_reason.rewards import qwen_math, qwen_math_units
from megatron_reason.schema.records import Status
from tests.rewards.released import check_accepts_what_the_released_grader_does, needs_data


def test_units_count():
    assert qwen_math.grade_response(r"\boxed{5 km}", "5").status is Status.OK
    assert qwen_math_units.grade_response(r"\boxed{5 km}", "5 km").status is Status.OK
    assert qwen_math_units.grade_response(r"\boxed{5 s}", "5 km").status is Status.WRONG
    assert qwen_math.grade_response(r"\boxed{5 s}", "5 km").status is Status.OK


@needs_data
def test_verdicts_are_those_of_the_released_grader():
    check_accepts_what_the_released_grader_does("qwen_math_units")
