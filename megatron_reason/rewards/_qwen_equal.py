r"""Equality of answers in normal form, as Qwen2.5-Math's harness has it.

Source: the evaluation released with Qwen2.5-Math (arXiv 2409.12122). Numbers are equal within a
ten-thousandth, and times or over a hundred as well, for percentages; commas in them do not count,
so that `1,2` is 12. sympy's parsers have the last word. They read the beginning that they can and
leave the rest: `x,2` and `x,3` are equal. Not here: the normal form (`_qwen_normal.py`).
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from math import isclose
from typing import Any

from latex2sympy2_extended import latex2sympy
from sympy import N, simplify

from megatron_reason.rewards._arithmetic import parse_arithmetic
from megatron_reason.rewards._sympy_latex import parse_latex

_CHOICES = frozenset("ABCDE")
_CHOICE = re.compile(r"\b[A-E]\b")
_LISTED = re.compile(r"[(\[].+[)\]]")
_BRACED = re.compile(r"\{.*,.*\}")
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}(?P<rows>.*)\\end\{[pb]matrix\}", re.DOTALL)
_TOLERANCE = 1e-4
_LONGEST_LABEL = 2


def equal(stated: str, gold: str) -> bool:
    """Whether two answers in normal form are equal."""
    if stated.strip().lower() == gold.strip().lower():
        return True
    if gold in _CHOICES and _choice(stated) == gold:
        return True
    if (near := _are_near(stated, gold)) is not None:
        return near
    if not stated:
        return False
    stated, gold = stated.strip(), gold.strip()
    if "pmatrix" in stated and "pmatrix" not in gold:
        gold = _as_matrix(gold)
    if _without_brackets(stated, gold) or _equal_parts(stated, gold):
        return True
    return _equal_sides(stated, gold)


def _choice(answer: str) -> str:
    letters = _CHOICE.findall(answer.upper())
    return letters[-1] if letters else ""


def _are_near(stated: str, gold: str) -> bool | None:
    """Whether two numbers are close; None where one of the answers is no number."""
    mine, theirs = _number(stated), _number(gold)
    if mine is None or theirs is None:
        return None
    return any(_is_close(mine, wanted) for wanted in (theirs / 100, theirs, theirs * 100))


def _number(text: str) -> float | None:
    digits = text.replace(",", "")
    with contextlib.suppress(ValueError):
        return float(digits)
    with contextlib.suppress(ValueError):
        percent = digits.removesuffix("%")
        return float(percent.removesuffix("\\")) / 100 if percent != digits else None
    return None


def _is_close(mine: float, theirs: float) -> bool:
    return isclose(theirs, mine, rel_tol=_TOLERANCE)


def _as_matrix(gold: str) -> str:
    rows = [found.strip("{}").replace(",", "\\") for found in _BRACED.findall(gold)]
    return ", ".join(f"\\begin{{pmatrix}}{row}\\end{{pmatrix}}" for row in rows)


def _without_brackets(stated: str, gold: str) -> bool:
    """Whether the two are one text without braces and parentheses, and outer brackets of one."""
    is_square = _is_in(stated, "[]") and not _is_in(gold, "()", either=True)
    is_round = _is_in(stated, "()") and not _is_in(gold, "[]", either=True)
    if is_square or is_round:
        stated, gold = stated.strip("[]()"), gold.strip("[]()")
    bare = str.maketrans("", "", "{}()")
    return stated.translate(bare).lower() == gold.translate(bare).lower()


def _is_in(text: str, brackets: str, *, either: bool = False) -> bool:
    begins = text.startswith(brackets[0])
    return begins if either else begins and text.endswith(brackets[1])


def _equal_parts(stated: str, gold: str) -> bool:
    """Whether both are lists, or matrices, of equal elements."""
    if _LISTED.match(stated) and _LISTED.match(gold):
        mine, theirs = stated[1:-1].split(","), gold[1:-1].split(",")
        if len(mine) == len(theirs) and all(map(equal, mine, theirs)):
            return True
    first, second = _MATRIX.fullmatch(stated), _MATRIX.fullmatch(gold)
    if first is None or second is None:
        return False
    rows, wanted = _rows(first["rows"]), _rows(second["rows"])
    if [len(row) for row in rows] != [len(row) for row in wanted]:
        return False
    return all(all(map(equal, *pair)) for pair in zip(rows, wanted, strict=True))


def _rows(matrix: str) -> list[list[str]]:
    return [row.strip().split("&") for row in matrix.split("\\\\") if row.strip()]


def _equal_sides(stated: str, gold: str) -> bool:
    """Equality by sympy, of equations by the difference of their sides first."""
    mine, theirs = stated.split("="), gold.split("=")
    match len(mine), len(theirs):
        case 2, 2:
            first, second = _difference(mine), _difference(theirs)
            by_sides = _equal_symbols(first, second) or _equal_symbols(f"-({first})", second)
        case 2, 1 if len(mine[0].strip()) <= _LONGEST_LABEL:
            by_sides = equal(mine[1], gold)
        case 1, 2 if len(theirs[0].strip()) <= _LONGEST_LABEL:
            by_sides = equal(stated, theirs[1])
        case _:
            by_sides = False
    return by_sides or _equal_symbols(stated, gold)


def _difference(sides: list[str]) -> str:
    return f"{sides[0].strip()} - ({sides[1].strip()})"


def _equal_symbols(stated: str, gold: str) -> bool:
    mine, theirs = _read(stated), _read(gold)
    if isinstance(mine, str) or isinstance(theirs, str):
        # sympy would read a text as Python, and execute it.
        return str(mine) == str(theirs)
    return any(_holds(test) for test in _tests(mine, theirs))


def _tests(mine: Any, theirs: Any) -> Iterator[Callable[[], object]]:  # noqa: ANN401 - sympy or text
    yield lambda: str(mine) == str(theirs) or mine == theirs
    yield lambda: mine.equals(theirs) or simplify(mine - theirs) == 0
    yield lambda: abs(mine.lhs - mine.rhs).equals(abs(theirs.lhs - theirs.rhs))
    yield lambda: _is_close(float(N(mine)), float(N(theirs)))
    yield lambda: mine.shape == theirs.shape and _rounded(mine).equals(_rounded(theirs))


def _rounded(matrix: Any) -> Any:  # noqa: ANN401 - a matrix of sympy's, without types
    return matrix.applyfunc(lambda entry: round(entry, 3))


def _holds(test: Callable[[], object]) -> bool:
    try:
        return bool(test())
    except Exception:  # noqa: BLE001 - what is not made for a test raises anything; the next decides
        return False


def _read(text: str) -> Any:  # noqa: ANN401 - sympy, or the text where no parser reads it
    for parse in (parse_latex, parse_arithmetic, latex2sympy):
        for spelling in (text.replace("\\\\", "\\"), text):
            try:
                return parse(spelling)
            except Exception:  # noqa: BLE001 - parsers fail in their own ways; the next one tries
                continue
    return text
