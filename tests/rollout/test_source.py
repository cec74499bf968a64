"""A batch that a checkpoint holds is the batch that was made."""

import math
from dataclasses import replace

import pytest

from megatron_reason.rollout.pools import HardPool
from megatron_reason.rollout.source import Batch, Position
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.metrics import StepMetrics

ROLLOUT = TokenizedSample(
    "0-a/0", Role.ROLLOUT, (5, 6, 7, 8), 2, group="0-a", advantage=-1 / 3, is_correct=True,
    coef=0.1, rollout_logprobs=(-1 / 3, -2e-308),
)  # fmt: skip
BATCH = Batch(
    updates=((ROLLOUT, TokenizedSample("d", Role.DEMO, (1, 2), 1)), ()),
    after=Position(4, 12, HardPool(("b", "ä")), {Role.DEMO: 3}),
    version=2,
    metrics=StepMetrics({"reward/mean": (0.1, 3.0)}),
)


def test_a_batch_is_read_as_it_was_written() -> None:
    assert Batch.from_json(BATCH.to_json()) == BATCH


def test_log_probs_that_are_not_finite_are_kept() -> None:
    odd = replace(ROLLOUT, rollout_logprobs=(-math.inf, math.nan))
    read = Batch.from_json(replace(BATCH, updates=((odd,),)).to_json())
    first, second = read.updates[0][0].rollout_logprobs or ()
    assert first == -math.inf
    assert math.isnan(second)


def test_what_another_version_wrote_is_refused() -> None:
    with pytest.raises(ValueError, match="version"):
        Batch.from_json(BATCH.to_json().replace('"version"', '"age"'))
