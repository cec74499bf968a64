"""Which tokens of a pack a context-parallel rank holds, and which keys its queries see.

Context parallelism (CP) cuts every sequence into 2 CP equal pieces; rank r holds the pieces r and
2 CP - 1 - r of each, so that all ranks attend to about as much. That is Megatron's own layout, by
which it applies rotary embeddings. T packed tokens, S sequences. Not here: the attention itself.
"""

import itertools
from dataclasses import dataclass

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class PackedSequences(PackedSeqParams):
    """Megatron's description of a pack, and what this rank's attention makes of it.

    A part is a run of queries next to each other: a whole sequence or, under context parallelism,
    one of its pieces. It sees its own sequence up to its last token.
    """

    query_lengths: tuple[int, ...] = ()
    """Tokens of each part."""
    key_lengths: tuple[int, ...] = ()
    """Keys that each part sees."""
    cu_queries: Tensor | None = None
    """int32: where the parts begin and the last ends."""
    cu_keys: Tensor | None = None
    """int32: the same among the keys they see."""
    key_rows: Tensor | None = None
    """int64: rows of all ranks' keys, one rank's after the other's, for one part after the other;
    None where the keys are this rank's own as they are."""


def pack_of(
    cu_seqlens: Tensor, max_seqlen: int, *, cp_rank: int = 0, cp_size: int = 1
) -> PackedSequences:
    """The description of a pack for one of `cp_size` ranks.

    Args:
        cu_seqlens: int32 [S + 1] starts of the whole sequences, each a multiple of 2 CP.
        max_seqlen: longest sequence.
        cp_rank: which of the ranks that share the sequences.
        cp_size: how many share them.
    """
    starts = cu_seqlens.tolist()
    lengths = tuple(end - begin for begin, end in itertools.pairwise(starts))
    query_lengths, key_lengths, key_rows = lengths, lengths, None
    cu_queries = cu_keys = cu_seqlens
    if cp_size > 1:
        pieces = [
            (begin, length // (2 * cp_size), piece)
            for begin, length in zip(starts[:-1], lengths, strict=True)
            for piece in _pieces(cp_rank, cp_size)
        ]
        query_lengths = tuple(size for _, size, _ in pieces)
        key_lengths = tuple((piece + 1) * size for _, size, piece in pieces)
        row_T = torch.empty(starts[-1], dtype=torch.int64, device=cu_seqlens.device)
        held = [own_places(cu_seqlens, rank, cp_size) for rank in range(cp_size)]
        row_T[torch.cat(held)] = torch.arange(starts[-1], device=cu_seqlens.device)
        seen = [row_T[begin : begin + (piece + 1) * size] for begin, size, piece in pieces]
        key_rows = torch.cat(seen)
        cu_queries, cu_keys = (_starts(x, row_T.device) for x in (query_lengths, key_lengths))
    return PackedSequences(
        qkv_format="thd",
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_kv=cu_seqlens,
        max_seqlen_q=max_seqlen,
        max_seqlen_kv=max_seqlen,
        query_lengths=query_lengths,
        key_lengths=key_lengths,
        cu_queries=cu_queries,
        cu_keys=cu_keys,
        key_rows=key_rows,
    )


def own_places(cu_seqlens: Tensor, cp_rank: int, cp_size: int) -> Tensor:
    """int64 [T / CP]: the places in the pack that a rank holds, in the order in which it does.

    Args:
        cu_seqlens: int32 [S + 1] starts of the whole sequences, each a multiple of 2 CP.
        cp_rank: which of the ranks that share them.
        cp_size: how many share them.
    """
    starts = cu_seqlens.long()
    size_S = starts.diff() // (2 * cp_size)
    piece_2 = torch.tensor(_pieces(cp_rank, cp_size), device=starts.device)
    begin_P = (starts[:-1, None] + size_S[:, None] * piece_2).flatten()
    size_P = size_S.repeat_interleave(2)
    first_P = size_P.cumsum(0) - size_P
    place_T = torch.arange(int(size_P.sum()), device=starts.device)
    return place_T + (begin_P - first_P).repeat_interleave(size_P)


def _pieces(cp_rank: int, cp_size: int) -> tuple[int, int]:
    return cp_rank, 2 * cp_size - 1 - cp_rank


def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor((0, *lengths), device=device).cumsum(0, dtype=torch.int32)
