import pytest

from megatron_reason.schema.method import create_method
from tests import golden
from tests.loss import credited


@golden.cases("hpt")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


@pytest.mark.parametrize(
    ("gate", "num_solved", "is_reinforced"),
    [(0, 0, False), (0, 1, True), (2, 2, False), (2, 3, True), (-1, 0, True), (8, 8, False)],
)
def test_the_gate(gate: int, num_solved: int, is_reinforced: bool) -> None:
    rewards = (1.0,) * num_solved + (0.0,) * (8 - num_solved)
    credit = credited(create_method("hpt", gate=gate), rewards, demo_reward=1)
    assert (credit.keep_rollouts, credit.keep_demo) == (is_reinforced, not is_reinforced)
