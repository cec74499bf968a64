r"""Reward `math_verify`: equality of mathematical answers, decided by the library of that name.

The answer of a response is its last complete `\boxed{}` after `</think>`; where the true answer is
a list and there are several boxes, all of them; where there is no box, what the library's own
extraction finds (an answer announced as final first, else the rightmost). Three differences from
the library alone, which looks at the whole text: thoughts do not count, an unfinished thought is no
answer, and a box outranks "the final answer is".

Equal texts, plain numbers and multiple-choice letters are decided without sympy (`_plain.py`);
formulas with different values are not simplified (`_differ.py`).
The gold answer goes first, as `verify` is not symmetric. The library's alarm-based time limits are
switched off, because they work in a main thread only; call this through `AnswerPool`, which has
hard deadlines. Not here: deadlines (`pool.py`).
"""

import logging
import re
from functools import lru_cache

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, MatrixBase

from megatron_reason.rewards import _plain
from megatron_reason.rewards._differ import values_first
from megatron_reason.rewards.base import reward, verdict
from megatron_reason.rewards.stated import are_one_answer, boxes_of, conclusion, has_box
from megatron_reason.schema.records import Status, Verdict

logging.getLogger("math_verify").setLevel(logging.ERROR)

Expression = Basic | MatrixBase | str

_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)")
_BARE_POINT = re.compile(r"(?<=\d)\.(?!\d)")
_LIST = re.compile(r",|;|\bor\b|\band\b|\\pm|\\text")
_NESTED = re.compile(r"(?:\\\w+\s*)?[{(\[]|[})\]]")
_LONG_NUMBER = re.compile(r"\d{4000}")
_MAX_DEPTH = 100
_GOLDS_KEPT = 4096


def decisive(response: str, answer: str) -> str:
    r"""Part of `response` that its verdict depends on: usually one `\boxed{...}`."""
    text = conclusion(response)
    boxes = boxes_of(text)
    if not boxes:
        return text
    if len(boxes) > 1 and (_LIST.search(answer) or are_one_answer(text, boxes)):
        return text
    is_percentage = text[boxes[0].end :].lstrip().startswith(("%", r"\%"))
    box = f"\\boxed{{{boxes[0].content}}}"
    return f"${box}\\%$" if is_percentage else box


def quick(text: str, answer: str) -> Verdict | None:
    """Verdict on a decisive part where sympy is not needed for it; None where it is."""
    if not text.strip():
        return verdict(Status.NO_ANSWER, gold=answer)
    boxes = boxes_of(text)
    box = boxes[0].content if boxes else None
    if (letter := _plain.choice_of(answer)) is not None:
        chosen = _plain.stated_choice(box, text)
        if chosen is not None:
            return verdict(Status.OK if chosen == letter else Status.WRONG, chosen, answer)
    if box is None or len(boxes) > 1 or text.endswith("%$"):
        return None
    equal = _plain.equal(box, answer)
    return None if equal is None else verdict(Status.OK if equal else Status.WRONG, box, answer)


@reward("math_verify", decisive=decisive, quick=quick)
def grade_math(response: str, answer: str) -> Verdict:
    r"""Verdict of math-verify on the last answer stated in `response`.

    Args:
        response: text that states an answer, preferably as `\boxed{...}`.
        answer: gold answer: a number, a choice, or LaTeX with or without dollar signs.

    Returns:
        `ok` or `wrong`; `no_answer` if nothing in the text looks like an answer; `parse_error` if
        the answer found, or the gold answer, cannot be read as mathematics.
    """
    text = decisive(response, answer)
    if (plain := quick(text, answer)) is not None:
        return plain
    if _unreadable(text) or _unreadable(answer):
        return verdict(Status.PARSE_ERROR, text, answer)
    try:
        gold = _parse_gold(answer)
        if not gold:
            return verdict(Status.PARSE_ERROR, gold=answer)
        stated = _parse(text)
        if not stated:
            return verdict(Status.PARSE_ERROR if has_box(text) else Status.NO_ANSWER, gold=answer)
        with values_first():
            equal = verify(list(gold), stated, timeout_seconds=None)
    except TimeoutException:
        # Derives from BaseException, and would pass through every handler of ours.
        return verdict(Status.TIMEOUT, gold=answer)
    extracted = next((part for part in reversed(stated) if isinstance(part, str)), "")
    if equal:
        return verdict(Status.OK, extracted, answer)
    unread = all(isinstance(part, str) for part in stated)
    return verdict(Status.PARSE_ERROR if unread else Status.WRONG, extracted, answer)


def as_latex(expression: str) -> str:
    r"""Wrap a bare expression in `\boxed{}`, without which LaTeX is not recognised as such.

    A bare `8.7e8` is spelled out first, as the library reads its `e` as Euler's number, and the
    point of `3./2` is left out, behind which it reads nothing.
    """
    bare = _BARE_POINT.sub("", expression.strip())
    if not bare or any(mark in bare for mark in ("$", "\\boxed", "\\[", "\\(")):
        return bare
    if scientific := _SCIENTIFIC.fullmatch(bare):
        bare = f"{scientific[1]} \\times 10^{{{int(scientific[2])}}}"
    return f"\\boxed{{{bare}}}"


@lru_cache(maxsize=_GOLDS_KEPT)
def _parse_gold(answer: str) -> tuple[Expression, ...]:
    """The gold answer as mathematics; parsed once for the many responses to one problem."""
    return tuple(_parse(as_latex(answer)))


def _parse(text: str) -> list[Expression]:
    return parse(text, parsing_timeout=0)


def _unreadable(text: str) -> bool:
    """Whether a parser would only lose its time or its stack on `text`."""
    if "\x00" in text or _LONG_NUMBER.search(text):
        return True
    depth = 0
    for mark in _NESTED.finditer(text):
        depth += 1 if mark[0][-1] in "{([" else -1
        if depth > _MAX_DEPTH:
            return True
    return False
