"""Python expressions, as sympy parses them, in text that a model wrote.

sympy evaluates what it parses, as Python: a string in it, an attribute, a call of a builtin are
executed. Here is read what can only be arithmetic. Not here: LaTeX (`_sympy_latex.py`).
"""

import re
from collections.abc import Sequence
from typing import Any

from sympy.parsing.sympy_parser import parse_expr, standard_transformations

_WORD = re.compile(r"[^\W\d]\w*")
_READABLE = (
    "sqrt sin cos tan cot sec csc asin acos atan sinh cosh tanh log ln exp pi oo abs max min "
    "factorial binomial gcd lcm alpha beta gamma theta"
)
_CODE = re.compile(r"\.\s*[^\W\d]|[\"'\[{:;=@`\\]|__")


def parse_arithmetic(
    text: str, rules: Sequence[Any] = standard_transformations, *, known_words: bool = True
) -> Any:  # noqa: ANN401 - sympy's expressions have no common type
    """What sympy makes of `text`.

    Args:
        text: an expression.
        rules: sympy's transformations.
        known_words: refuse words of several letters that name no elementary function.

    Raises:
        ValueError: it may be more than arithmetic. Odd input raises other errors, too.
    """
    words = _WORD.findall(text) if known_words else []
    if _CODE.search(text) or not all(len(one) == 1 or one in _READABLE.split() for one in words):
        raise ValueError("not arithmetic")
    return parse_expr(text, transformations=tuple(rules))
