"""What a reward is: a pure function from a response and the true answer to a `Verdict`.

A module of this room registers its function with `@reward("name")`; the pool's workers look it up
by that name, so nothing has to be pickled. A reward may hang or die on hostile text: deadlines are
the pool's business. Not here: any reward.
"""

from collections.abc import Callable

from megatron_reason.registry import Registry
from megatron_reason.schema.records import Status, Verdict

RewardFunction = Callable[[str, str], Verdict]
"""(response, answer) -> verdict; `elapsed_ms` is filled by the pool."""

REWARDS: Registry[RewardFunction] = Registry("reward", "megatron_reason.rewards")

FAILED_STATUSES = (Status.WRONG, Status.NO_ANSWER)
"""Statuses of a response that is known to be wrong; the other zeros say that checking it failed."""

MAX_EXTRACTED_CHARACTERS = 200


def reward(name: str) -> Callable[[RewardFunction], RewardFunction]:
    """Decorator: register a function as the reward `name`."""
    return REWARDS.register(name)


def verdict(status: Status, extracted: str = "") -> Verdict:
    """Binary verdict: score 1 for OK, 0 otherwise; an overlong `extracted` is cut."""
    return Verdict(float(status is Status.OK), status, extracted[:MAX_EXTRACTED_CHARACTERS])
