r"""Reward `deepscaler`: what OXA's released evaluation grades with.

Source: the math reward of DeepScaleR, which the released code of OXA (arXiv 2603.16206) carries. A
response without `</think>` is wrong; what stands between the first and a second one is searched for
its last `\boxed{}`, which must equal the gold answer as text (`_mathd.py`) or by sympy
(`_prm800k.py`).
OXA's training looks after the *last* `</think>` instead, and asks math-verify. Not here: deadlines
(`pool.py`).
"""

from megatron_reason.rewards import _mathd, _prm800k
from megatron_reason.rewards._boxed import after_first_thought, box_after_first_thought, grade_box
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("deepscaler", decisive=box_after_first_thought)
def grade_solution(response: str, answer: str) -> Verdict:
    """Verdict of DeepScaleR's rules on what follows the first `</think>`, up to a second.

    Returns:
        `ok` or `wrong`; `no_answer` without `</think>` or without a box after it.
    """
    return grade_box(after_first_thought(response), answer, equal)


def equal(stated: str, gold: str) -> bool:
    """Whether two bare answers are equal."""
    return _mathd.normal(stated) == _mathd.normal(gold) or _prm800k.equal(stated, gold)
