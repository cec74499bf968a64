r"""SRFT's reward: a finished thought and a right solution after it."""

import pytest

from megatron_reason.rewards.srft import grade_solution
from megatron_reason.schema.records import Status


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("<think>2</think> \\boxed{2}", Status.OK),
        ("2 it is</think> \\boxed{2}", Status.OK),
        ("<think>2</think> \\boxed{3}", Status.WRONG),
        ("<think>\\boxed{2}</think> I do not know", Status.NO_ANSWER),
        ("\\boxed{2}", Status.NO_ANSWER),
        ("<think>\\boxed{2}", Status.NO_ANSWER),
        ("<think>a</think>\\boxed{2}</think>", Status.OK),
        ("</think> \\boxed{1} </think> \\boxed{2}", Status.WRONG),
        ("</think> \\boxed{2} </think> \\boxed{1}", Status.OK),
        ("a</think> b </think> \\boxed{2}", Status.NO_ANSWER),
    ],
)
def test_the_solution_after_the_first_thought_decides(response, status):
    found = grade_solution(response, "2")
    assert found.status is status
    assert found.score == float(status is Status.OK)
