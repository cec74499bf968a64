import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from megatron_reason.errors import DataError
from megatron_reason.ops import rows as slabs
from megatron_reason.ops.streaming import streamed_loss
from megatron_reason.ops.token_stats import HeadOptions, token_stats
from megatron_reason.schema.batch import TokenStats
from tests.distributed import spawn
from tests.ops.test_token_stats import collectives

WEIGHT_T = torch.linspace(-1, 2, 17, dtype=torch.float64)


def token_loss(stats: TokenStats, rows: slice) -> torch.Tensor:
    """Depends on both statistics, on the token, and not linearly."""
    weight = WEIGHT_T[rows].to(stats.logprob_T.dtype)
    return weight * stats.logprob_T.exp() + stats.entropy_T.square() * weight.cos()


def logprob_only(stats: TokenStats, rows: slice) -> torch.Tensor:
    return -stats.logprob_T


def few_tokens(stats: TokenStats, rows: slice) -> torch.Tensor:
    """Only tokens 2, 11 and 12 have a weight, as where groups were rewarded alike."""
    place = torch.arange(17)[rows]
    return token_loss(stats, rows) * ((place == 2) | ((place > 10) & (place < 13)))


def case(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(17, 8, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(12, 8, generator=draw, dtype=torch.float64).to(dtype)
    return hidden, weight, torch.randint(0, 11, (17,), generator=draw)


def both_forms(rank: int, world_size: int) -> None:
    group = dist.group.WORLD if world_size > 1 else None
    own = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    hidden, weight, target = case()
    for loss_of in (token_loss, logprob_only, few_tokens):
        for size in (5, 100):
            found: list[tuple[torch.Tensor, ...]] = []
            for is_streamed in (True, False):
                live, head = hidden.clone().requires_grad_(), weight[own].clone().requires_grad_()
                if is_streamed:
                    loss, stats = streamed_loss(
                        live, head, target, loss_of, tp_group=group, vocab_size=11,
                        temperature=0.7, options=HeadOptions(tokens_per_chunk=size),
                    )  # fmt: skip
                    assert not stats.logprob_T.requires_grad
                else:
                    stats = token_stats(
                        live, head, target, tp_group=group, vocab_size=11, temperature=0.7
                    )
                    loss = loss_of(stats, slice(0, 17)).sum()
                (3 * loss).backward()
                assert live.grad is not None
                assert head.grad is not None
                found.append((loss, stats.logprob_T, stats.entropy_T, live.grad, head.grad))
            for streamed, two_pass in zip(*found, strict=True):
                torch.testing.assert_close(streamed, two_pass)


def test_equals_the_two_pass_form() -> None:
    both_forms(0, 1)


def test_equals_the_two_pass_form_slab_by_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slabs, "_SLAB_ELEMENTS", 0)
    assert slabs._SLAB_ROWS < 17, "there are several slabs"
    both_forms(0, 1)


def test_equals_the_two_pass_form_with_the_vocabulary_on_two_ranks() -> None:
    spawn(both_forms, 2, megatron=False)


def test_tokens_without_a_gradient_cost_no_product_but_their_logits() -> None:
    hidden, head, target = case()
    products: list[int] = []
    for loss_of in (few_tokens, token_loss):
        for is_streamed in (True, False):
            live = hidden.clone().requires_grad_()
            options = HeadOptions(tokens_per_chunk=5, saved_logits_bytes=0)
            with FlopCounterMode(display=False) as counter:
                if is_streamed:
                    loss, _ = streamed_loss(live, head, target, loss_of, options=options)
                else:
                    stats = token_stats(live, head, target, options=options)
                    loss = loss_of(stats, slice(0, 17)).sum()
                loss.backward()
            products.append(counter.get_total_flops() // (2 * 12 * 8))
    # The second and the last chunk have no gradient: nothing of them is multiplied again.
    assert products == [17 + 3, 17 + 10 + 3, 17 + 17, 17 + 17 + 17]


def counted_collectives(rank: int, world_size: int) -> None:
    hidden, weight, target = case()
    shard = weight[rank * 12 // world_size : (rank + 1) * 12 // world_size]
    for size, chunks in ((5, 4), (17, 1)):
        for wants_hidden in (True, False):
            live = hidden.clone().requires_grad_(wants_hidden)
            head = shard.clone().requires_grad_()
            with torch.profiler.profile() as forward:
                loss, _ = streamed_loss(
                    live, head, target, token_loss, tp_group=dist.group.WORLD, vocab_size=11,
                    options=HeadOptions(tokens_per_chunk=size, check=False),
                )  # fmt: skip
            with torch.profiler.profile() as backward:
                loss.backward()
            summed = {"c10d::allreduce_": 1} if wants_hidden else {}
            assert collectives(forward) == {"c10d::allgather_": chunks, **summed}
            assert collectives(backward) == {}


def test_one_all_gather_per_chunk_and_one_all_reduce() -> None:
    spawn(counted_collectives, 2, megatron=False)


def test_bfloat16_accumulates_the_head_in_float32() -> None:
    hidden, weight, target = case(torch.bfloat16)
    exact_hidden, exact_weight = hidden.double(), weight.double().requires_grad_()
    loss_of_all = token_loss(token_stats(exact_hidden, exact_weight, target), slice(0, 17)).sum()
    loss_of_all.backward()
    weight.requires_grad_()
    options = HeadOptions(tokens_per_chunk=4, fp32_logits=True)
    loss, _ = streamed_loss(hidden, weight, target, token_loss, options=options)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert exact_weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, atol=2e-2, rtol=1e-2)


def test_a_second_backward_pass_gives_the_same() -> None:
    hidden, weight, target = case()
    hidden.requires_grad_()
    loss, _ = streamed_loss(hidden, weight, target, token_loss)
    (first,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (second,) = torch.autograd.grad(2 * loss, hidden)
    torch.testing.assert_close(2 * first, second)


def test_no_gradient_asked_for_and_no_token() -> None:
    hidden, weight, target = case()
    loss, stats = streamed_loss(hidden, weight, target, token_loss)
    expected = token_stats(hidden, weight, target)
    assert not loss.requires_grad
    torch.testing.assert_close(stats.entropy_T, expected.entropy_T)
    weight.requires_grad_()
    nothing, _ = streamed_loss(hidden[:0], weight, target[:0], logprob_only)
    nothing.backward()
    assert nothing.item() == 0
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_a_loss_that_is_summed_already_is_refused() -> None:
    hidden, weight, target = case()
    with pytest.raises(DataError, match=r"shape \[\] for 17 tokens"):
        streamed_loss(hidden, weight, target, lambda stats, _: stats.logprob_T.sum())
    with pytest.raises(DataError, match=r"target\[0\]"):
        streamed_loss(hidden, weight, target + 99, logprob_only)
