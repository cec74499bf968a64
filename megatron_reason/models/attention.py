"""Core attention for Megatron's local spec on torch SDPA, for packed and for single sequences.

Megatron's own refuses packed sequences and builds an [S, S] score matrix. Here each packed sequence
attends to itself alone, causally, with grouped keys and values; nothing of the size of the pack is
ever built. T packed tokens, B sequences of equal length, h heads, g KV groups, d head width.
"""

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class PackedAttention(MegatronModule):
    """Causal self-attention without dropout, as the `core_attention` of a layer spec."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType,
        softmax_scale: float | None = None, **unused: Any,  # noqa: ANN401 - Megatron's call
    ) -> None:  # fmt: skip
        assert attn_mask_type == AttnMaskType.causal, f"only causal attention, not {attn_mask_type}"
        assert not config.attention_dropout, "attention dropout is not implemented"
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        del unused

    def forward(  # noqa: PLR0913 - Megatron's signature
        self, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        attn_mask_type: AttnMaskType | None = None,  # noqa: ARG002
        attention_bias: Tensor | None = None,  # noqa: ARG002
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend.

        Args:
            query: [T, h, d] packed, or [S, B, h, d].
            key: [T, g, d] or [S, B, g, d].
            value: like `key`.
            attention_mask: unused; attention is causal.
            attn_mask_type: unused; attention is causal.
            attention_bias: unused.
            packed_seq_params: starts of the packed sequences, if there are several.

        Returns:
            [T, h d] packed, or [S, B, h d].
        """
        if packed_seq_params is None:
            context = self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
            return context.permute(2, 0, 1, 3).flatten(2)
        starts = packed_seq_params.cu_seqlens_q
        lengths = (starts[1:] - starts[:-1]).tolist()
        parts = zip(*(x.split(lengths) for x in (query, key, value)), strict=True)
        contexts = [
            self._attend(*(x.transpose(0, 1)[None] for x in part))[0].transpose(0, 1)
            for part in parts
        ]
        return torch.cat(contexts).flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, h, S, d], [B, g, S, d], [B, g, S, d] -> [B, h, S, d]."""
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1],
            scale=self.softmax_scale,
        )  # fmt: skip
