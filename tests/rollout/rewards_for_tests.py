"""Rewards for the tests of the loop: random models get no sum right, but any of them can be odd."""

import time

from megatron_reason.rewards.base import REWARDS, reward, verdict
from megatron_reason.schema.records import Status, Verdict


def _parity(response: str, answer: str) -> Verdict:
    return verdict(Status.OK if sum(response.encode()) % 2 else Status.WRONG, response[:8])


def _breaks(response: str, answer: str) -> Verdict:
    if sum(response.encode()) % 3 == 0:
        raise ZeroDivisionError("a reward function of a user's")
    return _parity(response, answer)


def _hangs(response: str, answer: str) -> Verdict:
    if sum(response.encode()) % 3 == 0:
        time.sleep(60)
    return _parity(response, answer)


def _nan(response: str, answer: str) -> Verdict:
    return Verdict(float("nan"), Status.OK)


def _zero(response: str, answer: str) -> Verdict:
    return verdict(Status.WRONG)


def _slow(response: str, answer: str) -> Verdict:
    time.sleep(0.05)
    return _parity(response, answer)


FOR_TESTS = {
    "parity": _parity, "breaks": _breaks, "hangs": _hangs, "nan": _nan, "zero": _zero,
    "slow": _slow,
}  # fmt: skip
for _name, _grade in FOR_TESTS.items():
    if f"{_name}_for_tests" not in REWARDS.names():
        reward(f"{_name}_for_tests")(_grade)
