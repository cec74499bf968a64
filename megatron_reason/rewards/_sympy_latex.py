r"""LaTeX parser of sympy, with the antlr that math-verify needs.

sympy's `parse_latex` refuses every antlr but 4.11 and raises ImportError; the parser behind it runs
with 4.13 as well, where math-verify reads `50\%` rightly. antlr then prints that the two versions
differ, which is kept from the user. Not here: other parsers (`_qwen_equal.py`).
"""

from contextlib import redirect_stdout
from typing import Any

from antlr4 import CommonTokenStream, InputStream
from sympy.parsing.latex import _parse_latex_antlr as sympy_antlr

_parts: Any = sympy_antlr


def parse_latex(text: str) -> object:
    """What sympy makes of `text`, or of the part at its beginning that can be read.

    Raises:
        LaTeXParsingError: no beginning can be read; odd input raises other errors, too.
    """
    listener = _parts.MathErrorListener(text.strip())
    with redirect_stdout(None):
        lexer = _parts.LaTeXLexer(InputStream(text.strip()))
        parser = _parts.LaTeXParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    return _parts.convert_relation(parser.math().relation())
