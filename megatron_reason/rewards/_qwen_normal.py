r"""Which answer Qwen2.5-Math's harness takes from a response, and its normal form, as text.

Source: the evaluation released with Qwen2.5-Math (arXiv 2409.12122), which DFT and Data Rewriting
measure with. Its rules are kept where they surprise: `x\in` and "and" go from anywhere, words of
numbers make a number of the whole answer, and a lone `j` is an `i`. Not here: equality
(`_qwen_equal.py`).
"""

import re

from megatron_reason.rewards._mathd import (
    with_braces,
    with_inner_zeros,
    with_leading_zero,
    with_one_spelling,
    without_label,
)
from megatron_reason.rewards._number_words import spelled_number
from megatron_reason.rewards._units import without_trailing_text, without_units

_BOX = "boxed"
_HOPED = ("final answer is $", "$. I hope")
_ANNOUNCED = ("he answer is", "final answer is")
_CHINESE = "答案是"
_STRAY = "\u043a\u0438"
"""Letters that Qwen's models strew in."""
_MOST_DIGITS = 4000
_NUMBER = re.compile(r"-?\d*\.?\d+")
_TEXT = re.compile(r"\\text\{(.*?)\}")
_HIDDEN = re.compile(r"\\mbox{.*?}")
_ROOT = re.compile(r"\\sqrt(\w+)")
_POINT_ZERO = (re.compile(r"(\d+)\.0*([^\d])"), re.compile(r"(\d+)\.0*$"))
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")
_LAYOUT = (
    ("\\!", ""), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("\\{", "{"), ("\\}", "}"),
)  # fmt: skip
_MARKS = (("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""), ("$", ""), ("\\(", ""), ("\\)", ""))
_NAMES = (
    *((f"{letter}{sign}", "") for sign in ("=", "\\in", "\\to") for letter in "xyz"),
    ("\\emptyset", "{}"), ("(-\\infty,\\infty)", "\\mathbb{R}"), ("\\%", ""), ("%", ""),
)  # fmt: skip


def stated(response: str) -> str:
    r"""The answer that `response` states, before its normal form.

    In this order: between "final answer is $" and "$. I hope", in the last `\boxed{}` (one that
    never closes goes to the end), behind the last "he answer is" or "final answer is", behind the
    first "答案是", the last number. Empty where there is none of them.
    """
    response = response.replace(_STRAY, "")
    begin, end = _HOPED
    if begin in response and end in response:
        return response.split(begin, 1)[1].split(end, 1)[0].strip()
    if _BOX in response:
        return boxed(response)
    for announced in _ANNOUNCED:
        if announced in response:
            return response.rsplit(announced, 1)[1].strip()
    if _CHINESE in response:
        return response.split(_CHINESE)[1].strip().split("\n\n")[0].strip()
    numbers = _NUMBER.findall(response.replace(",", ""))
    return numbers[-1] if numbers else ""


def boxed(response: str) -> str:
    """What follows the last "boxed": in braces, or up to a dollar sign."""
    rest = response.rpartition(_BOX)[2]
    if not rest.startswith("{"):
        return rest.split("$")[0].strip()
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place]
    return rest[1:]


def answer_of(response: str, *, keep_units: bool) -> str:
    """Normal form of the answer that `response` states; empty if it states none.

    Args:
        response: all of it; thoughts count.
        keep_units: leave words of units alone, as the harness does on Minerva.
    """
    answer = re.sub(r"\n\s*", "", stated(response))
    answer = answer.removeprefix(":").removesuffix(".").removesuffix("/")
    # The harness does it twice, and a second time may find more.
    return normal(normal(answer, keep_units=keep_units), keep_units=keep_units)


def normal(answer: str, *, keep_units: bool) -> str:
    """Normal form of a bare answer."""
    text = answer.strip().replace("\n", "").rstrip(".")
    text = without_trailing_text(_replaced(with_one_spelling(text), _LAYOUT))
    if not keep_units:
        text = without_units(text)
    text = _replaced(text, _MARKS)
    if (number := _in_digits(text)) is not None:
        text = str(number)
    text = with_inner_zeros(_replaced(_TEXT.sub(r"\1", text), _NAMES))
    text = _HIDDEN.sub("", _with_infinities(text).replace("and", "").replace("\\mathbf", ""))
    if "i" not in text:
        text = text.replace("j", "i")
    text = _POINT_ZERO[1].sub(r"\1", _POINT_ZERO[0].sub(r"\1\2", text))
    text = without_label(with_leading_zero(text))
    text = _ROOT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    return _with_fraction(_with_braces(text))


def _replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for before, after in pairs:
        text = text.replace(before, after)
    return text


def _in_digits(text: str) -> float | None:
    if text.isdecimal() and len(text) <= _MOST_DIGITS:
        return int(text)
    return spelled_number(text)


def _with_infinities(text: str) -> str:
    text = text.replace("infinity", "\\infty")
    return text if "\\infty" in text else text.replace("inf", "\\infty")


def _with_braces(text: str) -> str:
    try:
        return with_braces(text)
    except ValueError:
        return text


def _with_fraction(text: str) -> str:
    r"""`3/4` becomes `\frac{3}{4}`; above and below may stand roots."""
    above, *below = text.split("/")
    if len(below) != 1:
        return text
    both = (above, below[0])
    if all("sqrt" in part or _WHOLE.fullmatch(part) for part in both):
        return f"\\frac{{{both[0]}}}{{{both[1]}}}"
    return text
