r"""Multiple choice: which options a problem has, and their order drawn anew by a seed.

A model that prefers the first letter is found out by options in random order. The letter of the
right option moves with it. Not here: how a chosen letter is read from a response (`rewards`).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LETTERS = "ABCDEFGHIJ"
_LABEL = re.compile(r"(?m)^[ \t]*\(?([A-J]|\d)[).:][ \t]+")
_POSITIONAL = re.compile(
    r"(?i:\b(?:above|below|both|neither)\b)|\b[A-J1-5]\)?\s+(?:and|or|nor|&)\s+\(?[A-J1-5]\b"
)


@dataclass(frozen=True)
class Choice:
    """A question, its options, and which of them is right."""

    stem: str
    options: tuple[str, ...]
    right: int
    """Index of the right option."""

    def shuffled(self, seed: int) -> "Choice":
        """The same with its options in an order that depends on the seed and the question alone.

        Options that speak of others by place ("both A and B", "all of the above") keep the order.
        """
        if any(_POSITIONAL.search(option) for option in self.options):
            return self
        order = list(range(len(self.options)))
        random.Random(f"{seed}\x1f{self.stem}").shuffle(order)
        options = tuple(self.options[index] for index in order)
        return Choice(self.stem, options, order.index(self.right))

    @property
    def text(self) -> str:
        """The question with its lettered options below."""
        lines = [f"{letter}) {text}" for letter, text in zip(LETTERS, self.options, strict=False)]
        return "\n".join([f"{self.stem}\n", *lines])

    @property
    def letter(self) -> str:
        """Letter of the right option."""
        return LETTERS[self.right]


def read_choice(problem: str, answer: str | float, row: Mapping[str, Any]) -> Choice:
    r"""Options of a row: its list `options` or `choices`, else the lettered lines of its problem.

    Args:
        problem: the question, with or without its options.
        answer: letter, digit or text of the right option; a whole number that is no text is the
            label of one, or else its index from 0, as in the hub's MMLU.
        row: all of the row.

    Raises:
        ValueError: fewer than two options or more than ten, or an answer that is none of them.
    """
    listed = row.get("options", row.get("choices"))
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        stem, options = problem.strip(), [str(option).strip() for option in listed]
        labels = list(LETTERS[: len(options)])
    else:
        stem, labels, options = _split(problem)
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options")
    return Choice(stem, tuple(options), _index(answer, labels, options))


def _split(problem: str) -> tuple[str, list[str], list[str]]:
    """Question, labels and options of a text that ends with labelled lines in order."""
    matches = list(_LABEL.finditer(problem))
    for begin in reversed(range(len(matches))):
        run = matches[begin:]
        labels = [match[1] for match in run]
        if labels in (list(LETTERS[: len(run)]), [str(i + 1) for i in range(len(run))]):
            ends = [*(match.start() for match in run[1:]), len(problem)]
            texts = [
                problem[match.end() : end].strip() for match, end in zip(run, ends, strict=True)
            ]
            return problem[: run[0].start()].strip(), labels, texts
    return problem, [], []


def _index(answer: str | float, labels: Sequence[str], options: Sequence[str]) -> int:
    text = str(answer).strip()
    if text in labels:
        return labels.index(text)
    if isinstance(answer, int):
        if 0 <= answer < len(options):
            return answer
        raise ValueError(f"the answer {answer} is no index of {len(options)} options")
    if text in options:
        return options.index(text)
    raise ValueError(f"the answer {text!r} is none of {', '.join(labels)}")
