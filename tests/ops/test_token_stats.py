import pytest
import torch

from megatron_reason.errors import PlatformError
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from tests import fixture_f
from tests.distributed import spawn

TINY_CHUNKS = HeadOptions(tokens_per_chunk=3, saved_logits_bytes=0)


def sharded_golden(rank: int, world_size: int) -> None:
    """Every rank holds ceil(5 / world) columns, the last ones padded; all must see G0."""
    group = torch.distributed.group.WORLD if world_size > 1 else None
    columns = -(-5 // world_size)
    padded = torch.nn.functional.pad(fixture_f.LOGITS, (0, columns * world_size - 5), value=99.0)
    local = padded[:, rank * columns : (rank + 1) * columns].clone().requires_grad_()
    stats = token_stats_from_logits(
        local, fixture_f.TARGET, tp_group=group, vocab_size=5, options=TINY_CHUNKS
    )
    torch.testing.assert_close(stats.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    torch.testing.assert_close(stats.entropy_T, fixture_f.ENTROPY, atol=1e-9, rtol=0)
    weights = torch.linspace(-1, 1, 8, dtype=torch.float64)
    ((stats.logprob_T * weights) + stats.entropy_T.square()).sum().backward()
    dense = fixture_f.LOGITS.clone().requires_grad_()
    oracle = token_stats_from_logits(dense, fixture_f.TARGET, backend="reference")
    ((oracle.logprob_T * weights) + oracle.entropy_T.square()).sum().backward()
    assert local.grad is not None
    assert dense.grad is not None
    full = torch.nn.functional.pad(dense.grad, (0, columns * world_size - 5))
    torch.testing.assert_close(
        local.grad, full[:, rank * columns : (rank + 1) * columns], atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_golden_statistics_on_sharded_logits(world_size: int) -> None:
    if world_size == 1:
        sharded_golden(0, 1)
    else:
        spawn(sharded_golden, world_size, megatron=False)


def sharded_head(rank: int, world_size: int, backend: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(17, 8, dtype=torch.float64)
    weight = torch.randn(12, 8, dtype=torch.float64)
    target = torch.randint(0, 11, (17,))
    live = hidden.clone().requires_grad_()
    rows = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    shard = weight[rows].clone().requires_grad_()
    stats = token_stats(
        live, shard, target, tp_group=torch.distributed.group.WORLD, vocab_size=11,
        temperature=0.7, backend=backend, options=TINY_CHUNKS,
    )  # fmt: skip
    (stats.logprob_T.sin() + stats.entropy_T.square()).sum().backward()
    dense, head = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprob = torch.log_softmax((dense @ head[:11].T) / 0.7, dim=1)
    picked = logprob.gather(1, target[:, None])[:, 0]
    entropy = -(logprob.exp() * logprob).sum(dim=1)
    (picked.sin() + entropy.square()).sum().backward()
    torch.testing.assert_close(stats.logprob_T, picked)
    torch.testing.assert_close(stats.entropy_T, entropy)
    torch.testing.assert_close(live.grad, dense.grad)
    assert head.grad is not None
    torch.testing.assert_close(shard.grad, head.grad[rows])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_sharded_head_gradients_equal_dense_autograd(backend: str) -> None:
    spawn(sharded_head, 2, backend, megatron=False)


@pytest.mark.parametrize("options", [TINY_CHUNKS, HeadOptions(), HeadOptions(tokens_per_chunk=5)])
def test_chunking_and_saving_do_not_change_gradients(options: HeadOptions) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(16, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 9, (16,))

    def run(h: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        stats = token_stats(h, w, target, options=options)
        return torch.stack([stats.logprob_T, stats.entropy_T])

    assert torch.autograd.gradcheck(run, (hidden, weight))


def test_float32_agrees_with_float64_at_extreme_logits() -> None:
    for offset in (0.0, -120.0, 3e4):
        logits = (fixture_f.LOGITS * 3 + offset).float()
        stats = token_stats_from_logits(logits, fixture_f.TARGET)
        oracle = token_stats_from_logits(logits.double(), fixture_f.TARGET, backend="reference")
        torch.testing.assert_close(
            stats.logprob_T.double(), oracle.logprob_T, atol=4e-3 if offset > 1e3 else 1e-5, rtol=0
        )
        torch.testing.assert_close(stats.entropy_T.double(), oracle.entropy_T, atol=1e-5, rtol=0)


def test_no_supervised_token_gives_empty_statistics_and_zero_gradients() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    weight = torch.randn(6, 4, requires_grad=True)
    stats = token_stats(hidden, weight, torch.zeros(0, dtype=torch.int64))
    (stats.logprob_T.sum() + stats.entropy_T.sum()).backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(PlatformError, match="cuda-magic"):
        token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET, backend="cuda-magic")
