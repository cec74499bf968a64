"""Truncated importance weights: rollouts come from an engine that is not quite the trainer.

T packed tokens. It rounds otherwise, or holds weights one step old. Source: truncated importance
sampling (Ionides 2008), as verl applies it to rollouts. Not here: measuring the gap
(`rollout/mismatch.py`).
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._rollout import RolloutConfig
from megatron_reason.schema.batch import PackedBatch

MAX_LOG_RATIO = 20.0


class CorrectedConfig(RolloutConfig):
    """Settings of every method that weighs its rollouts by trainer over engine."""

    tis: Literal["none", "token", "sequence"] = "token"
    """Truncated importance weights for the gap between engine and trainer, which the published
    methods leave uncorrected: `none` is theirs to the letter. No preset changes it."""
    tis_cap: float = Field(default=2.0, gt=0)
    """Largest such weight."""


def truncated_weight(trainer_T: Tensor, batch: PackedBatch, config: CorrectedConfig) -> Tensor:
    """[T]: min(p_trainer / p_engine, cap) of the token or of its whole sequence; a constant.

    Args:
        trainer_T: log-probs of the trainer's policy, of rollout tokens.
        batch: has the engine's.
        config: level and cap; asked only where `tis` is not `none`.
    """
    gap_T = (trainer_T - batch.rollout_logprob_T).detach()
    if config.tis == "sequence":
        gap_T = batch.per_token(batch.sequence_sums(gap_T))
    return gap_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=config.tis_cap)
