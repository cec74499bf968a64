import torch

from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import golden
from tests.distributed import spawn
from tests.loss import loss_and_gradient


@golden.cases("sft token mean", "sft mean of means", "sft sums", "sft chunks")
def test_golden(case: golden.Case) -> None:
    golden.check(case)


def on_shards(rank: int, world_size: int) -> None:
    for case in golden.CASES:
        golden.check(case, rank, world_size)


def test_every_golden_number_of_every_method_on_2_shards() -> None:
    spawn(on_shards, 2, megatron=False)


def test_every_golden_number_of_every_method_on_5_shards() -> None:
    spawn(on_shards, 5, megatron=False)


def test_gradient_rows_sum_to_zero_for_every_method() -> None:
    """A softmax does not feel a constant added to its logits."""
    from tests.loss import run

    for case in golden.CASES:
        _, gradient, _ = run(case.method, case.batch, state=case.state, keep=case.keep)
        sums = gradient.sum(dim=1)
        torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-12, rtol=0)


def test_the_two_means_differ_where_lengths_do() -> None:
    token, _ = loss_and_gradient(create_method("sft", mean="token_mean"), (Role.DEMO,) * 4)
    mean, _ = loss_and_gradient(create_method("sft"), (Role.DEMO,) * 4)
    assert token != mean
