"""CHORD: a scheduled mixture of GRPO on rollouts and SFT on expert data.

Loss. (1 - mu) L_GRPO + mu L_SFT. CHORD-mu lets mu fall from 0.9 to 0.05 over 200 updates; CHORD-phi
holds mu at 0.1 and weighs each expert token by p (1 - p).
Source: CHORD (arXiv 2508.11408) eqs. 3-6
Data. Rollouts, graded; expert demonstrations of any prompts, in a batch of their own.
Expect. Expert tokens the model is sure of, or sure against, are left alone by phi.
Deviations. The code averages the tokens of each micro-batch and then weighs by sequences, rollouts
and experts each by their own. Here both are token means of the global batch, unless `sft_mean` and
`mean` say otherwise (`chunk_mean_token_mean`: of chunks of `chunk` sequences). The configuration
the repository ships (preset shipped) combines both variants and is neither. The code's bound on the
experts' log p, off by default, is missing. By default (`tis: token`) the policy loss of a token is
multiplied by min(p_old / p_engine, 2), which neither paper nor code does: `tis: none` is theirs.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._likelihood import TokenWeight, weighted_nll
from megatron_reason.methods._surrogate import (
    PolicyConfig,
    PolicyMethod,
    policy_losses,
    policy_terms,
)
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import (
    ChunkMean,
    Needs,
    Preset,
    Term,
    TrainState,
    UpdatePlan,
    method,
)


class CHORDConfig(PolicyConfig):
    """Configuration of CHORD."""

    name: Literal["chord"] = "chord"
    """Name of the method."""
    prompts_per_update: int = Field(default=32, ge=1)
    """Prompts whose rollouts make one optimizer update."""
    demos_per_update: int = Field(default=64, ge=1)
    """Expert demonstrations per optimizer update."""
    warmup_updates: int = Field(default=0, ge=0)
    """Updates over which mu rises from 0 to its peak."""
    decay_updates: int = Field(default=200, ge=0)
    """Updates over which mu then falls to its valley, along half a cosine."""
    peak: float = Field(default=0.9, ge=0, le=1)
    """Largest mu."""
    valley: float = Field(default=0.05, ge=0, le=1)
    """Mu in the end."""
    token_weight: TokenWeight = "none"
    """Constant factor of each expert token: 1, p (1 - p) (CHORD-phi), or p."""
    sft_mean: ChunkMean = "token_mean"
    """Aggregation of the expert term over the global batch."""


_MU = CHORDConfig(
    prompts_per_update=32, rollouts_per_prompt=8, demos_per_update=64, temperature=1.0,
    clip_low=0.2, clip_high=0.2, dual_clip=3.0, mean="token_mean", max_response_length=10240,
    kl_weight=0.0, warmup_updates=0, decay_updates=200, peak=0.9, valley=0.05, token_weight="none",
)  # fmt: skip


@method
class CHORD(PolicyMethod[CHORDConfig]):
    """Scheduled mixture of GRPO and expert likelihood."""

    config_class = CHORDConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))
    presets = (
        Preset("mu", _MU, "CHORD-mu: comments of Trinity-RFT's configuration"),
        Preset(
            "phi",
            CHORDConfig(
                decay_updates=0, peak=0.1, valley=0.1, token_weight="probability_complement"
            ),
            "CHORD-phi: CHORD (arXiv 2508.11408) eq. 6, and Trinity-RFT",
            over=_MU,
        ),
        Preset(
            "shipped",
            CHORDConfig(
                warmup_updates=200,
                decay_updates=400,
                peak=0.5,
                valley=0.02,
                token_weight="probability_complement",
            ),
            "the configuration that Trinity-RFT ships: phi under a schedule of its own",
            over=_MU,
        ),
    )

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """Fresh rollouts, and expert demonstrations from the table."""
        config = self.config
        return UpdatePlan(
            counts={Role.DEMO: config.demos_per_update},
            prompts=config.prompts_per_update,
            rollouts_per_prompt=config.rollouts_per_prompt,
        )

    def mu(self, update: int) -> float:
        """Weight of the expert term at `update` (from 0)."""
        config = self.config
        if update < config.warmup_updates:
            return update / config.warmup_updates * config.peak
        done = update - config.warmup_updates
        if done >= config.decay_updates:
            return config.valley
        cosine = 1 + math.cos(math.pi * done / config.decay_updates)
        return config.valley + (config.peak - config.valley) / 2 * cosine

    def terms(self, state: TrainState) -> Sequence[Term]:
        """GRPO and likelihood, weighted by the schedule."""
        mu = self.mu(state.update)
        mean, length = self.config.sft_mean, self.config.max_response_length
        expert = Term("sft", Role.DEMO, mean, coef=mu, constant=length, chunk=self.config.chunk)
        return [*policy_terms(self.config, coef=1 - mu), expert]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Clipped surrogate of rollouts, weighted likelihood of demonstrations."""
        expert_T = weighted_nll(stats.logprob_T, self.config.token_weight)
        return {**policy_losses(stats, batch, self.config), "sft": expert_T}
