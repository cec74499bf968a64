import math

import pytest
import torch

from megatron_reason.schema.batch import Role, TokenStats
from megatron_reason.schema.method import Frozen, create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("srft")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_golden_advantages_over_rollouts_and_demonstration() -> None:
    credit = credited(create_method("srft"), (1, 0, 1), demo_reward=1)
    expected = (0.4999990, -1.4999970, 0.4999990, 0.4999990)
    assert (*credit.advantages, credit.demo_advantage) == pytest.approx(expected, abs=1e-7)
    assert credit.keep_demo
    right = credited(create_method("srft"), (1, 1), demo_reward=1)
    assert right.demo_advantage == 0.0
    wrong = credited(create_method("srft"), (0,) * 8, demo_reward=1)
    assert wrong.demo_advantage == pytest.approx(2.667, abs=1e-3)


def test_golden_over_all_tokens_of_rollouts() -> None:
    """Correct and wrong rollouts share the six tokens of both as their denominator."""
    method = create_method("srft", rl_mean="sum_over_constant", max_response_length=6)
    roles = (Role.ROLLOUT, Role.ROLLOUT, Role.ROLLOUT, Role.DEMO)
    _, _, means = run(method, fixture_f.batch(roles, correct=(True, False, True, True)))
    assert means["train/correct"] == pytest.approx(0.1692757202, abs=1e-9)
    assert means["train/wrong"] == pytest.approx(-0.5611965919, abs=1e-9)


@pytest.mark.parametrize(
    ("entropy", "sft", "rl"),
    [(0.0, 0.5, 0.1), (0.5, 0.3032653299, 0.1648721271), (1.0, 0.1839397206, 0.2718281828),
     (2.0, 0.0676676416, 0.7389056099)],
)  # fmt: skip
def test_golden_weights(entropy: float, sft: float, rl: float) -> None:
    batch = fixture_f.batch((Role.DEMO,), (2,))
    logprob_T = torch.tensor([-1.0], dtype=torch.float64)
    stats = TokenStats(logprob_T, torch.full((1,), entropy, dtype=torch.float64))
    losses = create_method("srft", entropy_scope="token").token_losses(stats, batch)
    assert losses["sft"].item() == losses["srft/w_sft"].item() == pytest.approx(sft, abs=1e-9)
    assert losses["correct"].item() == losses["srft/w_rl"].item() == pytest.approx(rl, abs=1e-9)


def test_ablations_replace_the_whole_weight_by_one() -> None:
    batch = fixture_f.batch((Role.DEMO,), (2,))
    stats = TokenStats(torch.tensor([-1.5]), torch.tensor([math.log(3)]))
    losses = create_method("srft", weigh_sft=False, weigh_rl=False).token_losses(stats, batch)
    assert losses["sft"].item() == losses["correct"].item() == 1.5
    assert losses["srft/w_sft"].item() == losses["srft/w_rl"].item() == 1.0


def test_without_demonstrations_and_weights_it_is_reinforce_with_signs() -> None:
    """One shared denominator: mean over the constant, A = +1 for correct and -1 for wrong."""
    method = create_method(
        "srft", weigh_rl=False, rl_mean="sum_over_constant", max_response_length=8
    )
    roles = (Role.ROLLOUT,) * 4
    _, gradient, _ = run(method, fixture_f.batch(roles, correct=(True, False, False, True)))
    reinforce = golden.published(
        "grpo", old_policy="current", mean="sum_over_constant", max_response_length=8
    )
    _, expected, _ = run(reinforce, fixture_f.batch(roles, advantages=(1.0, -1.0, -1.0, 1.0)))
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=0)


def test_scopes_beyond_a_sequence_need_the_whole_batch() -> None:
    for scope, frozen in (("token", set()), ("sequence", set()), ("batch", {Frozen.COEFFICIENTS})):
        assert create_method("srft", entropy_scope=scope).required().frozen == frozen
