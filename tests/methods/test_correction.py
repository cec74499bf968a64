import math

import pytest

from megatron_reason.methods._correction import truncated_weight
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f

ROLLOUTS = (Role.ROLLOUT,) * 4


def test_golden_truncated_weights() -> None:
    batch = fixture_f.batch(ROLLOUTS)
    config = create_method("grpo", tis="token").config
    expected = [
        0.9048374180, 2, 1, 0.7408182207, 1.0512710964, 0.3011942119, 1.4918246976, 0.9801986733,
    ]  # fmt: skip
    weights = truncated_weight(batch.old_logprob_T, batch, config)
    assert weights.tolist() == pytest.approx(expected, abs=1e-9)


def test_sequence_weights_are_those_of_the_whole_response() -> None:
    batch = fixture_f.batch(ROLLOUTS)
    config = create_method("grpo", tis="sequence", tis_cap=10.0).config
    weights = truncated_weight(batch.old_logprob_T, batch, config)
    gaps = fixture_f.OLD - fixture_f.ROLLOUT
    assert weights[0] == weights[1] == pytest.approx(math.exp(float(gaps[:2].sum())))
    assert weights[5].item() == pytest.approx(math.exp(float(gaps[5])))
