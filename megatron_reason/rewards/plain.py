r"""Reward `plain`: equal texts, numbers and letters, decided without a computer algebra system.

Deterministic, fast and strict: an expression in another form than the gold answer is wrong, so it
says no more often than `math_verify`. It is the second opinion that `mreason eval` compares its
grader with. Not here: expressions, sets, units (`math_verify.py`).
"""

from megatron_reason.rewards import _plain
from megatron_reason.rewards.base import reward, verdict
from megatron_reason.rewards.numeric import grade_number
from megatron_reason.rewards.stated import boxes_of, conclusion
from megatron_reason.schema.records import Status, Verdict

_NO_ANSWER = (Status.NO_ANSWER, Status.PARSE_ERROR)


@reward("plain")
def grade_plain(response: str, answer: str) -> Verdict:
    r"""Verdict on the last complete `\boxed{}` after `</think>`; without a box, on a last number.

    Returns:
        `ok`, `wrong`, or `no_answer`.
    """
    text = conclusion(response)
    boxes = boxes_of(text)
    box = boxes[0].content if boxes else None
    if (letter := _plain.choice_of(answer)) is not None:
        chosen = _plain.stated_choice(box, text)
        if chosen is None:
            return verdict(Status.NO_ANSWER if box is None else Status.WRONG, box or "", answer)
        return verdict(Status.OK if chosen == letter else Status.WRONG, chosen, answer)
    if box is None:
        found = grade_number(text, answer)
        status = Status.NO_ANSWER if found.status in _NO_ANSWER else found.status
        return verdict(status, found.extracted, answer)
    return verdict(Status.OK if _plain.equal(box, answer) else Status.WRONG, box, answer)
