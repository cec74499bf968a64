import pytest
import torch

from megatron_reason.ops.token_stats import token_stats_from_logits
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import create_method
from tests import fixture_f, golden
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


def test_golden_means_and_sums_of_sequences() -> None:
    batch = golden.demos()
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    nll_T = create_method("sft").token_losses(stats, batch)["ce"]
    means = [1.6704708590, 1.1223931839, 0.6254717705, 0.8185328446]
    sums = [3.3409417180, 3.3671795516, 0.6254717705, 1.6370656891]
    entropies = [0.9121664143, 0.9032541214, 1.0782348594, 1.0166268238]
    assert batch.sequence_means(nll_T).tolist() == pytest.approx(means, abs=1e-9)
    assert batch.sequence_sums(nll_T).tolist() == pytest.approx(sums, abs=1e-9)
    assert batch.sequence_means(stats.entropy_T).tolist() == pytest.approx(entropies, abs=1e-9)
