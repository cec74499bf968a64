"""Flaws of a text that papers filter by. Not here: lengths, verdicts, overlap (`filter.py`).

LESE's filters are "no hyperlinks" and "no mixed Chinese-English"; it gives no definitions. Ours: an
address with a scheme, a `www.` or a Markdown link; and Han characters beside words of two and more
Latin letters, LaTeX commands and tags such as `<think>` aside.
"""

import re
from typing import Literal

TextFlaw = Literal["hyperlink", "mixed_languages"]

_HYPERLINK = re.compile(r"https?://|\bwww\.\w|\]\([a-z]+:|<a\s+href", re.IGNORECASE)
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_TAG = re.compile(r"</?[A-Za-z]\w*>")
_LATIN_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def has_hyperlink(text: str) -> bool:
    """Whether `text` holds an address of the web."""
    return _HYPERLINK.search(text) is not None


def mixes_languages(text: str) -> bool:
    r"""Whether `text` holds Han characters and English words; `\frac`, `<p>` and `x` are none."""
    return _HAN.search(text) is not None and _LATIN_WORD.search(_TAG.sub("", text)) is not None


def text_objection(text: str, refused: tuple[TextFlaw, ...]) -> str | None:
    """First of the refused flaws that `text` has, or None."""
    if "hyperlink" in refused and has_hyperlink(text):
        return "hyperlink"
    if "mixed_languages" in refused and mixes_languages(text):
        return "mixed languages"
    return None
