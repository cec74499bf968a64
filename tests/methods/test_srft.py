import math

import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role, TokenStats
from megatron_reason.schema.method import Frozen, create_method
from tests import fixture_f, golden
from tests.loss import credited, run


@golden.cases("srft")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_golden_advantages_over_rollouts_and_demonstration() -> None:
    credit = credited(golden.published("srft"), (1, 0, 1), demo_reward=1)
    expected = (0.4999990, -1.4999970, 0.4999990, 0.4999990)
    assert (*credit.advantages, credit.demo_advantage) == pytest.approx(expected, abs=1e-7)
    assert credit.keep_demo
    right = credited(golden.published("srft"), (1, 1), demo_reward=1)
    assert right.demo_advantage == 0.0
    wrong = credited(golden.published("srft"), (0,) * 8, demo_reward=1)
    assert wrong.demo_advantage == pytest.approx(2.667, abs=1e-3)


def test_golden_over_all_tokens_of_rollouts() -> None:
    """Correct and wrong rollouts share the six tokens of both as their denominator."""
    method = golden.published("srft", rl_mean="sum_over_constant", max_response_length=6)
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
    losses = golden.published("srft", entropy_scope="token").token_losses(stats, batch)
    assert losses["sft"].item() == losses["srft/w_sft"].item() == pytest.approx(sft, abs=1e-9)
    assert losses["correct"].item() == losses["srft/w_rl"].item() == pytest.approx(rl, abs=1e-9)


def test_ablations_replace_the_whole_weight_by_one() -> None:
    batch = fixture_f.batch((Role.DEMO,), (2,))
    stats = TokenStats(torch.tensor([-1.5]), torch.tensor([math.log(3)]))
    losses = golden.published("srft", weigh_sft=False, weigh_rl=False).token_losses(stats, batch)
    assert losses["sft"].item() == losses["correct"].item() == 1.5
    assert losses["srft/w_sft"].item() == losses["srft/w_rl"].item() == 1.0


def test_without_demonstrations_and_weights_it_is_reinforce_with_signs() -> None:
    """One shared denominator: mean over the constant, A = +1 for correct and -1 for wrong."""
    method = golden.published(
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
    none: set[Frozen] = set()
    for scope, frozen in (("token", none), ("sequence", none), ("batch", {Frozen.COEFFICIENTS})):
        assert golden.published("srft", entropy_scope=scope).required().frozen == frozen


def test_rollouts_are_weighed_by_the_current_policy_over_the_engines_and_demonstrations_not() -> (
    None
):
    batch = fixture_f.batch((*(Role.ROLLOUT,) * 3, Role.DEMO), correct=(True, False, True, True))
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    method = create_method("srft")
    assert method.required().frozen == {Frozen.ROLLOUT_LOGPROB}
    weighed = method.token_losses(stats, batch)
    plain = golden.published("srft").token_losses(stats, batch)
    ratio_T = (stats.logprob_T - fixture_f.ROLLOUT).exp()
    weight_T = ratio_T.clamp(max=2.0)
    assert (ratio_T > 2).any()
    assert (weight_T < 0.9).any()
    for name in ("correct", "wrong"):
        torch.testing.assert_close(weighed[name], weight_T * plain[name])
    for name in plain.keys() - {"correct", "wrong"}:
        assert torch.equal(weighed[name], plain[name])
    assert create_method("srft", tis="sequence", entropy_scope="token").required().whole_sequences


def test_the_weight_is_a_constant_of_the_gradient() -> None:
    batch = fixture_f.batch((Role.ROLLOUT,) * 4, correct=(True, False, True, True))
    gradients: list[torch.Tensor] = []
    for method in (create_method("srft", tis_cap=1e-3), golden.published("srft")):
        logits = fixture_f.LOGITS.clone().requires_grad_()
        losses = method.token_losses(token_stats_from_logits(logits, fixture_f.TARGET), batch)
        gradients += torch.autograd.grad((losses["correct"] + losses["wrong"]).sum(), logits)
    # At so low a cap every weight is the cap.
    torch.testing.assert_close(gradients[0], 1e-3 * gradients[1])
