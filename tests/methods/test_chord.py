import pytest
import torch

from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import TrainState, create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("chord")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


@pytest.mark.parametrize(
    ("update", "mu"),
    [(0, 0.9), (1, 0.8999475688), (50, 0.7755203820), (100, 0.475), (150, 0.1744796180),
     (199, 0.0500524312), (200, 0.05), (9999, 0.05)],
)  # fmt: skip
def test_golden_schedule(update: int, mu: float) -> None:
    assert create_method("chord").mu(update) == pytest.approx(mu, abs=1e-9)


def test_golden_advantages_over_rollouts_alone() -> None:
    credit = credited(create_method("chord"), (1, 0, 0))
    expected = (1.1546985384, -0.5773492692, -0.5773492692)
    assert credit.advantages == pytest.approx(expected, abs=1e-9)


SHIPPED = [(0, 0), (100, 0.25), (200, 0.5), (400, 0.26), (600, 0.02)]


@pytest.mark.parametrize(("update", "mu"), SHIPPED)
def test_golden_schedule_of_the_shipped_yaml(update: int, mu: float) -> None:
    method = create_method("chord", warmup_updates=200, decay_updates=400, peak=0.5, valley=0.02)
    assert method.mu(update) == pytest.approx(mu, abs=1e-9)


@pytest.mark.parametrize("mean", ["token_mean", "seq_mean_token_mean", "chunk_mean_token_mean"])
@pytest.mark.parametrize(("mu", "other"), [(0.0, "grpo"), (1.0, "sft")])
def test_at_either_end_it_is_one_of_its_parts(mu: float, other: str, mean: str) -> None:
    roles = (Role.ROLLOUT, Role.ROLLOUT, Role.ROLLOUT, Role.DEMO)
    batch = fixture_f.batch(roles, advantages=(1.0, -0.5, -0.5, 0.0))
    settings = {"peak": mu, "valley": mu, "decay_updates": 0}
    settings |= {"mean": mean, "sft_mean": mean, "chunk": 2}
    loss, gradient, _ = run(create_method("chord", **settings), batch)
    part = create_method(other, mean=mean, chunk=2)
    expected_loss, expected, _ = run(part, batch)
    assert loss == pytest.approx(expected_loss, abs=1e-15)
    torch.testing.assert_close(gradient, expected, atol=1e-15, rtol=0)


def test_it_takes_expert_data_beside_rollouts() -> None:
    plan = create_method("chord").plan(TrainState(0, 1))
    assert (plan.counts[Role.DEMO], plan.prompts, plan.rollouts_per_prompt) == (64, 32, 8)
