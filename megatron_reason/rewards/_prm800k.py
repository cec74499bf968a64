r"""Equality of answers as OpenAI's PRM800K grader has it: a normal form, then sympy, strictly.

Source: the grader released with "Let's Verify Step by Step" (arXiv 2305.20050), as DeepScaleR and
Oat carry it. It turns LaTeX into text with pylatexenc and asks sympy whether a difference is zero,
but for fractions that are not reduced and for integers, which must match literally. Not here: where
an answer stands, and texts that are equal to begin with (`_mathd.py`).
"""

import logging
import re

from pylatexenc.latex2text import LatexNodes2Text
from sympy import simplify
from sympy.parsing.sympy_parser import (
    implicit_multiplication_application,
    standard_transformations,
)

from megatron_reason.rewards._arithmetic import parse_arithmetic

# It warns of every odd answer.
logging.getLogger("pylatexenc").setLevel(logging.CRITICAL)

_TEXT = re.compile(r"\\text\{(?P<text>.+?)\}$")
_SPELLINGS = (
    ("\\%", "%"), ("\\$", "$"), ("$", ""), ("%", ""), (" or ", " , "), (" and ", " , "),
    ("million", "*10^6"), ("billion", "*10^9"), ("trillion", "*10^12"),
)  # fmt: skip
_UNITS = [
    re.compile(rf"{unit}(es)?(s)? *(\^[0-9]+)?")
    for unit in (
        "degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week",
        "month", "year", "foot", "feet", "inch", "yard",
    )
]  # fmt: skip
_DEGREES = re.compile(r"\^ *\\circ")
_SPACED_COMMA = re.compile(r",\\! *")
_MIXED = re.compile(r"([0-9]) +([0-9])")
_GROUPED = re.compile(r"(\d),(\d\d\d)($|\D)")
_FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?$")
_SYMBOLS = {"√": "sqrt", "π": "pi", "∞": "inf", "\u222a": "U", "·": "*", "\u00d7": "*"}
_SLOW = re.compile(r"\^\{|\^\(|\^[0-9]+\^|\^[0-9][0-9]+")
_BRACKETS = "()[]"
_MOST_LETTERS = 2
_ROUNDING = 1e-7
_RULES = (*standard_transformations, implicit_multiplication_application)


def equal(stated: str, gold: str) -> bool:
    """Whether two bare answers are equal."""
    mine, theirs = normal(stated), normal(gold)
    if mine == theirs:
        return True
    if not mine:
        return False
    parts, wanted = _parts(mine), _parts(theirs)
    if len(wanted) > 1 and (mine[0], mine[-1]) != (theirs[0], theirs[-1]):
        return False
    if len(parts) != len(wanted):
        return False
    return bool(wanted) and all(_equal_part(*pair) for pair in zip(parts, wanted, strict=True))


def normal(answer: str) -> str:
    """The answer without units, money, LaTeX, spaces, braces and capitals."""
    wrapped = _TEXT.match(answer)
    text = wrapped["text"] if wrapped else answer
    for before, after in _SPELLINGS:
        text = text.replace(before, after)
    for unit in _UNITS:
        text = unit.sub("", text)
    text = _DEGREES.sub("", text)
    if text.startswith("{") and text.endswith("}"):
        text = text[1:-1]
    text = _SPACED_COMMA.sub("", text)
    if (number := _whole(text)) is not None:
        text = str(round(number))
    if "\\" in text:
        text = _as_plain_text(text)
    text = re.sub(r"- *", "-", text)
    text = _MIXED.sub(r"\1+\2", text).replace(" ", "")
    text = text.replace("{", "").replace("}", "").lower()
    if _whole(_ungrouped(text)) is not None:
        text = str(int(float(text.replace(",", ""))))
    return text


def _as_plain_text(latex: str) -> str:
    spaced = latex.replace("\\tfrac", "\\frac").replace("\\dfrac", "\\frac")
    try:
        text = LatexNodes2Text().latex_to_text(spaced.replace("\\frac", " \\frac"))
    except Exception:  # noqa: BLE001 - broken LaTeX fails in many ways; it is compared as it is
        return latex
    for symbol, name in _SYMBOLS.items():
        text = text.replace(symbol, name)
    return text.strip()


def _whole(text: str) -> float | None:
    """The number that `text` is, if it is a whole one."""
    try:
        number = float(text)
        return number if abs(number - round(number)) <= _ROUNDING else None
    except (ValueError, OverflowError):
        return None


def _ungrouped(text: str) -> str:
    before = ""
    while before != text:
        before, text = text, _GROUPED.sub(r"\1\2\3", text)
    return text


def _parts(text: str) -> list[str]:
    """Elements of a tuple or an interval; anything else is one part."""
    text = _ungrouped(text)
    if not text:
        return []
    inner = text[1:-1]
    is_tuple = inner and text[0] in _BRACKETS and text[-1] in _BRACKETS
    if is_tuple and not any(bracket in inner for bracket in _BRACKETS):
        return [part.strip() for part in inner.split(",")]
    return [text]


def _equal_part(stated: str, gold: str) -> bool:
    if _FRACTION.match(gold) and _FRACTION.match(stated):
        return stated == gold
    if (_whole(_ungrouped(gold)) is None) != (_whole(_ungrouped(stated)) is None):
        return False
    return _is_zero(f"({gold})-({stated})")


def _is_zero(difference: str) -> bool:
    """Whether sympy finds it zero; it is not asked about high powers and more than two letters."""
    rest = difference.replace("sqrt", "").replace("frac", "")
    if len({letter for letter in rest if letter.isalpha()}) > _MOST_LETTERS:
        return False
    if _SLOW.search(difference):
        return False
    try:
        expression = parse_arithmetic(difference.replace("^", "**"), _RULES, known_words=False)
        return bool(simplify(expression) == 0)
    except Exception:  # noqa: BLE001 - what sympy cannot read raises anything; it is not equal
        return False
