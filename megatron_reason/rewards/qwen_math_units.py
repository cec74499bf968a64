"""Reward `qwen_math_units`: `qwen_math`, with words of units left alone, as it grades Minerva.

Not here: the rules (`_qwen_normal.py`, `_qwen_equal.py`); deadlines (`pool.py`).
"""

from megatron_reason.rewards import _qwen
from megatron_reason.rewards.base import reward
from megatron_reason.schema.records import Verdict


@reward("qwen_math_units")
def grade_response(response: str, answer: str) -> Verdict:
    """Verdict of the harness on Minerva."""
    return _qwen.grade(response, answer, keep_units=True)
