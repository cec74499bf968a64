import torch

from megatron_reason.methods._hybrid import bonus_terms
from megatron_reason.methods._surrogate import bonus_losses
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f
from tests.loss import run


def test_without_a_bonus_there_is_no_term() -> None:
    config = create_method("hpt", entropy_bonus=0.0).config
    assert bonus_terms(config) == []
    batch = fixture_f.batch((Role.DEMO,) * 4)
    with_bonus, _, means = run(create_method("hpt"), batch)
    without, _, _ = run(create_method("hpt", entropy_bonus=0.0), batch)
    assert abs(without - 0.001 * means["train/entropy_bonus"] - with_bonus) < 1e-15


def test_the_bonus_is_the_entropy_itself() -> None:
    from megatron_reason.schema.batch import TokenStats

    stats = TokenStats(fixture_f.LOGPROB, fixture_f.ENTROPY)
    assert bonus_losses(stats, create_method("hpt").config)["entropy_bonus"] is fixture_f.ENTROPY


def test_the_penalty_shrinks_with_the_policy_loss() -> None:
    """Both are sums over tokens where the released runs average over 8 ranks."""
    batch = fixture_f.batch((Role.ROLLOUT,) * 4, advantages=(0.5, -0.5, -0.5, 0.5))
    settings = {"kl_weight": 0.2, "entropy_bonus": 0.0, "max_response_length": 4}
    whole, gradient, _ = run(create_method("hpt", **settings), batch)
    eighth, part, _ = run(create_method("hpt", policy_weight=1 / 8, **settings), batch)
    assert eighth == whole / 8
    torch.testing.assert_close(part, gradient / 8)


def test_sums_of_likelihoods_are_divided_by_the_budget() -> None:
    batch = fixture_f.batch((Role.DEMO,) * 4)
    method = create_method("hpt", sft_mean="sum_over_constant", max_response_length=4)
    _, _, sums = run(method, batch)
    _, _, means = run(create_method("hpt"), batch)
    for name in ("train/sft", "train/entropy_bonus"):
        assert abs(sums[name] - 8 / 4 * means[name]) < 1e-14
