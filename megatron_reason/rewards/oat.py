r"""Reward `oat`: the last `\boxed{}` of the whole response, by the rules of Oat's grader.

Thoughts count: a box in a thought that never ended is graded. For models that are prompted to think
first see `oat_after_think`. Not here: deadlines (`pool.py`).
"""

from megatron_reason.rewards import _oat
from megatron_reason.rewards._boxed import box_of, grade_box
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("oat", decisive=box_of)
def grade_response(response: str, answer: str) -> Verdict:
    """Verdict of Oat's rules on the last box.

    Returns:
        `ok` or `wrong`; `no_answer` without a box.
    """
    return grade_box(response, answer, _oat.equal)
