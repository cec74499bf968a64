"""Expressions that are seen to differ by their values, before sympy simplifies their difference.

What clearly differs at one point is not equal, and evaluating takes a thousandth of a second where
simplifying takes a tenth and more. Values are those of doubles, computed once for each part of an
expression, so that time is bounded; where they could be inexact, nothing is said. Used inside of
math-verify, in front of its symbolic comparison, which is asked wherever no difference is seen. Not
here: the other rules of that library.
"""

import cmath
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import sympy
from math_verify import grader
from sympy import Add, Basic, Expr, Float, Mul, NumberSymbol, Pow, Rational, UnevaluatedExpr

_FUNCTIONS: Mapping[Any, Callable[[complex], complex]] = {
    sympy.exp: cmath.exp, sympy.log: cmath.log, sympy.Abs: abs, sympy.sin: cmath.sin,
    sympy.cos: cmath.cos, sympy.tan: cmath.tan, sympy.sinh: cmath.sinh, sympy.cosh: cmath.cosh,
    sympy.tanh: cmath.tanh, sympy.asin: cmath.asin, sympy.acos: cmath.acos,
    sympy.atan: cmath.atan,
}  # fmt: skip
_RELATIVE = 1e-4
_MOST, _LEAST = 1e4, 1e-2
"""Sizes of parts between which doubles stay far more exact than `_RELATIVE`."""
_ROUNDING = 1e-12
_GOLDEN = 0.6180339887498949

_library: Any = grader
_lock = threading.RLock()


class _UnknownError(Exception):
    """A value that doubles do not give, or not exactly enough."""


def differ(first: object, second: object) -> bool:
    """Whether two expressions have clearly different values where their symbols have some values.

    False where that cannot be told: they may differ all the same.
    """
    if isinstance(first, Rational) and isinstance(second, Rational):
        return first != second
    if not (isinstance(first, Expr) and isinstance(second, Expr)):
        return False
    try:
        point = _point(first.free_symbols | second.free_symbols)
        mine, theirs = _value(first, point), _value(second, point)
    except (_UnknownError, ArithmeticError, ValueError, RecursionError):
        return False
    return abs(mine - theirs) > _RELATIVE * max(1.0, abs(mine), abs(theirs))


def _point(symbols: Iterable[Basic]) -> dict[Basic, complex]:
    """Values of symbols: positive, irregular, and no two alike."""
    return {
        symbol: complex(0.5 + (index * _GOLDEN) % 1)
        for index, symbol in enumerate(sorted(symbols, key=str), start=1)
    }


@contextmanager
def values_first() -> Iterator[None]:
    """Let math-verify look at values before it simplifies; one thread at a time."""
    with _lock:
        asked = _library.sympy_symbolic_eq
        _library.sympy_symbolic_eq = _unless_different(asked)
        try:
            yield
        finally:
            _library.sympy_symbolic_eq = asked


def _unless_different(asked: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(first: object, second: object) -> bool:
        return not differ(first, second) and asked(first, second)

    return compare


def _value(part: Basic, point: dict[Basic, complex]) -> complex:
    """The value of a part, kept in `point`.

    Raises:
        _UnknownError: it has none that is known exactly enough.
        ArithmeticError, ValueError: it has none at all.
    """
    if part not in point:
        value = _computed(part, point)
        if abs(value.imag) <= _ROUNDING * abs(value):
            # Roots and logarithms of negative numbers turn with the sign of nothing.
            value = complex(value.real, 0.0)
        # Also refuses what is not a number.
        if value and not _LEAST**3 <= abs(value) <= _MOST:
            raise _UnknownError
        point[part] = value
    return point[part]


def _computed(part: Basic, point: dict[Basic, complex]) -> complex:
    if part is sympy.I:
        return 1j
    if isinstance(part, Rational | Float | NumberSymbol):
        return complex(part)
    if not isinstance(part, (Add, Mul, Pow, UnevaluatedExpr, *_FUNCTIONS)):
        raise _UnknownError
    values = [_value(one, point) for one in part.args]
    match part:
        case Add():
            return sum(values, 0j)
        case Mul():
            return _product(values)
        case Pow():
            return _power(*values)
        case UnevaluatedExpr():
            return values[0]
        case _:
            return _applied(part, values)


def _product(values: list[complex]) -> complex:
    product = 1 + 0j
    for value in values:
        product *= value
    return product


def _power(base: complex, exponent: complex) -> complex:
    if abs(base) < _LEAST:
        # A base that should be nothing, and is not by rounding, has roots and inverses that matter.
        raise _UnknownError
    return base**exponent


def _applied(part: Basic, values: list[complex]) -> complex:
    if len(values) != 1 or (part.func is sympy.log and abs(values[0]) < _LEAST):
        raise _UnknownError
    return complex(_FUNCTIONS[part.func](values[0]))
