"""Core attention for Megatron's local spec on torch's kernels, for packed and single sequences.

Megatron's own refuses packed sequences and builds an [S, S] score matrix. Here each packed sequence
attends to itself alone, causally, with grouped keys and values; nothing of the size of the pack is
ever built. Under context parallelism a rank's queries meet the keys and values of all ranks, which
are gathered for each layer (as in the training of Llama 3, arXiv:2407.21783, section 3.3.2). T
packed tokens on this rank, B sequences of equal length, h heads, g KV groups, d head width, C
context-parallel ranks.
"""

from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad, scaled_dot_product_attention

from megatron_reason import platform
from megatron_reason.models.packed import PackedSequences


class PackedAttention(MegatronModule):
    """Causal self-attention without dropout, as the `core_attention` of a layer spec."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType,
        softmax_scale: float | None = None, pg_collection: ProcessGroupCollection | None = None,
        **unused: Any,  # noqa: ANN401 - Megatron's call
    ) -> None:  # fmt: skip
        assert attn_mask_type == AttnMaskType.causal, f"only causal attention, not {attn_mask_type}"
        assert not config.attention_dropout, "attention dropout is not implemented"
        super().__init__(config=config)
        self.layer_number = layer_number
        self.softmax_scale = softmax_scale
        self._cp_group = pg_collection.cp if pg_collection is not None else None
        del unused

    def forward(  # noqa: PLR0913 - Megatron's signature
        self, query: Tensor, key: Tensor, value: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002
        attn_mask_type: AttnMaskType | None = None,  # noqa: ARG002
        attention_bias: Tensor | None = None,  # noqa: ARG002
        packed_seq_params: PackedSequences | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend.

        Args:
            query: [T, h, d] packed, or [S, B, h, d].
            key: [T, g, d] or [S, B, g, d].
            value: like `key`.
            attention_mask: unused; attention is causal.
            attn_mask_type: unused; attention is causal.
            attention_bias: unused.
            packed_seq_params: the packed sequences, if there are several.

        Returns:
            [T, h d] packed, or [S, B, h d].
        """
        if packed_seq_params is None:
            context = self._attend(*(x.permute(1, 2, 0, 3) for x in (query, key, value)))
            return context.permute(2, 0, 1, 3).flatten(2)
        rows = packed_seq_params.key_rows
        if rows is not None:
            key, value = self._of_all_ranks(key, value, rows)
        if platform.attends_at_once(query):
            return self._attend_at_once(query, key, value, packed_seq_params).flatten(1)
        return self._attend_one_by_one(query, key, value, packed_seq_params).flatten(1)

    def _of_all_ranks(self, key: Tensor, value: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """[T, g, d] twice -> the rows that this rank's parts see of [C T, g, d]."""
        both = torch.cat([key, value], dim=1)
        both = gather_from_sequence_parallel_region(both, group=self._cp_group)
        key, value = both.index_select(0, rows).chunk(2, dim=1)
        return key, value

    def _attend_at_once(
        self, query: Tensor, key: Tensor, value: Tensor, pack: PackedSequences
    ) -> Tensor:
        """All parts in one kernel, which aligns a part's last query with its last key."""
        assert pack.cu_queries is not None, "pack_of sets it"
        return varlen_attn(
            query.contiguous(),
            key.contiguous(),
            value.contiguous(),
            pack.cu_queries,
            pack.cu_keys,
            max(pack.query_lengths),
            max(pack.key_lengths),
            scale=self.softmax_scale,
            window_size=(-1, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )  # pyright: ignore[reportReturnType] - a tuple only where asked for

    def _attend_one_by_one(
        self, query: Tensor, key: Tensor, value: Tensor, pack: PackedSequences
    ) -> Tensor:
        """[T, h, d]: one part after the other."""
        parts = zip(
            query.split(pack.query_lengths),
            key.split(pack.key_lengths),
            value.split(pack.key_lengths),
            strict=True,
        )
        return torch.cat([self._attend_part(*part) for part in parts])

    def _attend_part(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[q, h, d], [k, g, d], [k, g, d] -> [q, h, d]; the last of q queries sees all k keys."""
        # The kernel counts causality from the first query and would need a mask to be told
        # otherwise, so that queries of no interest stand in for those before this part.
        before = len(key) - len(query)
        filled = pad(query, (0, 0, 0, 0, before, 0)) if before else query
        context = self._attend(*(x.transpose(0, 1)[None] for x in (filled, key, value)))
        return context[0].transpose(0, 1)[before:]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, h, S, d], [B, g, S, d], [B, g, S, d] -> [B, h, S, d]."""
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1],
            scale=self.softmax_scale,
        )  # fmt: skip
