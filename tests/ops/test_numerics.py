"""The token statistics at the edges of their number types, against plain autograd in float64."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_reason.ops.logmath import log1mexp
from megatron_reason.ops.streaming import streamed_loss
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from megatron_reason.schema.batch import Stat, TokenStats
from tests.distributed import spawn

EPS = torch.finfo(torch.float32).eps
V = 41
EXTRAS = frozenset({Stat.TOP1, Stat.SUM_P2})


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def peaked(others: float) -> Tensor:
    """The first column stands out of the rest, which are all `others`."""
    logits = torch.full((4, V), others, dtype=torch.float64)
    logits[:, 0] = 0.0
    return logits


LOGITS = {
    "ordinary": normal(4, V) * 3,
    "plus and minus 1e4": normal(4, V).sign() * 1e4 + normal(4, V),
    "offset 3e4": normal(4, V) * 3 + 3e4,
    "near -120": normal(4, V) * 0.1 - 120,
    "probability 1 - 1e-8": peaked(math.log(1e-8 / (V - 1))),
    "one-hot": peaked(-1e4),
    "one-hot by infinity": peaked(-math.inf),
    "uniform": torch.zeros(4, V, dtype=torch.float64),
}
TARGET = torch.tensor([0, 0, 0, 0])


def differentiate(stats: TokenStats, leaf: Tensor) -> Tensor:
    ramp_T = torch.linspace(0.5, 2, len(leaf), dtype=stats.logprob_T.dtype)
    total = stats.logprob_T - 0.3 * stats.entropy_T
    if stats.kl_ref_T is not None:
        total = total + 0.7 * stats.kl_ref_T
    (grad,) = torch.autograd.grad((total * ramp_T).sum(), leaf)
    return grad


@dataclass(frozen=True)
class Found:
    """Statistics and the gradient [T, V] by logits of which every rank holds its own columns."""

    stats: TokenStats
    grad_TV: Tensor

    @classmethod
    def of(cls, logits_TV: Tensor, target_T: Tensor, ref_TV: Tensor) -> "Found":
        """Ours, on all ranks there are; the columns that fill the last shard up take no part."""
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        size = logits_TV.shape[1]
        width = -(-size // ranks)

        def own(whole_TV: Tensor) -> Tensor:
            padded_TV = functional.pad(whole_TV, (0, ranks * width - size), value=50.0)
            return padded_TV[:, rank * width : (rank + 1) * width].clone()

        leaf = own(logits_TV).requires_grad_()
        stats = token_stats_from_logits(
            leaf, target_T, extras=EXTRAS, reference_logits=own(ref_TV), vocab_size=size,
            tp_group=dist.group.WORLD if ranks > 1 else None,
        )  # fmt: skip
        shards: list[Any] = [differentiate(stats, leaf)]
        if ranks > 1:
            shards *= ranks
            dist.all_gather_object(shards, shards[0])
        return cls(stats, torch.cat(shards, dim=1)[:, :size])

    @classmethod
    def exact(cls, logits_TV: Tensor, target_T: Tensor, ref_TV: Tensor) -> "Found":
        """Autograd's, in float64 over the whole vocabulary."""
        leaf = logits_TV.double().requires_grad_()
        stats = token_stats_from_logits(
            leaf, target_T, backend="reference", extras=EXTRAS, reference_logits=ref_TV.double()
        )
        return cls(stats, differentiate(stats, leaf))


def check_float32_arithmetic(case: str, dtype: torch.dtype) -> None:
    logits, ref = LOGITS[case].to(dtype), (LOGITS[case] + LOGITS["ordinary"]).to(dtype)
    ours, oracle = (make(logits, TARGET, ref) for make in (Found.of, Found.exact))
    for name, expected_T in vars(oracle.stats).items():
        found_T = getattr(ours.stats, name)
        assert found_T.isfinite().all(), name
        if expected_T.dtype == torch.bool:
            assert torch.equal(found_T, expected_T)
            continue
        assert found_T.dtype == torch.float32
        tolerance_T = 2 * EPS * expected_T.abs().clamp(min=1)
        assert ((found_T.double() - expected_T).abs() <= tolerance_T).all(), name
    grad, expected = ours.grad_TV, oracle.grad_TV
    assert grad.dtype == dtype
    rounding = torch.finfo(dtype).eps * expected.abs() + 2 * EPS
    assert ((grad.double() - expected).abs() <= rounding).all()
    if dtype == torch.float32:
        assert grad.sum(dim=1).abs().max() <= 16 * EPS


def check_sums_over_a_large_vocabulary(scale: float) -> None:
    """Torch's fused softmax adds up in float32, and errs by up to 50 ulps."""
    logits, ref = normal(8, 49157).float() * scale, normal(9, 49157)[1:].float() * scale
    target = torch.arange(0, 49157, 6144)[:8]
    ours, oracle = (make(logits, target, ref) for make in (Found.of, Found.exact))
    for name, exact_T in vars(oracle.stats).items():
        if exact_T.dtype != torch.bool:
            error_T = (getattr(ours.stats, name).double() - exact_T).abs()
            # A divergence is a difference of two numbers of an entropy's size. And distances of
            # logits to the largest are rounded before anything is added up.
            entropy_T = oracle.stats.entropy_T
            size_T = exact_T.abs().maximum(entropy_T if name == "kl_ref_T" else exact_T)
            limit_T = 2 * EPS * (size_T.clamp(min=1) + 2 * scale)
            assert (error_T <= limit_T).all(), name
    error_TV = (ours.grad_TV.double() - oracle.grad_TV).abs()
    assert (error_TV.sum(dim=1) <= 16 * EPS * (1 + scale)).all()


DTYPES = (torch.float32, torch.bfloat16)
SCALES = (0.1, 1.0, 3.0, 8.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LOGITS)
def test_float32_arithmetic_is_right_to_two_ulps(case: str, dtype: torch.dtype) -> None:
    check_float32_arithmetic(case, dtype)


@pytest.mark.parametrize("scale", SCALES)
def test_sums_over_a_large_vocabulary_are_right_to_two_ulps(scale: float) -> None:
    check_sums_over_a_large_vocabulary(scale)


def edges_on_a_rank(rank: int, world_size: int) -> None:
    assert (rank, world_size) == (dist.get_rank(), dist.get_world_size())
    for case in LOGITS:
        for dtype in DTYPES:
            check_float32_arithmetic(case, dtype)
    for scale in SCALES:
        check_sums_over_a_large_vocabulary(scale)


def test_both_hold_where_two_ranks_share_the_vocabulary() -> None:
    spawn(edges_on_a_rank, 2, megatron=False)


@pytest.mark.parametrize(
    ("dtype", "fp32_logits", "ulp"),
    [
        (torch.float32, False, EPS),
        (torch.bfloat16, True, EPS),
        (torch.bfloat16, False, torch.finfo(torch.bfloat16).eps),
    ],
)
def test_a_head_errs_by_the_rounding_of_its_logits(
    dtype: torch.dtype, fp32_logits: bool, ulp: float
) -> None:
    hidden, weight = normal(7, 16).to(dtype), normal(V, 16).to(dtype)
    target = torch.arange(7)
    options = HeadOptions(fp32_logits=fp32_logits, tokens_per_chunk=3)
    stats = token_stats(hidden, weight, target, options=options)
    exact = hidden.double() @ weight.double().T
    oracle = token_stats_from_logits(exact, target, backend="reference")
    tolerance_T = 4 * ulp * exact.abs().amax(dim=1)
    assert ((stats.logprob_T - oracle.logprob_T).abs() <= tolerance_T).all()
    assert ((stats.entropy_T - oracle.entropy_T).abs() <= 4 * tolerance_T).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_a_head_are_as_precise_as_their_operands(dtype: torch.dtype) -> None:
    hidden, weight = normal(7, 16).to(dtype), normal(V, 16).to(dtype) / 4
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    own = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    for leaves, backend in ((own, "torch"), (exact, "reference")):
        stats = token_stats(leaves[0], leaves[1], torch.arange(7), backend=backend)
        (stats.logprob_T.sum() - 0.5 * stats.entropy_T.sum()).backward()
    for leaf, expected in zip(own, exact, strict=True):
        assert leaf.grad is not None
        assert expected.grad is not None
        scale = expected.grad.abs().max()
        assert (leaf.grad.double() - expected.grad).abs().max() <= 8 * torch.finfo(dtype).eps * max(
            scale, 1
        )


def test_temperature_divides_logits_and_gradients() -> None:
    logits = LOGITS["ordinary"].clone().requires_grad_()
    tempered = (logits.detach() / 0.6).requires_grad_()
    stats = token_stats_from_logits(logits, TARGET, temperature=0.6)
    plain = token_stats_from_logits(tempered, TARGET)
    torch.testing.assert_close(stats.entropy_T, plain.entropy_T)
    torch.testing.assert_close(differentiate(stats, logits), differentiate(plain, tempered) / 0.6)


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_no_token_and_one_token(num_tokens: int) -> None:
    hidden, weight = normal(4, 6)[:num_tokens].requires_grad_(), normal(V, 6)
    target = TARGET[:num_tokens]
    stats = token_stats(hidden, weight, target)
    oracle = token_stats(hidden, weight, target, backend="reference")
    assert stats.logprob_T.shape == (num_tokens,)
    torch.testing.assert_close(stats.entropy_T, oracle.entropy_T)
    torch.testing.assert_close(differentiate(stats, hidden), differentiate(oracle, hidden))


def unlikelihood(stats: TokenStats, _: slice) -> Tensor:
    return -log1mexp(stats.logprob_T, "exact")


def sure_tokens_on_a_rank(rank: int, world_size: int) -> None:
    """Logits are the hidden states themselves; column 0, the target, has all but 1e-2 to 1e-7.

    There log p is that of the others together, of which 1 + them keeps hardly a digit in float32,
    and an unlikelihood divides by it.
    """
    group = dist.group.WORLD if world_size > 1 else None
    head = functional.pad(torch.eye(V), (0, 0, 0, 1))[rank * 21 : rank * 21 + 21]
    head = head if world_size > 1 else torch.eye(V)
    for rest in (1e-2, 1e-4, 1e-6, 1e-7):
        others = normal(64, V - 1)
        others += math.log(rest / (1 - rest)) - torch.logsumexp(others, dim=1, keepdim=True)
        hidden = functional.pad(others, (1, 0)).float().requires_grad_()
        target = torch.zeros(64, dtype=torch.int64)
        exact = hidden.detach().double().requires_grad_()
        oracle = token_stats_from_logits(exact, target, backend="reference")
        (expected,) = torch.autograd.grad(unlikelihood(oracle, slice(0, 64)).sum(), exact)
        stats = token_stats(hidden, head, target, tp_group=group, vocab_size=V)
        error_T = (stats.logprob_T.double() - oracle.logprob_T).abs()
        # Distances of 10 to 20 to the largest logit are rounded, too.
        assert (error_T <= 16 * EPS * oracle.logprob_T.abs()).all(), rest
        in_two_passes = unlikelihood(stats, slice(0, 64)).sum()
        in_one, _ = streamed_loss(
            hidden, head, target, unlikelihood, tp_group=group, vocab_size=V,
            options=HeadOptions(tokens_per_chunk=24),
        )  # fmt: skip
        for loss in (in_two_passes, in_one):
            (found,) = torch.autograd.grad(loss, hidden)
            assert ((found - expected).abs() <= 32 * EPS * expected.abs()).all(), rest
            every: list[Any] = [found] * world_size
            if group is not None:
                dist.all_gather_object(every, found)
            assert torch.equal(every[0], every[-1])


@pytest.mark.parametrize("rest", [1e-2, 1e-4, 1e-6])
def test_a_divergence_from_the_same_or_a_near_policy_has_its_digits_next_to_certainty(
    rest: float,
) -> None:
    others = normal(16, V - 1)
    others += math.log(rest / (1 - rest)) - torch.logsumexp(others, dim=1, keepdim=True)
    logits = functional.pad(others, (1, 0)).float()
    target = torch.zeros(16, dtype=torch.int64)
    same = token_stats_from_logits(logits, target, reference_logits=logits.clone())
    assert same.kl_ref_T is not None
    assert same.kl_ref_T.abs().max() <= EPS * rest
    near = logits + normal(16, V).float() * 0.1 * (torch.arange(V) > 0)
    found, exact = (
        token_stats_from_logits(z, target, reference_logits=ref, backend=backend).kl_ref_T
        for z, ref, backend in (
            (logits, near, "torch"), (logits.double(), near.double(), "reference")
        )
    )  # fmt: skip
    assert found is not None
    assert exact is not None
    assert (found.double() - exact).abs().max() <= 64 * EPS * rest


def test_unlikelihood_has_its_digits_next_to_certainty() -> None:
    sure_tokens_on_a_rank(0, 1)


def test_unlikelihood_has_its_digits_on_two_ranks() -> None:
    spawn(sure_tokens_on_a_rank, 2, megatron=False)


def test_the_target_has_its_digits_beside_entropy_and_divergence() -> None:
    """A cotangent of 1e4 must not swallow those of 1."""
    rest = 1e-4
    others = normal(16, V - 1)
    others += math.log(rest / (1 - rest)) - torch.logsumexp(others, dim=1, keepdim=True)
    logits = functional.pad(others, (1, 0)).float()
    ref = LOGITS["ordinary"].repeat(4, 1).float()
    target = torch.zeros(16, dtype=torch.int64)
    found: list[Tensor] = []
    for leaf, backend in ((logits, "torch"), (logits.double(), "reference")):
        live = leaf.clone().requires_grad_()
        stats = token_stats_from_logits(
            live, target, backend=backend, reference_logits=ref.to(leaf.dtype)
        )
        assert stats.kl_ref_T is not None
        loss_T = unlikelihood(stats, slice(0, 16)) + 2 * stats.entropy_T + 3 * stats.kl_ref_T
        found.append(torch.autograd.grad(loss_T.sum(), live)[0][:, 0].double())
    # The divergence is 9 nats, and has a factor of 3.
    assert (found[0] - found[1]).abs().max() <= 128 * EPS


def repeated_on_a_rank(rank: int, world_size: int) -> None:
    """A vocabulary of 41 on two ranks of 21 columns, the last one padding."""
    columns = slice(rank * 21, rank * 21 + 21)
    weight = functional.pad(normal(V, 16), (0, 0, 0, 1), value=50.0)[columns].float()
    runs: list[list[Tensor]] = []
    for _ in range(2):
        hidden, head = normal(33, 16).float().requires_grad_(), weight.clone().requires_grad_()
        stats = token_stats(
            hidden, head, torch.arange(33), tp_group=dist.group.WORLD, vocab_size=V,
            extras=EXTRAS, reference=(normal(33, 16).float() / 2, weight),
            options=HeadOptions(tokens_per_chunk=8),
        )  # fmt: skip
        (stats.logprob_T + stats.entropy_T).sum().backward()
        assert hidden.grad is not None
        assert head.grad is not None
        runs.append([*vars(stats).values(), hidden.grad, head.grad])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)
    for own in runs[0][:-1]:
        every: list[Any] = [None] * world_size
        dist.all_gather_object(every, own.detach())
        assert torch.equal(every[0], every[1])


def test_bitwise_equal_on_all_ranks_and_from_run_to_run() -> None:
    spawn(repeated_on_a_rank, 2, megatron=False)


class Largest(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [value.numel() for value in tree_leaves(made) if isinstance(value, Tensor)]
        self.elements = max([self.elements, *sizes])
        return made


@pytest.mark.parametrize("has_reference", [False, True])
def test_logits_of_all_tokens_are_never_in_memory(has_reference: bool) -> None:
    hidden, weight = normal(96, 4).requires_grad_(), normal(512, 4).requires_grad_()
    reference = (normal(96, 4), normal(512, 4)) if has_reference else None
    options = HeadOptions(tokens_per_chunk=8, saved_logits_bytes=0)
    found: dict[str, int] = {}
    for backend in ("torch", "reference"):
        with Largest() as largest:
            stats = token_stats(
                hidden, weight, torch.arange(96), backend=backend, options=options,
                extras=EXTRAS, reference=reference,
            )  # fmt: skip
            differentiate(stats, hidden)
        found[backend] = largest.elements
    assert found == {"torch": 8 * 512, "reference": 96 * 512}
