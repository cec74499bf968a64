import pytest

from megatron_reason.methods._rollout import group_advantages


def test_sample_standard_deviation_with_an_epsilon() -> None:
    assert group_advantages((1, 0), divide_by_std=True) == pytest.approx(
        (0.5 / (0.5**0.5 + 1e-6), -0.5 / (0.5**0.5 + 1e-6))
    )


def test_equal_rewards_teach_nothing_and_a_lone_one_is_itself() -> None:
    assert group_advantages((1, 1, 1), divide_by_std=True) == (0, 0, 0)
    assert group_advantages((0.7,), divide_by_std=True) == (0.7,)
    assert group_advantages((), divide_by_std=True) == ()
