"""Fixture F and its golden statistics: eight tokens of four sequences, V = 5."""

from collections.abc import Sequence

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
OF_SEQUENCES = torch.tensor(
    [
        [1.6704708590, 5.3146696682, 0.9121664143, -3.3409417180],
        [1.1223931839, 3.0721977467, 0.9032541214, -3.3671795516],
        [0.6254717705, 1.8691275488, 1.0782348594, -0.6254717705],
        [0.8185328446, 2.2671711038, 1.0166268238, -1.6370656891],
    ],
    dtype=torch.float64,
)
"""Mean NLL, perplexity, mean entropy and sum of log-probs of each."""


OLD = torch.tensor([-0.5, -3.2, -0.002, -1.4, -1.6, -0.7, -1.2, -1.5], dtype=torch.float64)
ROLLOUT = torch.tensor([-0.4, -4.1, -0.002, -1.1, -1.65, 0.5, -1.6, -1.48], dtype=torch.float64)
REF_LOGITS = LOGITS + torch.tensor([0.5, -0.25, 0.0, 0.25, -0.5], dtype=torch.float64)
REF = torch.tensor(
    [
        -0.3197025136, -2.5525903327, -0.0006805258, -2.0753092477, -1.6711119844,
        -0.6765633842, -1.8383882419, -0.1070530682,
    ],
    dtype=torch.float64,
)  # fmt: skip


def batch(
    roles: tuple[Role, ...],
    keep: tuple[int, ...] = (0, 1, 2, 3),
    *,
    advantages: Sequence[float] = (),
    correct: Sequence[bool] = (),
    coefs: Sequence[float] = (),
    groups: Sequence[int] = (),
) -> PackedBatch:
    """Sequences A, B, C, D (or those of `keep`) as one micro-batch, every token supervised.

    What is not given is 0 (advantages, groups), False (correct) or 1 (coefs) for every sequence.
    """
    taken = rows(keep)
    number = len(keep)
    lengths = [LENGTHS[i] for i in keep]
    num_tokens = sum(lengths)
    segment_T = torch.repeat_interleave(torch.arange(len(keep)), torch.tensor(lengths))
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return PackedBatch(
        ids_T=torch.zeros(num_tokens, dtype=torch.int64),
        target_T=TARGET[taken],
        position_T=torch.zeros(num_tokens, dtype=torch.int64),
        segment_T=segment_T,
        loss_mask_T=torch.ones(num_tokens, dtype=torch.bool),
        supervised_N=torch.arange(num_tokens),
        role_S=torch.tensor([ROLE_INDEX[role] for role in roles]),
        cu_seqlens=starts,
        max_seqlen=max(lengths),
        sample_ids=tuple("ABCD"[i] for i in keep),
        index_S=torch.arange(number),
        group_S=torch.tensor(groups or [0] * number),
        advantage_S=torch.tensor(advantages or [0.0] * number, dtype=torch.float64),
        is_correct_S=torch.tensor(correct or [False] * number),
        coef_S=torch.tensor(coefs or [1.0] * number, dtype=torch.float64),
        num_global_sequences=max(number, *groups, 0) + 1,
        old_logprob_T=OLD[taken],
        rollout_logprob_T=ROLLOUT[taken],
        ref_logprob_T=REF[taken],
    )


def rows(keep: tuple[int, ...]) -> Tensor:
    """Token rows of the sequences of `keep`."""
    starts = [0, 2, 5, 6]
    return torch.tensor([starts[i] + t for i in keep for t in range(LENGTHS[i])])
