"""Reward `qwen_math`: what the harness released with Qwen2.5-Math grades with, and DFT's and DR's.

Its last resort is the last number of a response. Not here: the rules (`_qwen_normal.py`,
`_qwen_equal.py`); deadlines (`pool.py`).
"""

from megatron_reason.rewards import _qwen
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("qwen_math")
def grade_response(response: str, answer: str) -> Verdict:
    """Verdict of the harness; words of units do not count."""
    return _qwen.grade(response, answer, keep_units=False)
