"""What every source of `ingest` yields: a problem and the responses that came with it.

Not here: where entries come from (`_readers.py`, `_reasoning_gym.py`).
"""

from dataclasses import dataclass

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
