import math

import pytest

from megatron_reason.engine.update import check_batch
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import TrainState

STATE = TrainState(4, 10)


def test_a_batch_without_supervised_tokens_is_refused() -> None:
    masked = TokenizedSample("m", Role.DEMO, (1, 2, 3), 3)
    for samples in ([], [masked, masked]):
        with pytest.raises(DataError, match="update 5") as caught:
            check_batch(samples, STATE)
        assert f"none of its {len(samples)} sequences" in str(caught.value)
    check_batch([masked, TokenizedSample("x", Role.DEMO, (1, 2, 3), 2)], STATE)


@pytest.mark.parametrize(
    "bad",
    [{"advantage": math.nan}, {"coef": math.inf}, {"old_logprobs": (-1.0, -math.inf)},
     {"rollout_logprobs": (math.nan, 0.0)}],
)  # fmt: skip
def test_constants_that_are_not_finite_are_named(bad: dict[str, object]) -> None:
    fine = TokenizedSample("fine", Role.ROLLOUT, (1, 2, 3), 1, old_logprobs=(-1.0, -2.0))
    wrong = TokenizedSample("wrong", Role.ROLLOUT, (1, 2, 3), 1, **bad)
    with pytest.raises(DataError, match="sequence wrong"):
        check_batch([fine, wrong], STATE)
    check_batch([fine], STATE)
