r"""Reward `srft`: 1 for a right answer after a finished thought, else 0, decided by math-verify.

Source: SRFT (arXiv 2506.19767) appendix A.2 (the score), and the released code of LUFFY, whose
prompt, data and reward SRFT takes over: both tags are demanded, and `split("</think>")[1]` is the
solution: what stands between the first `</think>` and a second, if there is one. OXA's evaluation
takes the same part. A prompt that ends with `<think>` leaves the opening tag out of the response,
so that tag alone may be missing. Not here: deadlines (`pool.py`).
"""

from megatron_reason.rewards import math_verify
from megatron_reason.rewards._tags import END_THINK
from megatron_reason.rewards.base import reward, verdict
from megatron_reason.schema.records import Status, Verdict


@reward("srft")
def grade_solution(response: str, answer: str) -> Verdict:
    """Verdict of math-verify on what follows the first `</think>`, up to a second.

    Returns:
        What `math_verify` says; `no_answer` if the thought never ends.
    """
    _, ended, rest = response.partition(END_THINK)
    if not ended:
        return verdict(Status.NO_ANSWER, gold=answer)
    return math_verify.grade_math(rest.partition(END_THINK)[0], answer)
