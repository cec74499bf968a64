r"""Reward `oat_after_think`: what LUFFY's released evaluation grades with, and SRFT's after it.

Where the prompt ends with `<think>`, only what stands between the first `</think>` and a second is
graded, by the rules of Oat's grader; without it the answer is wrong. Not here: deadlines
(`pool.py`).
"""

from megatron_reason.rewards import _oat
from megatron_reason.rewards._boxed import after_first_thought, box_after_first_thought, grade_box
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("oat_after_think", decisive=box_after_first_thought)
def grade_solution(response: str, answer: str) -> Verdict:
    """Verdict of Oat's rules on what follows the first `</think>`, up to a second.

    Returns:
        `ok` or `wrong`; `no_answer` without `</think>` or without a box after it.
    """
    return grade_box(after_first_thought(response), answer, _oat.equal)
