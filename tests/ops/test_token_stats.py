import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_reason.errors import PlatformError
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from megatron_reason.schema.batch import Stat, TokenStats
from tests import fixture_f
from tests.distributed import spawn
from tests.ops.fixture_kl import KL_REF, REF_LOGITS

TINY_CHUNKS = HeadOptions(tokens_per_chunk=3, saved_logits_bytes=0)
EXTRAS = frozenset({Stat.TOP1, Stat.SUM_P2})


def blend(stats: TokenStats) -> torch.Tensor:
    """A scalar that depends on every differentiable statistic, differently for each token."""
    weights = torch.linspace(-1, 1, len(stats.logprob_T), dtype=stats.logprob_T.dtype)
    total = stats.logprob_T.sin() * weights + stats.entropy_T.square()
    return (total if stats.kl_ref_T is None else total + stats.kl_ref_T.sin() * weights).sum()


def assert_same(found: TokenStats, expected: TokenStats, **tolerance: float) -> None:
    for name, value in vars(expected).items():
        own = getattr(found, name)
        assert (own is None) == (value is None), name
        if value is not None:
            torch.testing.assert_close(own, value, **tolerance)


def sharded_golden(rank: int, world_size: int) -> None:
    """Every rank holds ceil(5 / world) columns, the last ones padded; all must see G0."""
    group = dist.group.WORLD if world_size > 1 else None
    columns = -(-5 // world_size)
    padding = (0, columns * world_size - 5)
    own = slice(rank * columns, (rank + 1) * columns)
    padded = torch.nn.functional.pad(fixture_f.LOGITS, padding, value=99.0)
    local = padded[:, own].clone().requires_grad_()
    ref = torch.nn.functional.pad(REF_LOGITS, padding, value=-99.0)[:, own]
    stats = token_stats_from_logits(
        local, fixture_f.TARGET, tp_group=group, vocab_size=5, options=TINY_CHUNKS,
        extras=EXTRAS, reference_logits=ref,
    )  # fmt: skip
    torch.testing.assert_close(stats.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    torch.testing.assert_close(stats.entropy_T, fixture_f.ENTROPY, atol=1e-9, rtol=0)
    torch.testing.assert_close(stats.kl_ref_T, KL_REF, atol=1e-9, rtol=0)
    pairs = zip(
        *(value.split(fixture_f.LENGTHS) for value in (stats.logprob_T, stats.entropy_T)),
        strict=True,
    )
    rows = [(-own.mean(), (-own.mean()).exp(), entropy.mean(), own.sum()) for own, entropy in pairs]
    found = torch.stack([torch.stack(row) for row in rows])
    torch.testing.assert_close(found, fixture_f.OF_SEQUENCES, atol=1e-9, rtol=0)
    assert -stats.logprob_T.mean().item() == pytest.approx(1.1213323412, abs=1e-9)
    assert stats.entropy_T.mean().item() == pytest.approx(0.9556979625, abs=1e-9)
    blend(stats).backward()
    dense = fixture_f.LOGITS.clone().requires_grad_()
    oracle = token_stats_from_logits(
        dense, fixture_f.TARGET, backend="reference", extras=EXTRAS,
        reference_logits=REF_LOGITS,
    )  # fmt: skip
    blend(oracle).backward()
    assert_same(stats, oracle)
    assert dense.grad is not None
    expected = torch.nn.functional.pad(dense.grad, padding)[:, own]
    torch.testing.assert_close(local.grad, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_golden_statistics_on_sharded_logits(world_size: int) -> None:
    if world_size == 1:
        sharded_golden(0, 1)
    else:
        spawn(sharded_golden, world_size, megatron=False)


def head_case() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """17 tokens of a vocabulary of 11, padded to 12; a reference of another width."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"hidden": (17, 8), "weight": (12, 8), "ref_hidden": (17, 3), "ref_weight": (12, 3)}
    tensors = {
        name: torch.randn(*shape, generator=draw, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    return tensors, torch.randint(0, 11, (17,), generator=draw)


def sharded_head(rank: int, world_size: int, backend: Any) -> None:
    case, target = head_case()
    rows = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    hidden = case["hidden"].clone().requires_grad_()
    shard = case["weight"][rows].clone().requires_grad_()
    stats = token_stats(
        hidden, shard, target, tp_group=dist.group.WORLD, vocab_size=11, temperature=0.7,
        backend=backend, options=TINY_CHUNKS, extras=EXTRAS,
        reference=(case["ref_hidden"], case["ref_weight"][rows]),
    )  # fmt: skip
    blend(stats).backward()
    dense, head = case["hidden"].clone().requires_grad_(), case["weight"].clone().requires_grad_()
    oracle = token_stats_from_logits(
        (dense @ head.T)[:, :11], target, temperature=0.7, backend="reference", extras=EXTRAS,
        reference_logits=(case["ref_hidden"] @ case["ref_weight"].T)[:, :11],
    )  # fmt: skip
    blend(oracle).backward()
    assert_same(stats, oracle)
    torch.testing.assert_close(hidden.grad, dense.grad)
    assert head.grad is not None
    torch.testing.assert_close(shard.grad, head.grad[rows])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_sharded_head_gradients_equal_dense_autograd(backend: str) -> None:
    spawn(sharded_head, 2, backend, megatron=False)


@pytest.mark.parametrize("options", [TINY_CHUNKS, HeadOptions(), HeadOptions(tokens_per_chunk=5)])
@pytest.mark.parametrize("has_reference", [False, True])
def test_chunking_and_saving_do_not_change_gradients(
    options: HeadOptions, has_reference: bool
) -> None:
    case, target = head_case()
    hidden, weight = case["hidden"].requires_grad_(), case["weight"].requires_grad_()
    reference = (case["ref_hidden"], case["ref_weight"]) if has_reference else None

    def run(h: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stats = token_stats(h, w, target, options=options, reference=reference, vocab_size=11)
        values = (stats.logprob_T, stats.entropy_T, stats.kl_ref_T)
        return tuple(value for value in values if value is not None)

    assert torch.autograd.gradcheck(run, (hidden, weight))


@pytest.mark.parametrize(("num_saved", "num_multiplied_again"), [(0, 11), (2, 5), (4, 0)])
def test_as_many_chunks_are_saved_as_the_budget_allows(
    num_saved: int, num_multiplied_again: int
) -> None:
    """Four chunks of at most three of eleven tokens."""
    # It loads Triton, and the tests of the kernels choose how before that.
    from torch.utils.flop_counter import FlopCounterMode

    hidden, weight = torch.randn(11, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    target = torch.arange(11) % 9
    found: list[tuple[torch.Tensor, ...]] = []
    for budget in (num_saved * 3 * 9 * 8, 2**30):
        leaf = hidden.clone().requires_grad_()
        options = HeadOptions(tokens_per_chunk=3, saved_logits_bytes=budget)
        stats = token_stats(leaf, weight, target, options=options)
        with FlopCounterMode(display=False) as counter:
            (grad,) = torch.autograd.grad(blend(stats), leaf)
        found.append((stats.logprob_T, grad))
        if budget < 2**30:
            assert counter.get_total_flops() == 2 * 9 * 6 * (11 + num_multiplied_again)
    for some, everything in zip(*found, strict=True):
        assert torch.equal(some, everything)


def test_gradients_of_given_logits() -> None:
    logits = fixture_f.LOGITS.clone().requires_grad_()

    def run(z: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        stats = token_stats_from_logits(
            z, fixture_f.TARGET, temperature=1.3, reference_logits=REF_LOGITS
        )
        return stats.logprob_T, stats.entropy_T, stats.kl_ref_T

    assert torch.autograd.gradcheck(run, (logits,))


def test_statistics_that_nobody_asked_for_are_absent() -> None:
    stats = token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET)
    assert (stats.kl_ref_T, stats.top1_prob_T, stats.is_top1_T, stats.sum_p2_T) == (None,) * 4


def test_extras_have_no_gradient() -> None:
    logits = fixture_f.LOGITS.clone().requires_grad_()
    for backend in ("torch", "reference"):
        stats = token_stats_from_logits(logits, fixture_f.TARGET, extras=EXTRAS, backend=backend)
        assert stats.top1_prob_T is not None
        assert stats.sum_p2_T is not None
        assert not stats.top1_prob_T.requires_grad
        assert not stats.sum_p2_T.requires_grad


def test_the_reference_gets_no_gradient() -> None:
    case, target = head_case()
    frozen = (case["ref_hidden"].requires_grad_(), case["ref_weight"].requires_grad_())
    for backend in ("torch", "reference"):
        hidden = case["hidden"].clone().requires_grad_()
        stats = token_stats(hidden, case["weight"], target, reference=frozen, backend=backend)
        assert stats.kl_ref_T is not None
        stats.kl_ref_T.sum().backward()
        assert frozen[0].grad is None
        assert frozen[1].grad is None


def counted_collectives(rank: int, world_size: int) -> None:
    case, target = head_case()
    rows = slice(rank * 6, rank * 6 + 6)
    frozen = (case["ref_hidden"], case["ref_weight"][rows])
    for reference, check in itertools.product((None, frozen), (True, False)):
        hidden = case["hidden"].clone().requires_grad_()
        with torch.profiler.profile() as forward:
            stats = token_stats(
                hidden, case["weight"][rows], target, tp_group=dist.group.WORLD, vocab_size=11,
                options=replace(TINY_CHUNKS, check=check), extras=EXTRAS, reference=reference,
            )  # fmt: skip
        with torch.profiler.profile() as backward:
            blend(stats).backward()
        # That the ranks agree on what they refuse takes a small one more.
        assert collectives(forward) == {"c10d::allgather_": 1 + check}
        assert collectives(backward) == {"c10d::allreduce_": 1}


def collectives(profile: Any) -> dict[str, int]:
    return {e.key: e.count for e in profile.key_averages() if e.key.startswith("c10d::")}


def test_one_all_gather_forward_and_one_all_reduce_backward() -> None:
    spawn(counted_collectives, 2, megatron=False)


def test_no_supervised_token_gives_empty_statistics_and_zero_gradients() -> None:
    hidden = torch.randn(0, 4, requires_grad=True)
    weight = torch.randn(6, 4, requires_grad=True)
    no_target = torch.zeros(0, dtype=torch.int64)
    frozen = (torch.randn(0, 4), torch.randn(6, 4))
    stats = token_stats(hidden, weight, no_target, extras=EXTRAS, reference=frozen)
    blend(stats).backward()
    assert all(len(value) == 0 for value in vars(stats).values())
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 4)
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(PlatformError, match="cuda-magic"):
        token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET, backend="cuda-magic")
