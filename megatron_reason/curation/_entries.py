"""What every source of `ingest` yields: a problem and the responses that came with it.

Also how repeated texts and contradictory answers are known again in little memory. Not here: where
entries come from (`_readers.py`, `_reasoning_gym.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

from megatron_reason.schema.records import Problem


@dataclass(frozen=True)
class GivenResponse:
    """A response as the source has it."""

    text: str
    generator: str
    """Who or what wrote it."""


@dataclass(frozen=True)
class Entry:
    """One row of a source."""

    problem: Problem
    responses: tuple[GivenResponse, ...]
    row_id: str = ""
    """The source's own identifier, if it has one."""


class RowError(ValueError):
    """A row that cannot become an entry.

    Args:
        reason: short phrase that the quarantine groups by.
        detail: what exactly was found.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def hash64(*texts: str) -> int:
    """64 bits that stand for `texts`, to recognise repeated ones by in little memory.

    Raises:
        RowError: a text that is not Unicode, such as one with half of a surrogate pair.
    """
    try:
        content = b"\x1f".join(text.encode() for text in texts)
    except UnicodeEncodeError as error:
        raise RowError("text is not Unicode", str(error)) from error
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")


class FirstAnswers:
    """Knows questions again that come with another answer than they came with first."""

    def __init__(self) -> None:
        self._answers: dict[int, int] = {}

    def contradict(self, question: Iterable[str], answer: str) -> bool:
        """Whether `answer` is not the first one to `question`, the texts of its messages."""
        key = hash64(" ".join(answer.split()))
        return self._answers.setdefault(hash64(*question), key) != key
