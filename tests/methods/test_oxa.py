import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
from tests.loss import loss_and_gradient


@golden.cases("oxa")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


@pytest.mark.parametrize(
    ("logits", "clamp", "value", "on_target"),
    [
        ([8.0, 0.0, -1.0, 0.5, -2.0], "official", 6.8530399325, 0.9989437601),
        ([14.0, 0, 0, 0, 0], "official", 12.6137089650, 0.9999966739),
        ([16.0, 0, 0, 0, 0], "official", 13.8155105580, 0.0),
        ([16.0, 0, 0, 0, 0], "exact", 14.6137060890, 0.9999995499),
    ],
)
def test_golden_unlikelihood(
    logits: list[float], clamp: str, value: float, on_target: float
) -> None:
    method = create_method("oxa", clamp=clamp)
    row = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    stats = token_stats_from_logits(row, torch.tensor([0]))
    loss = method.token_losses(stats, fixture_f.batch((Role.NEGATIVE,), (2,)))["ul"]
    loss.sum().backward()
    assert loss.item() == pytest.approx(value, abs=1e-8)
    assert row.grad is not None
    assert row.grad[0, 0].item() == pytest.approx(on_target, abs=1e-8)
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
