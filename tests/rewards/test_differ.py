"""Values that differ: never those of equal expressions, and math-verify's verdicts stay."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import grader, parse, verify
from sympy import (
    Abs,
    Expr,
    Float,
    Function,
    I,
    Integral,
    Matrix,
    Rational,
    acos,
    asin,
    cos,
    exp,
    floor,
    log,
    pi,
    simplify,
    sin,
    sqrt,
    symbols,
    zoo,
)

from megatron_reason.rewards._differ import differ, values_first

x, y = symbols("x y")
LEAVES = st.sampled_from([x, y, Rational(1, 2), Rational(3), Rational(-2), pi, Float(0.25)])


def _grown(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    both = st.tuples(inner, inner)
    return st.one_of(
        both.map(lambda pair: pair[0] + pair[1]),
        both.map(lambda pair: pair[0] * pair[1]),
        both.map(lambda pair: pair[0] / (pair[1] ** 2 + 1)),
        inner.map(lambda one: one**2),
        inner.map(sin),
        inner.map(lambda one: exp(-(one**2))),
        inner.map(lambda one: sqrt(one**2)),
    )


EXPRESSIONS = st.recursive(LEAVES, _grown, max_leaves=5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(EXPRESSIONS, EXPRESSIONS)
def test_what_simplifies_to_nothing_never_differs(first: Expr, second: Expr):
    if differ(first, second):
        assert simplify(first - second) != 0
    assert not differ(first, first.expand())
    assert not differ(first + second, second + first)


def nest(depth: int) -> Expr:
    """Deeper than Python's stack."""
    found: Expr = x
    for _ in range(depth):
        found = sin(found, evaluate=False)
    return found


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (Rational(1, 3), Rational(1, 2), True),
        (Rational(1, 2), Rational(1, 2), False),
        (x, y, True),
        (x + y, x - y, True),
        ((x + y) ** 2, x**2 + 2 * x * y + y**2, False),
        (sin(x) ** 2 + cos(x) ** 2, Rational(1), False),
        (sqrt(x**2), x, False),
        (log(x * y), log(x) + log(y), False),
        (exp(x), exp(-x), True),
        (Abs(x), x + Rational(1), True),
        (sqrt(-x * x), I * x, False),
        (log(-x), log(x) + I * pi, False),
        (asin(x / 3), acos(x / 3), True),
        (sqrt(-1) * x, x, True),
        # What has no value there, or none that is known, is left to simplification.
        (zoo, x, False),
        (Function("f")(x), x, False),
        (Integral(sin(x), (x, 0, 1)), Rational(7), False),
        (Matrix([[1]]), Matrix([[2]]), False),
        (sin(exp(exp(exp(x + 3)))), x + 1, False),
        (floor(x ** (10**9)), x + 1, False),
        (nest(2000), y, False),
        # Doubles would lose the x.
        (Float(10) ** 20 + x - Float(10) ** 20, x, False),
        ("5", "6", False),
    ],
)
def test_differ(first, second, expected):
    assert differ(first, second) is expected


@pytest.mark.parametrize(
    ("gold", "stated"),
    [
        (r"$\frac{x}{7}+\frac{2}{7}$", r"$\frac{x+2}{7}$"),
        (r"$e^{-x} - e^{-y}$", r"$e^{-x} + e^{-y}$"),
        (r"$\sin^2 x$", r"$1 - \cos^2 x$"),
        (r"$\{1, 2\}$", r"$\{2, 3\}$"),
        (r"$(x, 1)$", r"$(y, 1)$"),
        (r"$x < 2$", r"$x < 3$"),
        ("$9\\%$", "$9$"),
        ("$0.333333$", r"$\frac{1}{3}$"),
    ],
)
def test_verdicts_are_those_of_the_library_alone(gold, stated):
    parsed = [parse(text, parsing_timeout=None) for text in (gold, stated)]
    alone = verify(*parsed, timeout_seconds=None)
    asked = grader.sympy_symbolic_eq
    with values_first():
        assert grader.sympy_symbolic_eq is not asked
        assert verify(*parsed, timeout_seconds=None) == alone
    assert grader.sympy_symbolic_eq is asked


def test_threads_leave_the_library_as_it_was():
    asked = grader.sympy_symbolic_eq

    def use() -> None:
        for _ in range(50):
            with values_first():
                time.sleep(0)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert grader.sympy_symbolic_eq is asked
