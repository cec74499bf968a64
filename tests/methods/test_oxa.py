import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f
from tests.distributed import spawn
from tests.loss import loss_and_gradient, sharded_loss_and_gradient

# METHODS 2.5, card OXA_Full: CE over {A, C}, UL over {B, D}, alpha = 1e-4.
ROLES = (Role.DEMO, Role.NEGATIVE, Role.DEMO, Role.NEGATIVE)
TOTAL = 1.148145309405
A1 = [-0.1092446920, 0.0517809840, 0.0190491595, 0.0070077941, 0.0314067544]
B1 = [1.6649062668e-05, -5.2821702896e-06, -1.9432018543e-06, -8.7088265120e-06, -7.1486401225e-07]


def test_golden_composite() -> None:
    loss, gradient = loss_and_gradient(create_method("oxa"), ROLES)
    assert loss == pytest.approx(TOTAL, abs=1e-11)
    torch.testing.assert_close(
        gradient[0], torch.tensor(A1, dtype=torch.float64), atol=1e-9, rtol=0
    )
    expected = torch.tensor(B1, dtype=torch.float64)
    torch.testing.assert_close(gradient[2], expected, atol=1e-14, rtol=1e-8)


def test_golden_composite_with_weight_one() -> None:
    loss, _ = loss_and_gradient(create_method("oxa", suppress_weight=1.0), ROLES)
    assert loss == pytest.approx(2.8879175674, abs=1e-9)


def golden_on_shards(rank: int, world_size: int) -> None:
    loss, gradient = sharded_loss_and_gradient(create_method("oxa"), ROLES, rank, world_size)
    assert loss == pytest.approx(TOTAL, abs=1e-8)
    columns = -(-5 // world_size)
    for row, golden in ((0, A1), (2, B1)):
        padded = torch.nn.functional.pad(
            torch.tensor(golden, dtype=torch.float64), (0, columns * world_size - 5)
        )
        mine = padded[rank * columns : (rank + 1) * columns]
        torch.testing.assert_close(gradient[row], mine, atol=1e-9, rtol=0)


@pytest.mark.parametrize("world_size", [2, 5])
def test_golden_composite_on_sharded_logits(world_size: int) -> None:
    spawn(golden_on_shards, world_size, megatron=False)


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
