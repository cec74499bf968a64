"""The Triton backend, run by Triton's interpreter in processes of their own, and compiled.

An interpreter shows neither races nor speed; the compiler shows types, shapes and shared memory.
"""

import logging
import os
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_reason.errors import PlatformError
from megatron_reason.ops import token_stats as public
from megatron_reason.ops.logmath import log1mexp
from megatron_reason.ops.token_stats import HeadOptions, token_stats, token_stats_from_logits
from tests import fixture_f
from tests.distributed import spawn
from tests.ops.test_token_stats import EXTRAS, assert_same, blend


def normal(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def interpreted(rank: int, world_size: int) -> None:
    """61 columns over the group: divisible neither by a tile (16) nor by the ranks."""
    os.environ["TRITON_INTERPRET"] = "1"
    group = dist.group.WORLD if world_size > 1 else None
    columns = -(-61 // world_size)
    own = slice(rank * columns, (rank + 1) * columns)
    padding = (0, 0, 0, columns * world_size - 61)
    weight = torch.nn.functional.pad(normal(61, 20), padding, value=9.0)[own]
    ref_weight = torch.nn.functional.pad(normal(61, 18, seed=6), padding, value=-9.0)[own]
    ref_hidden = normal(19, 18, seed=7)
    target = torch.arange(0, 60, 3)[:19]
    # On two ranks of 31 columns its number on the first is that of a masked column.
    target[5] = 31
    cases = [(torch.float64, None, 1e-10), (torch.float64, ref_weight, 1e-10)]
    cases += [(torch.float32, ref_weight, 1e-4), (torch.bfloat16, None, 2e-2)]
    for dtype, ref, tolerance in cases:
        found: list[list[torch.Tensor]] = []
        for backend in ("triton", "triton", "reference"):
            hidden = normal(19, 20).to(dtype).requires_grad_()
            head = weight.to(dtype).clone().requires_grad_()
            stats = token_stats(
                hidden, head, target, tp_group=group, vocab_size=61, temperature=0.7,
                backend=backend, extras=EXTRAS, options=HeadOptions(fp32_logits=True),
                reference=None if ref is None else (ref_hidden.to(dtype), ref.to(dtype)),
            )  # fmt: skip
            blend(stats).backward()
            assert hidden.grad is not None
            assert head.grad is not None
            values = [value for value in vars(stats).values() if value is not None]
            found.append([*values, hidden.grad, head.grad])
        for first, again, oracle in zip(*found, strict=True):
            assert torch.equal(first, again)
            torch.testing.assert_close(first, oracle, atol=tolerance, rtol=tolerance)


def right_to_two_ulps() -> None:
    """Logits are products with the identity, and so exact."""
    # What it imports would load Triton before the interpreter is chosen.
    from tests.ops.test_numerics import EPS, LOGITS, TARGET, differentiate

    # Products with infinities are no numbers; columns that the kernel masks are tested elsewhere.
    finite = {name: logits for name, logits in LOGITS.items() if logits.isfinite().all()}
    assert len(finite) == len(LOGITS) - 1
    for name, dtype in product(finite, (torch.float32, torch.bfloat16)):
        leaf = finite[name].to(dtype).requires_grad_()
        exact = leaf.detach().double().requires_grad_()
        eye = torch.eye(leaf.shape[1], dtype=dtype)
        stats = token_stats(leaf, eye, TARGET, backend="triton", extras=EXTRAS)
        oracle = token_stats_from_logits(exact, TARGET, backend="reference", extras=EXTRAS)
        for field, expected_T in vars(oracle).items():
            if expected_T is not None and expected_T.dtype != torch.bool:
                error_T = (getattr(stats, field).double() - expected_T).abs()
                assert (error_T <= 2 * EPS * expected_T.abs().clamp(min=1)).all(), (name, field)
        found, expected = differentiate(stats, leaf), differentiate(oracle, exact)
        rounding = torch.finfo(dtype).eps * expected.abs() + 2 * EPS
        assert ((found.double() - expected).abs() <= rounding).all(), (name, dtype)


def edges(rank: int, world_size: int) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    eye = torch.eye(5, dtype=torch.float64)
    golden = token_stats(fixture_f.LOGITS, eye, fixture_f.TARGET, backend="triton")
    torch.testing.assert_close(golden.logprob_T, fixture_f.LOGPROB, atol=1e-9, rtol=0)
    torch.testing.assert_close(golden.entropy_T, fixture_f.ENTROPY, atol=1e-9, rtol=0)
    one = torch.ones(1, 1)
    for offset in (0.0, -120.0, 3e4, 1e4):
        weight = (normal(40, 1) * 3).round().float() + offset
        weight[3] -= offset
        stats = token_stats(one, weight, torch.tensor([7]), backend="triton", extras=EXTRAS)
        oracle = token_stats(
            one.double(), weight.double(), torch.tensor([7]), backend="reference", extras=EXTRAS
        )
        in_float32 = {n: v.float() if v.is_floating_point() else v for n, v in vars(oracle).items()
                      if v is not None}  # fmt: skip
        assert_same(stats, type(stats)(**in_float32), atol=1e-5, rtol=1e-5)
    # An unlikelihood divides by the others' probability: their sum has digits that 1 + it lacks.
    peaks, target = torch.tensor([[10.6, 0, 1, 2, 0], [17.0, 0, 0, 1, 0]]), torch.tensor([0, 0])
    grads: list[torch.Tensor] = []
    for dtype, backend in ((torch.float32, "triton"), (torch.float64, "reference")):
        leaf = peaks.clone().to(dtype).requires_grad_()
        sure = token_stats(leaf, eye.to(dtype), target, backend=backend)
        (-log1mexp(sure.logprob_T, "exact")).sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad.double())
    torch.testing.assert_close(*grads, atol=0, rtol=2e-6)
    right_to_two_ulps()
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    nothing = token_stats(hidden, weight, torch.zeros(0, dtype=torch.int64), backend="triton")
    blend(nothing).backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("world_size", [1, 2])
def test_agrees_with_autograd_and_with_itself(world_size: int) -> None:
    spawn(interpreted, world_size, megatron=False, bare=True)


def test_golden_numbers_and_edges() -> None:
    spawn(edges, 1, megatron=False, bare=True)


@pytest.mark.parametrize("program", ["partial_stats", "grad_hidden", "grad_weight"])
def test_programs_compile_for_a_hopper_gpu(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiler = pytest.importorskip("triton.compiler")
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from megatron_reason.ops.kernels import _token_tiles
    from megatron_reason.ops.kernels.token_stats import Tiles

    function = getattr(_token_tiles, program)
    types = {"target": "*i64", "parts": "*fp32", "per_token": "*fp32", "out": "*fp32"}
    types |= dict.fromkeys(("hidden", "weight", "ref_hidden", "ref_weight"), "*bf16")
    types |= dict.fromkeys(("temperature", "lowest"), "fp32")
    tiles = Tiles()
    fixed: dict[str, Any] = {
        "tokens": tiles.tokens, "columns": tiles.columns, "depth": tiles.depth,
        "wide": tl.float32, "upcast": False, "has_ref": True,
    }  # fmt: skip
    names = function.arg_names
    signature = {n: "constexpr" if n in fixed else types.get(n, "i32") for n in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    source = compiler.ASTSource(fn=function, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", 90, 32)
    compiled = compiler.compile(source, target=target, options={"enable_fp_fusion": True})
    assert compiled.metadata.shared <= 227 * 1024
    assert compiled.asm["cubin"]


def test_without_gpu_or_interpreter_it_is_refused() -> None:
    eye = torch.eye(5, dtype=torch.float64)
    with pytest.raises(PlatformError, match="tensors are on 'cpu'"):
        token_stats(fixture_f.LOGITS, eye, fixture_f.TARGET, backend="triton")
    with pytest.raises(PlatformError, match="it takes no logits"):
        token_stats_from_logits(fixture_f.LOGITS, fixture_f.TARGET, backend="triton")


def test_without_triton_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PlatformError, match="not installed"):
        public.chosen_backend("triton")
    assert public.chosen_backend("auto") == "torch"


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    public._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="megatron_reason"):
        assert [public.chosen_backend("auto") for _ in range(3)] == ["torch"] * 3
        assert public.chosen_backend("reference") == "reference"
    assert [record.message for record in caplog.records] == [
        "token statistics: backend 'torch'",
        "token statistics: backend 'reference'",
    ]
