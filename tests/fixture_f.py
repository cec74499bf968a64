"""Fixture F of METHODS 0.1 and its golden statistics: eight tokens of four sequences, V = 5."""

import torch
from torch import Tensor

from megatron_reason.schema.batch import ROLE_INDEX, PackedBatch, Role

LOGITS = torch.tensor(
    [
        [2.0, 1.0, 0.0, -1.0, 0.5],
        [0.1, -0.2, 3.0, 0.4, -1.5],
        [8.0, 0.0, -1.0, 0.5, -2.0],
        [-1.0, 2.5, 0.3, 0.7, 1.2],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [1.5, -0.5, 0.25, 2.0, -3.0],
        [0.3, 0.6, -0.9, 1.2, 0.0],
        [-2.0, 0.5, 0.5, 3.5, 1.0],
    ],
    dtype=torch.float64,
)
TARGET = torch.tensor([0, 3, 0, 4, 2, 3, 1, 3])
LENGTHS = (2, 3, 1, 2)
LOGPROB = torch.tensor(
    [
        -0.5744379396, -2.7665037784, -0.0010567981, -1.7566848410, -1.6094379124,
        -0.6254717705, -1.4666936554, -0.1703720338,
    ],
    dtype=torch.float64,
)  # fmt: skip
ENTROPY = torch.tensor(
    [
        1.2064892076, 0.6178436210, 0.0094444507, 1.0908800011, 1.6094379124,
        1.0782348594, 1.4189313993, 0.6143222483,
    ],
    dtype=torch.float64,
)  # fmt: skip


def batch(roles: tuple[Role, ...], keep: tuple[int, ...] = (0, 1, 2, 3)) -> PackedBatch:
    """Sequences A, B, C, D (or those of `keep`) as one micro-batch, every token supervised."""
    lengths = [LENGTHS[i] for i in keep]
    num_tokens = sum(lengths)
    segment_T = torch.repeat_interleave(torch.arange(len(keep)), torch.tensor(lengths))
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return PackedBatch(
        ids_T=torch.zeros(num_tokens, dtype=torch.int64),
        target_T=TARGET[rows(keep)],
        position_T=torch.zeros(num_tokens, dtype=torch.int64),
        segment_T=segment_T,
        loss_mask_T=torch.ones(num_tokens, dtype=torch.bool),
        supervised_N=torch.arange(num_tokens),
        role_S=torch.tensor([ROLE_INDEX[role] for role in roles]),
        cu_seqlens=starts,
        max_seqlen=max(lengths),
        sample_ids=tuple("ABCD"[i] for i in keep),
    )


def rows(keep: tuple[int, ...]) -> Tensor:
    """Token rows of the sequences of `keep`."""
    starts = [0, 2, 5, 6]
    return torch.tensor([starts[i] + t for i in keep for t in range(LENGTHS[i])])
