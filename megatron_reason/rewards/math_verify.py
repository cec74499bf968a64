r"""Reward `math_verify`: equality of mathematical answers, decided by the library of that name.

Extraction is the library's own: LaTeX and plain expressions, an answer announced as final or boxed
before any other, the rightmost first; bare boxes count together, as one set. The gold answer goes
first, as `verify` is not symmetric. The library's alarm-based time limits are switched off, because
they work in a main thread only; call this through `AnswerPool`, which has hard deadlines.

Most answers of word problems are a single boxed number at the very end, and are compared without
sympy; the short cut is taken only where the library could not decide otherwise.
Not here: deadlines (`pool.py`).
"""

import logging
import re

from math_verify import parse, verify
from math_verify.errors import TimeoutException
from sympy import Basic, MatrixBase

from megatron_reason.rewards.base import reward, verdict
from megatron_reason.schema.records import Status, Verdict

logging.getLogger("math_verify").setLevel(logging.ERROR)

Expression = Basic | MatrixBase | str

_PLAIN_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?")
_INTEGER = re.compile(r"-?\d{1,15}")
_LAST_BOX = re.compile(r"\\boxed\{\s*(-?\d{1,15}(?:\.\d{1,15})?)\s*\}[\s$.)\]\\]*\Z")
_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)")


@reward("math_verify")
def grade_math(response: str, answer: str) -> Verdict:
    r"""Verdict of math-verify on the last answer stated in `response`.

    Args:
        response: text that states an answer, preferably as `\boxed{...}`.
        answer: gold answer: a number, or LaTeX with or without dollar signs.

    Returns:
        `ok` or `wrong`; `no_answer` if nothing in the text looks like an answer; `parse_error` if
        the answer found, or the gold answer, cannot be read as mathematics.
    """
    if (quick := _compare_boxed_number(response, answer.strip())) is not None:
        return quick
    try:
        gold = _parse(as_latex(answer))
        if not gold:
            return verdict(Status.PARSE_ERROR)
        stated = _parse(response)
        if not stated:
            unread = Status.PARSE_ERROR if "\\boxed" in response else Status.NO_ANSWER
            return verdict(unread)
        equal = verify(gold, stated, timeout_seconds=None)
    except TimeoutException:
        # Derives from BaseException, and would pass through every handler of ours.
        return verdict(Status.TIMEOUT)
    extracted = next((part for part in reversed(stated) if isinstance(part, str)), "")
    if equal:
        return verdict(Status.OK, extracted)
    unread = all(isinstance(part, str) for part in stated)
    return verdict(Status.PARSE_ERROR if unread else Status.WRONG, extracted)


def as_latex(expression: str) -> str:
    r"""Wrap a bare expression in `\boxed{}`, without which LaTeX is not recognised as such.

    A bare `8.7e8` is spelled out first: the library reads its `e` as Euler's number.
    """
    bare = expression.strip()
    if not bare or any(mark in bare for mark in ("$", "\\boxed", "\\[", "\\(")):
        return bare
    if scientific := _SCIENTIFIC.fullmatch(bare):
        bare = f"{scientific[1]} \\times 10^{{{int(scientific[2])}}}"
    return f"\\boxed{{{bare}}}"


def _parse(text: str) -> list[Expression]:
    return parse(text, parsing_timeout=0)


def _compare_boxed_number(response: str, answer: str) -> Verdict | None:
    """Verdict where a lone boxed number ends the text; None where the library has to look."""
    if not _PLAIN_NUMBER.fullmatch(answer):
        return None
    if response.count("\\boxed") != 1 or "I hope" in response:
        return None
    if (box := _LAST_BOX.search(response)) is None:
        return None
    stated = box[1]
    if stated == answer:
        return verdict(Status.OK, stated)
    if not (_INTEGER.fullmatch(stated) and _INTEGER.fullmatch(answer)):
        return None
    return verdict(Status.OK if int(stated) == int(answer) else Status.WRONG, stated)
