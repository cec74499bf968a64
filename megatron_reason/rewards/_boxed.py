r"""The last `\boxed{...}` as the graders of DeepScaleR and Oat find it, and verdicts on it.

Stricter than `stated.py`: the brace must follow at once, every brace counts, escaped ones too, and
a last box that never closes hides those before it. Not here: equality.
"""

from collections.abc import Callable

from megatron_reason.rewards._tags import END_THINK
from megatron_reason.rewards.base import verdict
from megatron_reason.schema.records import Status, Verdict

_BOX = "\\boxed"


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`; None without one, or where it never closes."""
    begin = text.rfind(_BOX)
    first = begin + len(_BOX)
    if begin < 0 or not text.startswith("{", first):
        return None
    depth = 0
    for place in range(first, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[first + 1 : place]
    return None


def after_first_thought(response: str) -> str:
    """Text between the first `</think>` and a second or the end; empty without one."""
    return response.partition(END_THINK)[2].partition(END_THINK)[0]


def box_of(text: str, answer: str) -> str:  # noqa: ARG001 - as `Reward.decisive` is called
    """The last box of `text`, box and all; empty without one."""
    box = last_box(text)
    return "" if box is None else f"{_BOX}{{{box}}}"


def box_after_first_thought(response: str, answer: str) -> str:
    """The last box after the first thought, and the end of that thought before it."""
    return END_THINK + box_of(after_first_thought(response), answer)


def grade_box(text: str, answer: str, equal: Callable[[str, str], bool]) -> Verdict:
    r"""Verdict on the last box of `text`.

    Args:
        text: where the box is looked for.
        answer: gold answer; of one with a `\boxed{...}`, what is inside.
        equal: (stated, gold) -> whether they are equal.

    Returns:
        `ok` or `wrong`; `no_answer` without a box; `parse_error` if the gold one's is broken.
    """
    gold = last_box(answer) if _BOX in answer else answer
    if gold is None:
        return verdict(Status.PARSE_ERROR, gold=answer)
    stated = last_box(text)
    if stated is None:
        return verdict(Status.NO_ANSWER, gold=answer)
    return verdict(Status.OK if equal(stated, gold) else Status.WRONG, stated, answer)
