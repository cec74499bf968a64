r"""Normal form of an answer of the MATH data set, as text: what DeepScaleR and Oat call mathd.

Source: the equivalence of Hendrycks et al. (arXiv 2103.03874), in the version of these graders. It
decides by text alone: `\frac12`, `1/2` and `0.5` become one text, `2/4` stays another. Not here:
equality by sympy (`_prm800k.py`).
"""

import re
from collections.abc import Callable

_TEXT = re.compile(r"\\text\{(?P<text>.+?)\}$")
_UNIT = "\\text{ "
_SLASH = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")
_LONGEST_LABEL = 2
_ARRAY = re.compile(r"\\begin\{array\}\{.*?\}")
_RELATIONS = (("\\neq", "\\ne"), ("\\leq", "\\le"), ("\\geq", "\\ge"))


def normal(answer: str, prepare: Callable[[str], str] = str) -> str:
    r"""The normal form.

    Args:
        answer: as stated in a box.
        prepare: further steps, once `\dfrac`, `\left` and the like are gone.

    Returns:
        Two answers are equal if their normal forms are. What has none, such as a `\frac` without
        anything behind it, stays as it is.
    """
    text = answer.strip()
    if wrapped := _TEXT.match(text):
        text = wrapped["text"].strip()
    try:
        return _without_marks(prepare(without_layout(text)))
    except ValueError:
        return text


def without_layout(text: str) -> str:
    r"""`text` without line breaks, `\!`, `\left`, `\right`, and sizes of fractions."""
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    return text.replace("\\left", "").replace("\\right", "")


def without_label(text: str) -> str:
    """`x=5` becomes `5`; what stands before the one `=` may have two characters."""
    label, *values = text.split("=")
    return values[0] if len(values) == 1 and len(label) <= _LONGEST_LABEL else text


def with_inner_zeros(text: str) -> str:
    """`.5` becomes `0.5` after a space and a brace."""
    return text.replace(" .", " 0.").replace("{.", "{0.")


def with_leading_zero(text: str) -> str:
    """`.5` becomes `0.5` at the beginning."""
    return f"0{text}" if text.startswith(".") else text


def with_one_spelling(text: str) -> str:
    r"""Arrays and bracketed matrices become `pmatrix`; `\neq` becomes `\ne`, and so on."""
    text = _ARRAY.sub(r"\\begin{pmatrix}", text).replace("\\end{array}", "\\end{pmatrix}")
    text = text.replace("bmatrix", "pmatrix")
    for before, after in _RELATIONS:
        text = text.replace(before, after)
    return text


def with_braces(text: str) -> str:
    r"""`\frac12` becomes `\frac{1}{2}`, `\frac1{72}` becomes `\frac{1}{72}`.

    Raises:
        ValueError: nothing stands behind a `\frac`.
    """
    head, *tails = text.split("\\frac")
    braced: list[str] = []
    for tail in tails:
        if not tail:
            raise ValueError("nothing behind a fraction")
        if tail[0] == "{":
            braced.append(tail)
        elif len(tail) == 1:
            return text
        elif tail[1] == "{":
            braced.append(f"{{{tail[0]}}}{tail[1:]}")
        else:
            braced.append(f"{{{tail[0]}}}{{{tail[1]}}}{tail[2:]}")
    return "\\frac".join([head, *braced])


def _without_marks(text: str) -> str:
    for mark in ("^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(mark, "")
    if _UNIT in text:
        text, *units = text.split(_UNIT)
        if len(units) > 1:
            raise ValueError("more than one unit")
    text = with_leading_zero(with_inner_zeros(text.replace("\\%", "")))
    text = without_label(text)
    text = with_braces(_with_braced_roots(text).replace(" ", ""))
    if text == "0.5":
        return "\\frac{1}{2}"
    slash = _SLASH.fullmatch(text)
    return f"\\frac{{{slash[1]}}}{{{slash[2]}}}" if slash else text


def _with_braced_roots(text: str) -> str:
    head, *tails = text.split("\\sqrt")
    if not all(tails):
        raise ValueError("nothing behind a root")
    braced = [tail if tail[0] == "{" else f"{{{tail[0]}}}{tail[1:]}" for tail in tails]
    return "\\sqrt".join([head, *braced])
