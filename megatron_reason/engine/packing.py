"""Samples -> micro-batches: pack first, distribute second, equally many on every rank.

A sequence is never split. The assignment depends on lengths alone, so every rank computes the same
one and takes its share; pipeline schedules need the same number of micro-batches everywhere.
T packed tokens, S sequences. Not here: which samples (`order.py`) and their weights
(`aggregation.py`).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from megatron_reason.config.train import BatchConfig
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import ROLE_INDEX, PackedBatch, TokenizedSample
from megatron_reason.schema.topology import Rounding

_AS_THEY_ARE = Rounding()


def assign(lengths: Sequence[int], batch: BatchConfig, num_ranks: int) -> list[list[list[int]]]:
    """Indices of the sequences in each micro-batch of each rank.

    Longest first, each into the least filled micro-batch that has room; the number of
    micro-batches is the smallest multiple of `num_ranks` for which everything fits.

    Args:
        lengths: positions of each sequence, rounded as they will be packed.
        batch: limits of a micro-batch.
        num_ranks: data-parallel ranks.

    Returns:
        [rank][micro-batch][sequence]; some micro-batches may be empty.

    Raises:
        DataError: a sequence is longer than a micro-batch.
    """
    longest = max(lengths, default=0)
    if longest > batch.max_tokens_per_microbatch:
        raise DataError(
            "train.batch",
            f"a sequence of {longest} tokens does not fit into a micro-batch of "
            f"{batch.max_tokens_per_microbatch}.",
            f"Raise max_tokens_per_microbatch to {longest}, or drop such sequences in 'mix'.",
        )
    num_bins = num_ranks * max(-(-sum(lengths) // (num_ranks * batch.max_tokens_per_microbatch)), 1)
    while (bins := _fill(lengths, batch, num_bins)) is None:
        num_bins += num_ranks
    bins.sort(key=lambda members: -sum(lengths[i] for i in members))
    return [[sorted(members) for members in bins[rank::num_ranks]] for rank in range(num_ranks)]


def _fill(lengths: Sequence[int], batch: BatchConfig, num_bins: int) -> list[list[int]] | None:
    most = batch.max_sequences_per_microbatch or len(lengths)
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        open_bins = [
            b
            for b in range(num_bins)
            if filled[b] + lengths[index] <= batch.max_tokens_per_microbatch and len(bins[b]) < most
        ]
        if not open_bins:
            return None
        target = min(open_bins, key=lambda b: (filled[b], b))
        bins[target].append(index)
        filled[target] += lengths[index]
    return bins


def pack(
    samples: Sequence[TokenizedSample], *, rounding: Rounding = _AS_THEY_ARE,
    indices: Sequence[int] | None = None, groups: Mapping[str, int] | None = None,
    num_global_sequences: int | None = None,
) -> PackedBatch:  # fmt: skip
    """Lay `samples` end to end as one micro-batch, on the CPU.

    Args:
        samples: sequences of at least two tokens; may be empty, which gives one masked token.
        rounding: what each sequence, and T, is filled up to a multiple of.
        indices: index of each sample in the global batch; None where these samples are all of it.
        groups: index of each prompt in the global batch; None where these samples are all of it.
        num_global_sequences: sequences of the global batch; None where these samples are all of it.
    """
    groups = group_indices(samples) if groups is None else groups
    ids: list[int] = []
    targets: list[int] = []
    positions: list[int] = []
    segments: list[int] = []
    supervised: list[int] = []
    starts = [0]
    for index, sample in enumerate(samples):
        used, room = sample.num_positions, rounding.of_sequence(sample.num_positions)
        ids += [*sample.ids[:-1], *[0] * (room - used)]
        targets += [*sample.ids[1:], *[0] * (room - used)]
        positions += range(room)
        segments += [index] * used + [len(samples)] * (room - used)
        first = starts[-1] + max(sample.num_prompt_tokens - 1, 0)
        supervised += range(first, starts[-1] + used)
        starts.append(starts[-1] + room)
    if padding := rounding.of_pack(starts[-1]) - starts[-1]:
        ids += [0] * padding
        targets += [0] * padding
        positions += range(padding)
        segments += [len(samples)] * padding
        starts.append(starts[-1] + padding)
    supervised_N = torch.tensor(supervised, dtype=torch.int64)
    loss_mask_T = torch.zeros(len(ids), dtype=torch.bool)
    loss_mask_T[supervised_N] = True
    return PackedBatch(
        ids_T=torch.tensor(ids),
        target_T=torch.tensor(targets),
        position_T=torch.tensor(positions),
        segment_T=torch.tensor(segments),
        loss_mask_T=loss_mask_T,
        supervised_N=supervised_N,
        role_S=torch.tensor([ROLE_INDEX[s.role] for s in samples], dtype=torch.int64),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        max_seqlen=max((b - a for a, b in itertools.pairwise(starts)), default=0),
        sample_ids=tuple(sample.sample_id for sample in samples),
        index_S=torch.tensor(range(len(samples)) if indices is None else indices).long(),
        group_S=torch.tensor([groups[s.group] for s in samples], dtype=torch.int64),
        advantage_S=torch.tensor([s.advantage for s in samples], dtype=torch.float32),
        is_correct_S=torch.tensor([s.is_correct for s in samples], dtype=torch.bool),
        coef_S=torch.tensor([s.coef for s in samples], dtype=torch.float32),
        num_global_sequences=(
            len(samples) if num_global_sequences is None else num_global_sequences
        ),
        old_logprob_T=_laid_out(samples, "old_logprobs", loss_mask_T),
        rollout_logprob_T=_laid_out(samples, "rollout_logprobs", loss_mask_T),
    )


def group_indices(samples: Sequence[TokenizedSample]) -> dict[str, int]:
    """Index of each prompt among those of `samples`, in order of appearance."""
    return {name: index for index, name in enumerate(dict.fromkeys(s.group for s in samples))}


def _laid_out(
    samples: Sequence[TokenizedSample],
    field: Literal["old_logprobs", "rollout_logprobs"],
    loss_mask_T: Tensor,
) -> Tensor:
    """[T]: what each sequence recorded of its supervised tokens; 0 where it recorded nothing."""
    recorded_T = torch.zeros(len(loss_mask_T))
    values: list[float] = []
    for sample in samples:
        own: tuple[float, ...] | None = getattr(sample, field)
        values += (0.0,) * sample.num_targets if own is None else own
    return recorded_T.masked_scatter(loss_mask_T, torch.tensor(values, dtype=torch.float32))


def microbatches_of_rank(
    samples: Sequence[TokenizedSample], batch: BatchConfig, *, rank: int, num_ranks: int,
    rounding: Rounding = _AS_THEY_ARE,
) -> list[PackedBatch]:  # fmt: skip
    """Micro-batches of data-parallel rank `rank` for one update over `samples`."""
    lengths = [rounding.of_sequence(sample.num_positions) for sample in samples]
    shares = assign(lengths, batch, num_ranks)
    groups = group_indices(samples)
    return [
        pack(
            [samples[i] for i in members],
            rounding=rounding,
            indices=members,
            groups=groups,
            num_global_sequences=len(samples),
        )
        for members in shares[rank]
    ]
