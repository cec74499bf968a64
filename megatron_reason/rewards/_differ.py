"""Expressions that are seen to differ by their values, before sympy simplifies their difference.

What differs at one point is not equal, and evaluating is cheaper than simplifying: a tenth of a
second and more for a formula of some letters. Used inside of math-verify, in front of its symbolic
comparison, which is asked wherever no difference is seen. Not here: the other rules of that
library.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

from math_verify import grader
from sympy import (
    Basic,
    Derivative,
    Expr,
    Float,
    Integral,
    Limit,
    MatrixExpr,
    Product,
    Rational,
    Sum,
)
from sympy.core.function import AppliedUndef

_OPEN = (Sum, Product, Integral, Derivative, Limit, AppliedUndef)
"""Their values are not to be had for the asking."""
_DIGITS = 15
_RELATIVE = 1e-6
_GOLDEN = 0.6180339887498949

_library: Any = grader


def differ(first: object, second: object) -> bool:
    """Whether two expressions have clearly different values where their symbols have some values.

    False where that cannot be told: they may differ all the same.
    """
    if isinstance(first, Rational) and isinstance(second, Rational):
        return first != second
    if not (_is_plain(first) and _is_plain(second)):
        return False
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    # Positive, irregular, and no symbol like another.
    point: dict[Basic, Basic | float] = {
        symbol: Float(0.5 + (index * _GOLDEN) % 1, _DIGITS)
        for index, symbol in enumerate(symbols, start=1)
    }
    mine, theirs = _value(first, point), _value(second, point)
    if mine is None or theirs is None:
        return False
    return abs(mine - theirs) > _RELATIVE * max(1.0, abs(mine), abs(theirs))


@contextmanager
def values_first() -> Iterator[None]:
    """Let math-verify look at values before it simplifies."""
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


def _is_plain(expression: object) -> TypeGuard[Expr]:
    return (
        isinstance(expression, Expr)
        and not isinstance(expression, MatrixExpr)
        and not expression.has(*_OPEN)
    )


def _value(expression: Expr, point: dict[Basic, Basic | float]) -> complex | None:
    """Its value; None where it has none that is finite."""
    try:
        value = complex(expression.evalf(_DIGITS, subs=point))
    except (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError):
        return None
    return value if abs(value) < float("inf") else None
