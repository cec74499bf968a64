"""Policy gradient as LUFFY's code takes it, with likelihood beside it: shared by its descendants.

No standard deviation, no clip, the sum over tokens divided by the generation budget, an entropy
bonus over every token. Source: the released code of LUFFY (arXiv 2504.14945). Not here: who gets
which loss.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._surrogate import (
    PolicyConfig,
    PolicyMethod,
    Surrogate,
    bonus_losses,
    measured,
    penalty_losses,
    penalty_terms,
    policy_term,
)
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.method import EVERYTHING, ChunkMean, Term, TrainState, Where


class HybridConfig(PolicyConfig):
    """Settings with the released defaults of LUFFY, ReLIFT and HPT."""

    divide_by_std: bool = False
    """Whether advantages are divided by the group's standard deviation."""
    clip_low: float | None = Field(default=None, ge=0)
    """Ratios below 1 - clip_low are clipped; null does not clip at all."""
    clip_high: float | None = Field(default=None, ge=0)
    """Ratios above 1 + clip_high are clipped; null does not clip at all."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of -A r at negative advantages, in units of |A|; null leaves it unbounded."""
    mean: ChunkMean = "sum_over_constant"
    """Aggregation of the policy loss over the global batch."""
    policy_weight: float = Field(default=1.0, ge=0)
    """Weight of the policy loss and its KL penalty. The released runs average the gradients of
    their ranks: 1/8 on 8, where the loss is not divided by the number of sequences."""
    entropy_bonus: float = Field(default=0.001, ge=0)
    """Weight of the mean entropy over every token, demonstrations included."""
    sft_weight: float = Field(default=1.0, ge=0)
    """Weight of the likelihood of demonstrations."""
    sft_mean: ChunkMean = "token_mean"
    """Aggregation of that likelihood, and of the entropy bonus."""


H = TypeVar("H", bound=HybridConfig)


class HybridMethod(PolicyMethod[H], Generic[H]):
    """Policy gradient over rollouts, likelihood over demonstrations, bonus over both."""

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """A term without tokens weighs nothing, so that either may be empty."""
        config = self.config
        return [
            policy_term(config, coef=config.policy_weight),
            *measured(config),
            *penalty_terms(config, config.policy_weight),
            sft_term(config),
            *bonus_terms(config),
        ]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """-A r of rollouts, -log p of demonstrations, and what the settings add."""
        surrogate = Surrogate.of(stats, batch, self.config)
        losses = {"pg": surrogate.loss_T(), "sft": -stats.logprob_T, **surrogate.measures()}
        penalty = penalty_losses(stats, batch, self.config)
        return losses | penalty | bonus_losses(stats, self.config)


def sft_term(config: HybridConfig) -> Term:
    """The likelihood of demonstrations."""
    return _likelihood_term(config, "sft", Role.DEMO, config.sft_weight)


def bonus_terms(config: HybridConfig) -> list[Term]:
    """The entropy bonus over every token, if there is one."""
    if not config.entropy_bonus:
        return []
    return [_likelihood_term(config, "entropy_bonus", EVERYTHING, -config.entropy_bonus)]


def _likelihood_term(config: HybridConfig, name: str, over: Role | Where, coef: float) -> Term:
    """A term averaged as the settings say for the likelihood of demonstrations."""
    mean, length = config.sft_mean, config.max_response_length
    return Term(name, over, mean=mean, coef=coef, constant=length, chunk=config.chunk)
