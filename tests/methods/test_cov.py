import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import TrainState, create_method
from tests import fixture_f, golden
from tests.loss import run, samples_of

BATCH = golden.rollouts(golden.STD_ADVANTAGES)


@golden.cases("kl-cov", "clip-cov")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def test_golden_random_choice_between_two_candidates() -> None:
    """Covariances .3 to 2 leave a1 and b3; one of them is dropped, either by some seed."""
    method = golden.published("cov", cov_low=0.3, cov_high=2.0)
    found = {round(run(method, BATCH, state=TrainState(update, 99))[0], 8) for update in range(12)}
    assert found == {round(0.0761038231, 8), round(-0.1316197575, 8)}
    again = [run(method, BATCH, state=TrainState(3, 99, seed=5))[0] for _ in range(2)]
    assert again[0] == again[1]


def test_golden_covariances_decide_the_order() -> None:
    from megatron_reason.engine.frozen import whole_batch
    from megatron_reason.schema.topology import Topology

    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    whole = whole_batch([BATCH], [stats], samples_of(BATCH), Topology())
    order = [7, 3, 0, 4, 6, 5, 2, 1]
    for count in range(1, 9):
        method = golden.published("cov", mode="kl", kl_fraction=count / 8)
        chosen = method.coefficients(whole, TrainState(0, 1)).nonzero()[:, 0].tolist()
        assert set(chosen) == set(order[:count])


def test_kl_cov_changes_nothing_while_the_policy_is_old() -> None:
    logprob = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET).logprob_T
    from dataclasses import replace

    on_policy = replace(BATCH, old_logprob_T=logprob)
    _, penalised, _ = run(golden.published("cov", mode="kl", kl_fraction=0.5), on_policy)
    unbounded = {"clip_low": None, "clip_high": None, "dual_clip": None}
    plain = golden.published("grpo", old_policy="current", **unbounded)
    _, expected, _ = run(plain, on_policy)
    torch.testing.assert_close(penalised, expected, atol=1e-14, rtol=0)


def test_it_says_how_many_tokens_were_chosen() -> None:
    _, _, means = run(golden.published("cov", mode="kl", kl_fraction=0.3), BATCH)
    assert means["policy/cov_chosen"] == pytest.approx(2 / 8)


def test_only_rollouts_are_needed() -> None:
    assert create_method("cov").required().roles == {Role.ROLLOUT}
