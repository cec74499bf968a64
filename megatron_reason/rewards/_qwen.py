"""Verdict of Qwen2.5-Math's rules; the rewards differ in whether words of units are removed.

Not here: the rules (`_qwen_normal.py`, `_qwen_equal.py`).
"""

from megatron_reason.rewards._qwen_equal import equal
from megatron_reason.rewards._qwen_normal import answer_of, normal
from megatron_reason.rewards.base import verdict
from megatron_reason.schema.records import Status, Verdict


def grade(response: str, answer: str, *, keep_units: bool) -> Verdict:
    """Verdict on the answer that all of `response` states.

    Returns:
        `ok` or `wrong`; `no_answer` if there is no number in it either.
    """
    stated = answer_of(response, keep_units=keep_units)
    if not stated:
        return verdict(Status.NO_ANSWER, gold=answer)
    is_right = equal(stated, normal(answer, keep_units=keep_units))
    return verdict(Status.OK if is_right else Status.WRONG, stated, answer)
