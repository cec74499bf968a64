from dataclasses import replace

import pytest
import torch

from megatron_reason.engine.frozen import whole_batch
from megatron_reason.engine.packing import pack
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import GlobalTokens, Role, TokenizedSample, TokenStats
from megatron_reason.schema.method import TrainState, create_method
from megatron_reason.schema.topology import Topology
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
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    whole = whole_batch([BATCH], [stats], samples_of(BATCH), Topology())
    order = [7, 3, 0, 4, 6, 5, 2, 1]
    for count in range(1, 9):
        method = golden.published("cov", mode="kl", kl_fraction=count / 8)
        chosen = method.coefficients(whole, TrainState(0, 1)).nonzero()[:, 0].tolist()
        assert set(chosen) == set(order[:count])


def test_golden_covariances() -> None:
    """Bounds that leave no room but for the golden value let exactly its token qualify."""
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    whole = whole_batch([BATCH], [stats], samples_of(BATCH), Topology())
    golden_covariances = [
        0.4736236246, -1.4247577905, -0.9701853991, 0.5502304522, 0.4227110923, -0.4294271071,
        -0.2990911535, 0.8235543578,
    ]  # fmt: skip
    for row, value in enumerate(golden_covariances):
        method = create_method(
            "cov", cov_low=value - 1e-9, cov_high=value + 1e-9, clip_low=None, clip_high=None
        )
        chosen = method.coefficients(whole, TrainState(0, 1)).nonzero()[:, 0].tolist()
        assert chosen == [row]


def test_kl_cov_changes_nothing_while_the_policy_is_old() -> None:
    logprob = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET).logprob_T
    on_policy = replace(BATCH, old_logprob_T=logprob)
    _, penalised, _ = run(golden.published("cov", mode="kl", kl_fraction=0.5), on_policy)
    unbounded = {"clip_low": None, "clip_high": None, "dual_clip": None}
    plain = golden.published("grpo", old_policy="current", **unbounded)
    _, expected, _ = run(plain, on_policy)
    torch.testing.assert_close(penalised, expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("mode", ["clip", "kl"])
def test_truncated_weights_are_factors_of_the_whole_loss(mode: str) -> None:
    """Of the surrogate and of KL-Cov's penalty alike."""
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    choice = replace(BATCH, coef_T=torch.tensor([0, 0, 0, 1.0, 0, 0, 0, 1.0]))
    plain = golden.published("cov", mode=mode).token_losses(stats, choice)["pg"]
    weighted = create_method("cov", mode=mode).token_losses(stats, choice)["pg"]
    golden_weights = [
        0.9048374180, 2, 1, 0.7408182207, 1.0512710964, 0.3011942119, 1.4918246976, 0.9801986733,
    ]  # fmt: skip
    expected = torch.tensor(golden_weights, dtype=torch.float64) * plain
    torch.testing.assert_close(weighted, expected, atol=1e-9, rtol=1e-9)
    assert (plain[[3, 7]] != 0).all() == (mode == "kl")


def test_it_says_how_many_tokens_were_chosen() -> None:
    _, _, means = run(golden.published("cov", mode="kl", kl_fraction=0.3), BATCH)
    assert means["policy/cov_chosen"] == pytest.approx(2 / 8)


def test_only_rollouts_are_needed() -> None:
    assert create_method("cov").required().roles == {Role.ROLLOUT}


def test_the_random_choice_does_not_feel_the_order_of_the_sequences() -> None:
    """Each of many tokens that qualify has the same chance, whatever stands before it."""
    counts = [40, 3, 25, 60]
    names = [f"p{i}/0" for i in range(4)]
    found: list[set[tuple[str, int]]] = []
    chosen_of: list[int] = []
    for update in range(50):
        for order in ((0, 1, 2, 3), (2, 0, 3, 1)):
            whole = made_of([names[i] for i in order], [counts[i] for i in order])
            method = create_method("cov", cov_low=-1e9, cov_high=1e9, clip_fraction=0.1)
            rows = method.coefficients(whole, TrainState(update, 99)).nonzero()[:, 0].tolist()
            places = [(names[i], at) for i in order for at in range(counts[i])]
            found.append({places[row] for row in rows})
        assert found[-1] == found[-2]
        assert len(found[-1]) == 12
        chosen_of += [sum(name == names[3] for name, _ in found[-1])]
    assert found[0] != found[2], "another choice in every update"
    assert sum(chosen_of) / (50 * 12) == pytest.approx(60 / 128, abs=0.08)


def made_of(names: list[str], counts: list[int]) -> GlobalTokens:
    """Sequences of so many tokens each."""
    samples = [
        TokenizedSample(name, Role.ROLLOUT, (1,) * (count + 1), 1, advantage=1.0,
                        old_logprobs=(-1.0,) * count)
        for name, count in zip(names, counts, strict=True)
    ]  # fmt: skip
    batch = pack(samples)
    value_T = torch.full((batch.num_tokens,), -1.0, dtype=torch.float64)
    return whole_batch([batch], [TokenStats(value_T, value_T.abs())], samples, Topology())
