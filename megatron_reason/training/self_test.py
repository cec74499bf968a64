"""Proof before the first update that a pack keeps its sequences apart on this model and layout.

Not here: what counts as apart (`engine/guards.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_reason.engine.guards import check_packing
from megatron_reason.engine.prepass import score_microbatches
from megatron_reason.engine.startup import Trainable
from megatron_reason.generation.probe import random_sequence, text_sequences
from megatron_reason.logs import get_logger
from megatron_reason.schema.batch import Role, TokenizedSample

_LOG = get_logger(__name__)


def prove_packing(samples: Sequence[TokenizedSample], trainable: Trainable) -> None:
    """Compare a sequence alone with itself first and last in a pack of two; all ranks call it.

    Args:
        samples: at least two short sequences, the same on every rank.
        trainable: the model on its layout.

    Raises:
        NumericsError: packed neighbours see each other.
    """
    topology = trainable.topology

    def score(microbatches: list[list[TokenizedSample]]) -> list[list[float]]:
        scores = score_microbatches(trainable.model, microbatches, topology)
        return [[sequence.logprob_sum for sequence in batch] for batch in scores]

    if topology.is_last_stage:
        worst = check_packing(score, samples, next(trainable.model.parameters()).dtype)
        _LOG.info("packing self-test: %.1e nats per token between alone and packed", worst)
    else:
        score([[samples[0]], list(samples[:2]), list(samples[1::-1])])
    dist.barrier()


def fixed_samples(hf_folder: Path) -> list[TokenizedSample]:
    """Two short sequences for a run that begins without any: texts, or tokens drawn at random."""
    drawn = random_sequence(hf_folder)
    sequences = [*text_sequences(hf_folder), drawn, drawn[::-1]][:2]
    return [
        TokenizedSample(f"fixed {number}", Role.DEMO, ids, 1)
        for number, ids in enumerate(sequences)
    ]
