"""Finds arithmetic equations in prose ("48 clips / 2 = 24 clips") and keeps those that hold.

Not here: what is done with them (`_reasoning_gym.py`).
"""

import ast
import re
from dataclasses import dataclass
from fractions import Fraction

_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3})")
_CURRENCY = re.compile(r"[$€£¥]")
_TIMES = re.compile(r"(?<=[\d)])(\s*)x(\s*)(?=[\d(.])")
_WORDS = re.compile(r"/?[A-Za-z_]+(?:/[A-Za-z_]+)*")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")
_OPERAND = r"\(*\s*-?\d+(?:\.\d+)?\s*\)*"
_EQUATION = re.compile(
    rf"(?P<left>{_OPERAND}(?:\s*[-+*/]\s*{_OPERAND})+)\s*=\s*(?P<value>-?\d+(?:\.\d+)?)"
)
_RELATIVE_TOLERANCE = Fraction(1, 10**9)


@dataclass(frozen=True)
class Equation:
    """An equation that was evaluated and holds."""

    left: str
    """The computation, with one space around each operator."""
    value_text: str
    """Its value, as the text gave it."""

    @property
    def text(self) -> str:
        """The whole equation."""
        return f"{self.left} = {self.value_text}"


def find_equations(prose: str) -> list[Equation]:
    """Equations of `prose` that hold, in order; units, currencies and names are left out.

    Percentages become divisions by 100. An equation that holds to 1e-9 counts, so that the rounding
    of floating-point decimals does no harm.
    """
    found: list[Equation] = []
    for line in prose.splitlines():
        for match in _EQUATION.finditer(_strip_units(line)):
            left, value_text = match["left"].strip(), match["value"]
            value = _evaluate(left)
            stated = Fraction(value_text)
            if value is None or abs(value - stated) > _RELATIVE_TOLERANCE * max(1, abs(stated)):
                continue
            if stated.denominator == 1:
                value_text = str(stated.numerator)
            found.append(Equation(_spaced(left), value_text))
    return found


def _strip_units(line: str) -> str:
    plain = (
        _CURRENCY.sub("", _THOUSANDS.sub("", line))
        .replace("÷", "/")
        .replace("\N{MULTIPLICATION SIGN}", "*")
    )
    plain = _WORDS.sub(" ", _TIMES.sub(r"\1*\2", plain))
    return _PERCENT.sub(r"\1 / 100", plain)


def _evaluate(expression: str) -> Fraction | None:
    """Value of + - * / and brackets; None for anything that cannot be computed."""
    try:
        return _value(ast.parse(expression, mode="eval").body, expression)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _value(node: ast.expr, source: str) -> Fraction:
    match node:
        case ast.Constant():
            return Fraction(ast.get_source_segment(source, node) or "")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, source)
        case ast.BinOp(left=left, op=operator, right=right):
            return _combine(operator, _value(left, source), _value(right, source))
        case _:
            raise ValueError(ast.dump(node))


def _combine(operator: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case _:
            raise ValueError(ast.dump(operator))


def _spaced(expression: str) -> str:
    spaced = re.sub(r"\s*([+*/])\s*", r" \1 ", expression)
    spaced = re.sub(r"(?<=[\d)])\s*-\s*", " - ", spaced)
    return re.sub(r"(?<=\()\s+|\s+(?=\))", "", re.sub(r" +", " ", spaced)).strip()
