"""Published numbers of what must not be computed, and that we compute something else."""

import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.credit import GroupOutcome
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
from tests.loss import credited, loss_and_gradient

MICROBATCHES = (slice(0, 5), slice(5, 8))
"""Tokens of sequences A and B, and of C and D."""
DEMOS = (Role.DEMO,) * 4


def summed_means(losses_T: torch.Tensor) -> float:
    """What comes out where means of micro-batches are added up."""
    return sum(losses_T[rows].mean().item() for rows in MICROBATCHES)


def test_means_of_micro_batches_are_not_added_up() -> None:
    logprob_T = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET).logprob_T
    wrong = summed_means(-logprob_T)
    assert wrong == pytest.approx(2.0958034072, abs=1e-10)
    assert loss_and_gradient(create_method("sft", mean="token_mean"), DEMOS)[0] < 0.6 * wrong
    wrong = summed_means(-logprob_T.exp() * logprob_T)
    assert wrong == pytest.approx(0.4969327843, abs=1e-10)
    assert loss_and_gradient(create_method("dft"), DEMOS)[0] < 0.6 * wrong


def test_the_weight_of_dft_has_no_gradient() -> None:
    logits = fixture_f.LOGITS.clone().requires_grad_()
    logprob_T = token_stats_from_logits(logits, fixture_f.TARGET).logprob_T
    loss = (-logprob_T.exp() * logprob_T).mean()
    (wrong,) = torch.autograd.grad(loss, logits)
    golden = [-0.0130875401, 0.0062033742, 0.0022820938, 0.0008395354, 0.0037625366]
    assert wrong[0].tolist() == pytest.approx(golden, abs=1e-10)
    right = loss_and_gradient(create_method("dft"), DEMOS)
    assert right[0] == pytest.approx(loss.item(), abs=1e-12)
    assert (right[1][0] - wrong[0]).abs().min() > 1e-3


def test_the_deviation_of_rewards_is_that_of_the_sample_for_grpo_and_of_the_population_for_lese():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    centred = rewards - rewards.mean()
    wrong = centred / (rewards.std(correction=0) + 1e-6)
    assert wrong.tolist() == pytest.approx([0.999998, -0.999998, -0.999998, 0.999998], abs=1e-6)
    totals = torch.tensor([3.1, 1.1, 0.4, 3.1], dtype=torch.float64)
    assert totals.std().item() == pytest.approx(1.3865424624, abs=1e-10)
    group = GroupOutcome((3.1, 1.1, 0.4, 3.1), (True, False, False, True), (1,) * 4, 3.1)
    # That deviation would make it 1.
    assert create_method("lese").alpha(group) == pytest.approx(0.9046128466, abs=1e-10)
    ours = credited(create_method("grpo"), (1.0, 0.0, 0.0, 1.0)).advantages
    assert ours == pytest.approx(golden.STD_ADVANTAGES, abs=1e-6)
