r"""Reward `numeric`: exact equality of two numbers, without a computer algebra system.

For data sets whose answers are plain numbers (GSM8K, arithmetic). The answer of a response is what
follows its last `####`, else its last `\boxed{}`, else its last "answer is", else its last number.
Not here: expressions, units or tolerances; use `math_verify` for those.
"""

import re
from fractions import Fraction

from megatron_reason.rewards.base import reward, verdict
from megatron_reason.schema.records import Status, Verdict

_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>-?)\s*[$€£¥]?\s*(?:"
    rf"\\[dt]?frac\s*\{{\s*(?P<over>-?(?:{_DECIMAL}))\s*\}}\s*\{{\s*(?P<under>{_DECIMAL})\s*\}}"
    rf"|(?P<whole>{_DECIMAL})(?:\s*/\s*(?P<per>{_DECIMAL}))?)"
)
_ANNOUNCED = (
    re.compile(r"####(?P<tail>[^\n]*)"),
    re.compile(r"\\boxed\{(?P<tail>(?:[^{}]|\{[^{}]*\})*)\}"),
    re.compile(r"(?i:\banswer(?:\s+is|\s*[:=]))(?P<tail>[^\n]*)"),
)


@reward("numeric")
def grade_number(response: str, answer: str) -> Verdict:
    """Whether the number stated in `response` equals `answer` exactly.

    Returns:
        `ok` or `wrong`; `no_answer` if the response holds no number; `parse_error` if the gold
        answer is no number, or a number of the response is not finite or too long to be read.
    """
    try:
        gold = read_number(answer)
        stated = read_number(response)
    except (ValueError, ZeroDivisionError):
        return verdict(Status.PARSE_ERROR)
    if gold is None:
        return verdict(Status.PARSE_ERROR)
    if stated is None:
        return verdict(Status.NO_ANSWER)
    return verdict(Status.OK if gold == stated else Status.WRONG, str(stated))


def read_number(text: str) -> Fraction | None:
    """Number that `text` announces as its answer, else the last one in it, else None.

    Raises:
        ValueError: more digits than Python converts.
        ZeroDivisionError: a fraction over zero.
    """
    for announced in _ANNOUNCED:
        tails = [match["tail"] for match in announced.finditer(text)]
        if tails and (number := _NUMBER.search(tails[-1])):
            return _value(number)
    numbers = list(_NUMBER.finditer(text))
    return _value(numbers[-1]) if numbers else None


def _value(number: re.Match[str]) -> Fraction:
    over = number["over"] or number["whole"]
    under = number["under"] or number["per"] or "1"
    value = Fraction(over.replace(",", "")) / Fraction(under.replace(",", ""))
    return -value if number["sign"] else value
