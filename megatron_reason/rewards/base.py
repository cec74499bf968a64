"""What a reward is: a pure function from a response and the true answer to a `Verdict`.

A module of this room registers its function with `@reward("name")`; the pool's workers look it up
by that name, so nothing has to be pickled. A reward may hang or die on hostile text: deadlines are
the pool's business. Not here: any reward.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from megatron_reason.errors import RewardError
from megatron_reason.registry import Registry
from megatron_reason.schema.records import Status, Verdict

RewardFunction = Callable[[str, str], Verdict]
"""(response, answer) -> verdict; `elapsed_ms` is filled by the pool."""


def _whole(response: str, answer: str) -> str:  # noqa: ARG001 - the answer decides elsewhere
    return response


def _undecided(response: str, answer: str) -> None:  # noqa: ARG001 - what most rewards know early
    return None


@dataclass(frozen=True)
class Reward:
    """A grading function, and what can be said of a response before it is called.

    The two helpers run in the caller's process: they are fast and bounded on any text whatever.
    """

    grade: RewardFunction
    """The verdict."""
    decisive: Callable[[str, str], str] = _whole
    """(response, answer) -> the part of the response that the verdict depends on. Taking it twice
    changes nothing, and equal parts get equal verdicts: answers are remembered by it."""
    quick: Callable[[str, str], Verdict | None] = _undecided
    """(decisive part, answer) -> the verdict of `grade` where it is plain to see, else None."""


REWARDS: Registry[Reward] = Registry("reward", "megatron_reason.rewards")

FAILED_STATUSES = (Status.WRONG, Status.NO_ANSWER)
"""Statuses of a response that is known to be wrong; the other zeros say that checking it failed."""

MAX_EXTRACTED_CHARACTERS = 200


def reward(
    name: str,
    *,
    decisive: Callable[[str, str], str] = _whole,
    quick: Callable[[str, str], Verdict | None] = _undecided,
) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator: register a function as the reward `name`; the helpers are those of `Reward`."""

    def enter(grade: RewardFunction) -> RewardFunction:
        REWARDS.register(name)(Reward(grade, decisive, quick))
        return grade

    return enter


def verdict(status: Status, extracted: str = "", gold: str = "") -> Verdict:
    """Binary verdict: score 1 for OK, 0 otherwise; overlong texts are cut."""
    return Verdict(
        float(status is Status.OK),
        status,
        extracted[:MAX_EXTRACTED_CHARACTERS],
        gold[:MAX_EXTRACTED_CHARACTERS],
    )


@dataclass(frozen=True)
class Limits:
    """From which share of failures on grading itself is held to be broken."""

    failed: float = 0.05
    """Largest share of timeouts and crashes."""
    unread: float = 0.5
    """Largest share of answers, given or true, that could not be read as what they should be."""
    from_answers: int = 200
    """Number of verdicts below which no share is judged."""


class StatusRates:
    """Counts verdicts by status and objects when grading, not the graded, seems to be at fault."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.counts: Counter[Status] = Counter()

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Count further verdicts."""
        self.counts.update(verdict.status for verdict in verdicts)

    def describe(self) -> str:
        """Shares in percent, of the statuses that occurred."""
        total = self.counts.total()
        shares = (
            f"{status} {100 * self.counts[status] / total:.2f} %"
            for status in Status
            if self.counts[status]
        )
        return f"{total} answers: {', '.join(shares)}" if total else "no answers"

    def check(self, where: str) -> None:
        """Stop when more failed than the limits allow.

        Raises:
            RewardError: too many timeouts and crashes, or too many unreadable answers.
        """
        total = self.counts.total()
        if total < self._limits.from_answers:
            return
        failed = (self.counts[Status.TIMEOUT] + self.counts[Status.CRASH]) / total
        if failed > self._limits.failed:
            raise RewardError(
                where,
                f"grading fails too often, more than {100 * self._limits.failed:.1f} % of the "
                f"time: {self.describe()}.",
                "Raise the deadline if the machine is busy; look at the answers that failed.",
            )
        if self.counts[Status.PARSE_ERROR] / total > self._limits.unread:
            raise RewardError(
                where,
                f"more than {100 * self._limits.unread:.1f} % of the answers cannot be read: "
                f"{self.describe()}.",
                "Check that the column 'answer' holds bare answers that this reward understands.",
            )
