"""The parts of LESE's reward; `lese.py` and `lese_binary.py` differ in how they rate the format.

Source: LESE (anonymous submission) section 4 and appendix A: core 1 for a right answer, strict 1
more if it stands inside <answer>, format up to 1.1. That 1.1 takes three order conditions of 0.1
each beside four tags present and four single (0.1 each); the text names one. Not here: deadlines.
"""

import re
from dataclasses import replace

from megatron_reason.rewards import math_verify
from megatron_reason.rewards._tags import ANSWER, END_ANSWER, IN_ORDER, between
from megatron_reason.schema.records import Status, Verdict

_PART = 0.1
_FULL_FORMAT = 1.1
_WHOLE = re.compile(r"<think>.*\n</think><answer>.*</answer>", re.DOTALL)


def fine_format(response: str) -> float:
    """0.1 for each of eleven conditions: tags present, tags single, neighbours in order."""
    counts = [response.count(tag) for tag in IN_ORDER]
    present = sum(count > 0 for count in counts)
    single = sum(count == 1 for count in counts)
    places = [response.find(tag) for tag in IN_ORDER]
    ordered = sum(0 <= places[i] < places[i + 1] for i in range(len(places) - 1))
    return _PART * (present + single + ordered)


def binary_format(response: str) -> float:
    """1.1 if the whole response is one thought and one answer, else 0."""
    is_single = all(response.count(tag) == 1 for tag in IN_ORDER)
    return _FULL_FORMAT if is_single and _WHOLE.fullmatch(response) else 0.0


def total(response: str, answer: str, format_score: float) -> Verdict:
    """Core, strict and format together; `ok` if the final answer is right, whatever its format."""
    core = math_verify.grade_math(response, answer)
    if core.status is not Status.OK:
        return replace(core, score=format_score, format_score=format_score)
    inside = between(response, ANSWER, END_ANSWER)
    is_strict = inside is not None and math_verify.grade_math(inside, answer).status is Status.OK
    score = 1.0 + float(is_strict) + format_score
    return replace(core, score=score, format_score=format_score)
