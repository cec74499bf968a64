r"""Answers that can be compared without a computer algebra system: equal texts, numbers, choices.

Only what is plain to see is decided; everything else is left open (None). Strings only, fast and
bounded: this runs in the caller's process. Not here: where the answer stands (`stated.py`).
"""

import re
from fractions import Fraction

_SPACING = re.compile(r"\\[ ,!;:>]|\\(?:quad|qquad|displaystyle)(?![A-Za-z])|[\s~]")
_SIZING = re.compile(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big)(?=[^A-Za-z])")
_GAP = rf"(?:{_SPACING.pattern})+"
_SPLIT = re.compile(rf"\d{_GAP}\d")
_SPLIT_THOUSANDS = re.compile(rf"[-+]?\d{{1,3}}(?:{_GAP}\d{{3}})+(?:\.\d+)?")
_MONEY = re.compile(r"\\?\$")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_FRACTION = re.compile(r"(-?)\\frac(?:\{(-?\d{1,6})\}\{(\d{1,6})\}|(\d)(\d))|(-?\d{1,6})/(\d{1,6})")
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:(?:,|\{,\})\d{3})+(?:\.\d+)?")
_IN_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{(\d+)\}|(\d))")
_MAX_DIGITS = 4000
_FAR = Fraction(1, 1000)
"""Distance (above 1: relative) at which decimals are different numbers, however rounded."""

_CHOICE_GOLD = re.compile(r"\(?\s*([A-J])\s*\)?\.?")
_STYLE = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\W*([A-Ja-j])(?:\s*[).:,]|\s*$)")
_SAID_CHOICE = re.compile(
    r"(?i:answer|choice|option)(?i:\s*(?:is|:|=))*\s*[\W_]{0,6}([A-J])(?![A-Za-z0-9_'])"
)


def normal(expression: str) -> str:
    r"""`expression` without what never changes its meaning: spaces, `\left`, `$`, a full stop."""
    text = _SIZING.sub("", _SPACING.sub("", expression))
    text = _MONEY.sub("", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return text.rstrip(".")


def equal(stated: str, gold: str) -> bool | None:
    """Whether two bare answers are equal, where that is plain to see.

    True: the same text, or the same number, in decimals or as a fraction. False: two different
    integers or fractions, decimals that are far apart, or digits in different bases. None: anything
    else; decimals may differ by rounding.
    """
    if _is_split(stated) or _is_split(gold):
        return True if stated.strip() == gold.strip() else None
    mine, theirs = normal(stated), normal(gold)
    if not mine or not theirs:
        return None
    if mine == theirs:
        return True
    if _IN_BASE.fullmatch(mine) and _IN_BASE.fullmatch(theirs):
        return _digits_and_base(mine) == _digits_and_base(theirs)
    mine, theirs = _ungrouped(mine), _ungrouped(theirs)
    are_exact = "." not in mine and "." not in theirs
    if max(len(mine), len(theirs)) > _MAX_DIGITS:
        are_whole = are_exact and _NUMBER.fullmatch(mine) and _NUMBER.fullmatch(theirs)
        return _without_zeros(mine) == _without_zeros(theirs) if are_whole else None
    first, second = _value(mine), _value(theirs)
    if first is None or second is None:
        return None
    if first == second:
        return True
    is_far = abs(first - second) > _FAR * max(1, abs(first), abs(second))
    return False if are_exact or is_far else None


def _is_split(expression: str) -> bool:
    """Whether a space between digits may have a meaning, as in `2 1/2`."""
    return bool(_SPLIT.search(expression)) and not _SPLIT_THOUSANDS.fullmatch(expression.strip())


def _value(number: str) -> Fraction | None:
    r"""Value of a decimal, of `\frac{1}{2}`, `\frac12` or `1/2`; None where it is none of them."""
    if _NUMBER.fullmatch(number):
        return Fraction(number)
    match = _FRACTION.fullmatch(number)
    if match is None:
        return None
    sign, above, below, above_digit, below_digit, over, under = match.groups()
    denominator = int(below or below_digit or under)
    if denominator == 0:
        return None
    value = Fraction(int(above or above_digit or over), denominator)
    return -value if sign else value


def choice_of(gold: str) -> str | None:
    """Letter of a multiple-choice answer, A to J; None where `gold` is no such letter."""
    match = _CHOICE_GOLD.fullmatch(_STYLE.sub(r"\1", gold).replace("$", "").strip())
    return match[1] if match else None


def stated_choice(box: str | None, text: str) -> str | None:
    """Letter that a response chose: the one its box begins with, else the last one announced."""
    if box is not None:
        match = _CHOICE.match(_STYLE.sub(r"\1", box).strip())
        return match[1].upper() if match else None
    said = _SAID_CHOICE.findall(text)
    return said[-1] if said else None


def _ungrouped(number: str) -> str:
    return _THOUSANDS.sub("", number) if _GROUPED.fullmatch(number) else number


def _digits_and_base(number: str) -> str:
    return re.sub(r"[{}]", "", number).lower().lstrip("0")


def _without_zeros(whole: str) -> str:
    sign = "-" if whole.startswith("-") else ""
    return sign + whole.lstrip("+-").lstrip("0")
