import pytest
import torch

from megatron_reason.schema.batch import Role, Stat
from megatron_reason.schema.credit import GroupOutcome
from megatron_reason.schema.method import Frozen, TrainState, create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("grpo", "dapo", "dr.grpo", "gspo")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_golden_advantages() -> None:
    assert credited(create_method("grpo"), (1, 0, 0, 1)).advantages == pytest.approx(
        golden.STD_ADVANTAGES, abs=1e-10
    )
    centred = credited(create_method("grpo", divide_by_std=False), (1, 0, 0, 1))
    assert centred.advantages == (0.5, -0.5, -0.5, 0.5)
    assert credited(create_method("grpo"), (1,)).advantages == (1,)


def test_on_policy_it_is_reinforce_with_a_loss_of_zero() -> None:
    batch = fixture_f.batch((Role.ROLLOUT,) * 2, (0, 3), advantages=(1.0, -1.0))
    method = golden.published("grpo", old_policy="current")
    loss, gradient, _ = run(method, batch, keep=(0, 3))
    assert loss == pytest.approx(0.0, abs=1e-15)
    demos = fixture_f.batch((Role.DEMO,) * 2, (0, 3))
    _, likelihood, _ = run(create_method("sft", mean="token_mean"), demos, keep=(0, 3))
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    torch.testing.assert_close(gradient, signs[:, None] * likelihood, atol=1e-15, rtol=0)


def test_dapo_drops_groups_that_teach_nothing() -> None:
    method = create_method("grpo", drop_equal_groups=True)
    assert not credited(method, (1, 1, 1)).keep_rollouts
    assert not credited(method, (0, 0)).keep_rollouts
    assert credited(method, (1, 0)).keep_rollouts
    assert credited(create_method("grpo"), (1, 1)).keep_rollouts


def test_dapo_punishes_length_softly() -> None:
    """Limit 100, buffer 20: no penalty up to 80, -1/2 at 90, -1 from 100 on."""
    method = create_method("grpo", overlong_buffer=20, max_response_length=100, divide_by_std=False)
    group = GroupOutcome((1.0, 1.0, 1.0, 1.0), (True,) * 4, (80, 90, 100, 120))
    shaped = [1.0, 0.5, 0.0, 0.0]
    mean = sum(shaped) / 4
    assert method.credit(group).advantages == pytest.approx([r - mean for r in shaped])


def test_decided_tokens_can_be_left_without_a_gradient() -> None:
    batch = fixture_f.batch((Role.ROLLOUT,) * 2, (0, 3), advantages=(1.0, -1.0))
    _, whole, _ = run(golden.published("grpo", old_policy="current"), batch, keep=(0, 3))
    log_p = torch.log_softmax(fixture_f.LOGITS[fixture_f.rows((0, 3))], dim=1)
    entropy = -(log_p.exp() * log_p).sum(1)
    threshold = entropy.sort().values[1:3].mean().item()
    masked = golden.published("grpo", old_policy="current", least_entropy=threshold)
    _, gradient, _ = run(masked, batch, keep=(0, 3))
    is_undecided = entropy >= threshold
    assert is_undecided.sum() == len(entropy) - 2
    torch.testing.assert_close(gradient, whole * is_undecided[:, None], atol=1e-15, rtol=0)


def test_needs_follow_the_settings() -> None:
    both = {Frozen.OLD_LOGPROB, Frozen.ROLLOUT_LOGPROB}
    assert create_method("grpo").required().frozen == both
    uncorrected = create_method("grpo", tis="none")
    assert uncorrected.required().frozen == {Frozen.OLD_LOGPROB}
    current = create_method("grpo", tis="none", old_policy="current")
    assert current.required().frozen == frozenset()
    bypass = create_method("grpo", old_policy="rollout", kl_weight=0.1).required().frozen
    assert bypass == {Frozen.ROLLOUT_LOGPROB, Frozen.REF_LOGPROB}
    assert Frozen.ROLLOUT_LOGPROB in create_method("grpo", tis="sequence").required().frozen


def test_plan_and_temperature_come_from_the_configuration() -> None:
    method = create_method("grpo", prompts_per_update=3, rollouts_per_prompt=5, temperature=0.85)
    plan = method.plan(TrainState(0, 1))
    assert (plan.prompts, plan.rollouts_per_prompt, dict(plan.counts)) == (3, 5, {})
    assert method.temperature == 0.85


def test_the_policy_weight_scales_penalty_and_bonus_as_well() -> None:
    settings = {"kl_weight": 0.1, "entropy_bonus": 0.01}
    batch = golden.rollouts(golden.STD_ADVANTAGES)
    whole, gradient, _ = run(golden.published("grpo", **settings), batch)
    eighth, expected, _ = run(golden.published("grpo", policy_weight=1 / 8, **settings), batch)
    assert eighth == pytest.approx(whole / 8, rel=1e-12)
    torch.testing.assert_close(expected, gradient / 8)


def test_entropies_are_asked_for_where_they_decide() -> None:
    assert Stat.ENTROPY not in create_method("grpo").required().stats
    assert Stat.ENTROPY in create_method("grpo", least_entropy=0.1).required().stats
