from dataclasses import replace

import pytest
import torch

from megatron_reason.engine.aggregation import (
    global_counts,
    token_weights,
    weighted_loss,
    weighted_losses,
)
from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from megatron_reason.schema.topology import Topology
from tests import fixture_f, golden
from tests.loss import FIRST, loss_and_gradient


@golden.cases("oxa")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


@pytest.mark.parametrize(
    ("logits", "target", "clamp", "value", "gradient"),
    [
        ([8.0, 0.0, -1.0, 0.5, -2.0], 0, "official", 6.8530399325,
         [0.9989437601, -0.3169302174, -0.1165921113, -0.5225295907, -0.0428918407]),
        ([-1.0, 2.5, 0.3, 0.7, 1.2], 4, "official", 0.1894865639,
         [-0.0039903229, -0.1321413471, -0.0146416786, -0.0218428178, 0.1726161663]),
        ([14.0, 0, 0, 0, 0], 0, "official", 12.6137089650, [0.9999966739, *[-0.2499991684] * 4]),
        ([16.0, 0, 0, 0, 0], 0, "official", 13.8155105580, [0.0] * 5),
        ([16.0, 0, 0, 0, 0], 0, "exact", 14.6137060890, [0.9999995499, *[-0.2499998874] * 4]),
    ],
)  # fmt: skip
def test_golden_unlikelihood(
    logits: list[float], target: int, clamp: str, value: float, gradient: list[float]
) -> None:
    method = create_method("oxa", clamp=clamp)
    row = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    stats = token_stats_from_logits(row, torch.tensor([target]))
    loss = method.token_losses(stats, fixture_f.batch((Role.NEGATIVE,), (2,)))["ul"]
    loss.sum().backward()
    assert loss.item() == pytest.approx(value, abs=1e-8)
    assert row.grad is not None
    assert row.grad[0].tolist() == pytest.approx(gradient, abs=1e-8)
    assert row.grad.abs().max() <= 1.0
    assert row.grad.sum().item() == pytest.approx(0.0, abs=1e-8)


def test_float32_is_finite_where_the_naive_form_is_not() -> None:
    stats = token_stats_from_logits(torch.tensor([[100.0, 0, 0, 0, 0]]), torch.tensor([0]))
    for clamp in ("official", "exact"):
        method = create_method("oxa", clamp=clamp)
        losses = method.token_losses(stats, fixture_f.batch((Role.NEGATIVE,), (2,)))
        assert torch.isfinite(losses["ul"]).all()


def test_without_negatives_it_is_sft() -> None:
    mle = loss_and_gradient(create_method("oxa", negatives_per_update=0), (Role.DEMO,) * 4)
    sft = loss_and_gradient(create_method("sft"), (Role.DEMO,) * 4)
    assert mle[0] == sft[0]
    assert torch.equal(mle[1], sft[1])
    assert create_method("oxa", negatives_per_update=0).required().roles == {Role.DEMO}


MIXED = fixture_f.batch((Role.DEMO, Role.NEGATIVE, Role.DEMO, Role.NEGATIVE))


def test_golden_unlikelihood_of_a1() -> None:
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    losses = create_method("oxa").token_losses(stats, MIXED)
    assert losses["ul"][0].item() == pytest.approx(0.8278706705, abs=1e-10)


def test_golden_losses_of_the_released_ranks() -> None:
    """A sequence on each of 4 ranks, whose mean is the loss."""
    method = create_method("oxa")
    terms = method.terms(FIRST)
    counts = global_counts(terms, [MIXED], Topology(), torch.device("cpu"))
    weights = {term.name: token_weights(term, MIXED, counts) for term in terms}
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    share_T, _ = weighted_losses(terms, method.token_losses(stats, MIXED), weights)
    per_rank = (4 * MIXED.sequence_sums(share_T)).tolist()
    expected = [3.3409417180, 0.0004843780, 1.2509435411, 0.0002116005]
    assert per_rank == pytest.approx(expected, abs=1e-10)
    total_T = sum(term.coef * weights[term.name] for term in terms)
    golden_weights = {0: 0.25, 2: 1e-4 / 6, 5: 0.5, 6: 2.5e-5}
    assert {row: float(total_T[row]) for row in golden_weights} == pytest.approx(golden_weights)


def test_golden_of_the_wrong_mean() -> None:
    """What token means would give in place of means of means."""
    method = create_method("oxa")
    terms = [replace(term, mean="token_mean") for term in method.terms(FIRST)]
    counts = global_counts(terms, [MIXED], Topology(), torch.device("cpu"))
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    loss, _ = weighted_loss(terms, method.token_losses(stats, MIXED), MIXED, counts)
    assert loss.item() == pytest.approx(1.322325463025, abs=1e-10)
