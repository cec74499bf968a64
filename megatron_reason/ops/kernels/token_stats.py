"""Triton twin of `ops/head.py`: LM head and row statistics in one kernel, logits never written.

T tokens, D hidden width, V vocabulary columns of this rank, R pieces that the columns are cut into.
Forward: a program owns a block of tokens and a piece of the columns, forms [T, V] tiles of logits
in registers, and keeps running statistics; pieces merge as the shards of a group do. Backward: a
program owns a block of tokens (then of columns), recomputes its tiles, turns each into its gradient
in registers, and adds the product to rows that no other program touches. Without atomics results
are equal from run to run, at the price of five products where atomics would need four.
Accumulators are float32, or float64 for float64 operands; logits are never rounded to the operands'
type. Not here: the programs (`_token_tiles.py`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from megatron_reason.errors import PlatformError
from megatron_reason.ops.head import cotangents_of, outputs
from megatron_reason.ops.inputs import Reference, Request
from megatron_reason.ops.kernels._token_tiles import grad_hidden, grad_weight, partial_stats
from megatron_reason.ops.rows import wide_dtype
from megatron_reason.ops.vocab import RowStats, VocabShard, merge, merged_over
from megatron_reason.schema.batch import TokenStats


@dataclass(frozen=True)
class Tiles:
    """Sizes of what one program works on; powers of two, at least 16."""

    tokens: int = 64
    columns: int = 128
    depth: int = 64
    pieces: int = 16
    """Pieces the columns are cut into, so that few tokens still occupy the whole device."""


_GPU_TILES = Tiles()
_INTERPRETER_TILES = Tiles(16, 16, 16, 2)


def kernel_stats(
    hidden: Tensor, weight: Tensor, target: Tensor, request: Request, reference: Reference | None
) -> TokenStats:
    """`token_stats` by Triton.

    Raises:
        PlatformError: tensors that are not on a GPU, without Triton's interpreter.
    """
    if hidden.device.type != "cuda" and not is_interpreted():
        raise PlatformError(
            "token_stats backend 'triton'",
            f"the tensors are on '{hidden.device}', where Triton cannot run.",
            "Use backend 'auto' or 'torch', or set TRITON_INTERPRET=1 before the start to test it.",
        )
    ref = (None, None) if reference is None else (r.contiguous() for r in reference)
    return TokenStats(
        *_KernelStats.apply(hidden.contiguous(), weight.contiguous(), target, request, *ref)
    )


def is_interpreted() -> bool:
    """Whether these kernels were loaded for Triton's interpreter."""
    return isinstance(partial_stats, InterpretedFunction)


class _KernelStats(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205, PLR0913 - torch's own contract; it takes tensors one by one
        ctx: Any,  # noqa: ANN401 - torch's own contract
        hidden_TD: Tensor, weight_VD: Tensor, target_T: Tensor, request: Request,
        ref_hidden_TD: Tensor | None, ref_weight_VD: Tensor | None,
    ):  # fmt: skip
        launch = _Launch(hidden_TD, weight_VD, target_T, request, ref_hidden_TD, ref_weight_VD)
        stats = merged_over(request.tp_group, launch.local_stats())
        ctx.names, values = stats.fields()
        ctx.save_for_backward(hidden_TD, weight_VD, target_T, ref_hidden_TD, ref_weight_VD, *values)
        ctx.request = request
        return outputs(ctx, stats, request)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None):  # noqa: ANN205, ANN401
        (
            hidden_TD,
            weight_VD,
            target_T,
            *ref,
        ) = ctx.saved_tensors[:5]
        stats = RowStats(**dict(zip(ctx.names, ctx.saved_tensors[5:], strict=True)))
        launch = _Launch(hidden_TD, weight_VD, target_T, ctx.request, *ref)
        grad_hidden_TD, grad_weight_VD = launch.gradients(
            _per_token(stats, grads), *ctx.needs_input_grad[:2]
        )
        if grad_hidden_TD is not None:
            if ctx.request.tp_group is not None:
                dist.all_reduce(grad_hidden_TD, group=ctx.request.tp_group)
            grad_hidden_TD = grad_hidden_TD.to(hidden_TD.dtype)
        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_TD, grad_weight_VD, None, None, None, None


@dataclass(frozen=True)
class _Launch:
    """Starts the kernels on one set of tensors."""

    hidden_TD: Tensor
    weight_VD: Tensor
    target_T: Tensor
    request: Request
    ref_hidden_TD: Tensor | None
    ref_weight_VD: Tensor | None

    def local_stats(self) -> RowStats:
        """Statistics over this rank's columns."""
        tiles, shard, wide = self._tiles(), self._shard(), self._wide()
        num_tokens = len(self.hidden_TD)
        lowest = torch.finfo(torch.float32).min
        parts_KRT = torch.zeros(
            8, tiles.pieces, num_tokens, dtype=wide, device=self.hidden_TD.device
        )
        parts_KRT[[0, 5]], parts_KRT[[1, 6]] = lowest, -torch.inf
        blocks = triton.cdiv(shard.num_valid, tiles.columns)
        columns_per_piece = triton.cdiv(blocks, tiles.pieces) * tiles.columns
        if num_tokens and shard.num_valid:
            partial_stats[(triton.cdiv(num_tokens, tiles.tokens), tiles.pieces)](
                *self._operands(), self.target_T, parts_KRT, num_tokens, shard.num_valid,
                *self._widths(), self.request.temperature, lowest, shard.start,
                columns_per_piece, tiles.pieces, **self._constants(tiles),
            )  # fmt: skip
        max_RT, log_sum_RT, entropy_RT, target_RT, sum_p2_RT, *ref = parts_KRT.unbind()
        return merge(
            RowStats(
                max_RT, log_sum_RT, entropy_RT, target_RT,
                sum_p2_RT if self.request.sum_p2 else None,
                *(ref if self.ref_hidden_TD is not None else ()),
            )
        )  # fmt: skip

    def gradients(
        self, per_token_KT: Tensor, wants_hidden: bool, wants_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """[T, D], this rank's share of it, and [V, D]; in the accumulators' type."""
        tiles, shard = self._tiles(), self._shard()
        made: list[Tensor | None] = []
        for kernel, like, size, num_rows, is_wanted in (
            (grad_hidden, self.hidden_TD, tiles.tokens, len(self.hidden_TD), wants_hidden),
            (grad_weight, self.weight_VD, tiles.columns, shard.num_valid, wants_weight),
        ):
            out = torch.zeros_like(like, dtype=self._wide()) if is_wanted else None
            if out is not None and len(self.hidden_TD) and shard.num_valid:
                kernel[(triton.cdiv(num_rows, size),)](
                    *self._operands(), self.target_T, per_token_KT, out, len(self.hidden_TD),
                    shard.num_valid, *self._widths(), self.request.temperature, shard.start,
                    **self._constants(tiles),
                )  # fmt: skip
            made.append(out)
        return made[0], made[1]

    def _operands(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Operands of both products; without a reference the model's own stand in, unread."""
        ref_hidden_TD, ref_weight_VD = self.ref_hidden_TD, self.ref_weight_VD
        if ref_hidden_TD is None or ref_weight_VD is None:
            ref_hidden_TD, ref_weight_VD = self.hidden_TD, self.weight_VD
        return self.hidden_TD, self.weight_VD, ref_hidden_TD, ref_weight_VD

    def _widths(self) -> tuple[int, int]:
        hidden_TD, _, ref_hidden_TD, _ = self._operands()
        return hidden_TD.shape[1], ref_hidden_TD.shape[1]

    def _shard(self) -> VocabShard:
        return VocabShard.of(len(self.weight_VD), self.request.vocab_size, self.request.tp_group)

    def _wide(self) -> torch.dtype:
        return wide_dtype(self.hidden_TD.dtype)

    def _tiles(self) -> Tiles:
        return _INTERPRETER_TILES if is_interpreted() else _GPU_TILES

    def _constants(self, tiles: Tiles) -> dict[str, Any]:
        return {
            "tokens": tiles.tokens, "columns": tiles.columns, "depth": tiles.depth,
            "wide": tl.float64 if self._wide() == torch.float64 else tl.float32,
            # The interpreter multiplies bfloat16 as raw bits; so it gets float32 here.
            "upcast": self.request.options.fp32_logits or is_interpreted(),
            "has_ref": self.ref_hidden_TD is not None,
        }  # fmt: skip


def _per_token(stats: RowStats, grads: tuple[Tensor | None, ...]) -> Tensor:
    """[9, T]: what the gradient of a tile needs to know of each token.

    The last is what the target's own column gets of the cotangent of log p: its product with 1 - p,
    which next to p = 1 has all the digits that the difference of it and its product with p lacks.
    """
    cotangents = cotangents_of(grads, stats)
    zero_T = torch.zeros_like(stats.entropy_T)
    grad_entropy_T = zero_T if cotangents.entropy_T is None else cotangents.entropy_T
    grad_kl_T = zero_T if cotangents.kl_T is None else cotangents.kl_T
    factor_T = -grad_entropy_T * stats.entropy_T
    ref = [zero_T, zero_T]
    if stats.kl_T is not None:
        assert stats.ref_max_logit_T is not None, "a divergence has the reference's maxima"
        assert stats.ref_log_sum_T is not None, "a divergence has the reference's sums"
        factor_T = factor_T - grad_kl_T * stats.kl_T
        ref = [stats.ref_max_logit_T, stats.ref_log_sum_T]
    return torch.stack(
        [
            stats.max_logit_T, stats.log_sum_T, grad_kl_T - grad_entropy_T, factor_T,
            cotangents.logprob_T, *ref, grad_kl_T,
            -cotangents.logprob_T * torch.expm1(stats.logprob_T),
        ]
    )  # fmt: skip
