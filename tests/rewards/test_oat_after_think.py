r"""LUFFY's evaluation: Oat's rules after the first thought."""

import pytest

from megatron_reason.rewards.oat_after_think import grade_solution
from megatron_reason.schema.records import Status


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"a</think> \boxed{5 apples}", Status.OK),
        (r"a</think> \boxed{5} </think> \boxed{6}", Status.OK),
        (r"\boxed{5}", Status.NO_ANSWER),
        (r"\boxed{5}</think> 5", Status.NO_ANSWER),
        (r"</think> \boxed{6}", Status.WRONG),
    ],
)
def test_what_follows_the_first_thought_decides(response, status):
    assert grade_solution(response, "5").status is status
