r"""Which part of a response states its answer: after `</think>`, and there in the last `\boxed{}`.

Everything here is plain string work, linear in the length of the text and safe on any of it: it
runs in the caller's process. Not here: whether the answer is right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_OPENING, _CLOSING = "<think>", "</think>"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARK = re.compile(r"\\.|[{}]", re.DOTALL)

_JOINED = re.compile(r"[\s$.)\]\\]*(?:,|;|\band\b|\bor\b)[\s$(\[\\]*(?:and|or)?[\s$(\[\\]*")

MAX_CONCLUSION = 20_000
"""Characters at the end of a response in which its answer is looked for."""
MAX_ANSWER = 10_000
"""Characters of the longest answer in a box; longer ones are no answers."""
_MOST_BOXES = 16


def conclusion(response: str) -> str:
    """Text after the last `</think>`; all of it where there are no such tags.

    A response that is still thinking when it ends has concluded nothing: it gives an empty text.
    """
    thought, closing, rest = response.rpartition(_CLOSING)
    if not closing and _OPENING in response:
        return ""
    if closing and _OPENING in rest and rest.count(_OPENING) > thought.count(_CLOSING):
        return ""
    return rest[-MAX_CONCLUSION:]


@dataclass(frozen=True)
class Box:
    """One complete box of a text."""

    content: str
    begin: int
    end: int


def boxes_of(text: str) -> list[Box]:
    r"""The last complete `\boxed{...}` of `text`, and those before it, last first.

    Braces may be nested; `\{` and `\}` are no braces. Boxes that never close, or that hold more
    than `MAX_ANSWER` characters, are passed over.
    """
    matches = list(_BOX.finditer(text))[-_MOST_BOXES:]
    found = [(match, _closing(text, match.end())) for match in reversed(matches)]
    return [
        Box(text[match.end() : end], match.start(), end + 1)
        for match, end in found
        if end is not None
    ]


def are_one_answer(text: str, boxes: Sequence[Box]) -> bool:
    """Whether the last two of several boxes state one answer together, as "A or B" does."""
    return _JOINED.fullmatch(text, boxes[1].end, boxes[0].begin) is not None


def has_box(text: str) -> bool:
    """Whether a box begins in `text`, complete or not."""
    return _BOX.search(text) is not None


def _closing(text: str, start: int) -> int | None:
    """Index of the brace that closes the one before `start`."""
    depth = 1
    for mark in _MARK.finditer(text, start, start + MAX_ANSWER + 1):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth -= 1
            if depth == 0:
                return mark.start()
    return None
