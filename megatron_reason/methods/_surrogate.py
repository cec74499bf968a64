"""Policy-gradient maths: ratio, clip, dual clip, sequence ratio, KL estimates.

T packed tokens. Source: PPO (arXiv 1707.06347) eq. 7; dual clip (arXiv 1912.09729) eq. 5; GSPO
(arXiv 2507.18071) eq. 5; estimators k1, k2, k3 of Schulman's note on approximating KL.
Advantages and anchors are constants. Not here: which sequences, how values are averaged, and the
weight for what is not the trainer's own (`_correction.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from megatron_reason.methods._correction import MAX_LOG_RATIO, CorrectedConfig, truncated_weight
from megatron_reason.methods._rollout import RolloutMethod, group_advantages
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import ChunkMean, Frozen, Needs, Term, Where

KLKind = Literal["k1", "k2", "k3", "k3_plus"]
_MAX_LOG_SEQUENCE_RATIO = 10.0
_MAX_K3 = 10.0


class PolicyConfig(CorrectedConfig):
    """Settings of every method with an importance-weighted policy gradient."""

    old_policy: Literal["prepass", "current", "rollout"] = "prepass"
    """Anchor of the ratio: `prepass`, the trainer's own log-probs before the first update on these
    rollouts; `current`, strictly on-policy, ratio 1; `rollout`, the engine's log-probs."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or the sequence's geometric mean (GSPO)."""
    clip_low: float | None = Field(default=0.2, ge=0)
    """Ratios below 1 - clip_low are clipped; null does not clip at all."""
    clip_high: float | None = Field(default=0.2, ge=0)
    """Ratios above 1 + clip_high are clipped; null does not clip at all."""
    dual_clip: float | None = Field(default=3.0, gt=1)
    """Bound of -A r at negative advantages, in units of |A|; null leaves it unbounded."""
    mean: ChunkMean = "token_mean"
    """Aggregation of the policy loss over the global batch."""
    chunk: int = Field(default=4, ge=1)
    """Sequences of a chunk, where something goes by chunks: a released code's micro-batch."""
    max_response_length: int = Field(default=8192, ge=1)
    """Generation budget in tokens; the constant of aggregations that divide by one."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of a KL penalty of rollouts to the reference model, averaged as the policy loss is; 0
    needs no reference model."""
    kl_kind: KLKind = "k3"
    """Estimator of that penalty; `k3_plus` has the value of k3 and the gradient of k2."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy that is added to the objective."""

    @property
    def clips(self) -> bool:
        """Whether ratios are clipped."""
        return self.clip_low is not None or self.clip_high is not None


P = TypeVar("P", bound=PolicyConfig)


class PolicyMethod(RolloutMethod[P], Generic[P]):
    """Base of the methods with an importance-weighted policy gradient."""

    def required(self) -> Needs:
        """Needs of the class, and what the settings add."""
        config = self.config
        frozen = {
            Frozen.OLD_LOGPROB: config.old_policy == "prepass",
            Frozen.ROLLOUT_LOGPROB: config.old_policy == "rollout" or config.tis != "none",
            Frozen.REF_LOGPROB: config.kl_weight > 0,
        }
        stats = {Stat.ENTROPY} if config.entropy_bonus else set[Stat]()
        return Needs(
            roles=self.needs.roles,
            stats=self.needs.stats | stats,
            frozen=self.needs.frozen | {what for what, is_needed in frozen.items() if is_needed},
            whole_sequences="sequence" in (config.ratio, config.tis),
        )

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages within the group's rollouts; the demonstration, if any, has none."""
        rewards = group.rewards
        return Credit(group_advantages(rewards, divide_by_std=self.config.divide_by_std))


def policy_term(
    config: PolicyConfig, *, name: str = "pg", over: Role | Where = Role.ROLLOUT, coef: float = 1.0
) -> Term:
    """A term averaged as the settings say for the policy loss."""
    length = config.max_response_length
    return Term(name, over, mean=config.mean, coef=coef, constant=length, chunk=config.chunk)


def policy_terms(config: PolicyConfig, coef: float = 1.0) -> list[Term]:
    """Policy gradient, penalty and bonus over the rollouts, and what is only measured.

    Args:
        config: settings.
        coef: factor of the whole.
    """
    bonus = rollout_bonus_terms(config, coef)
    return [policy_term(config, coef=coef), *measured(config), *penalty_terms(config, coef), *bonus]


def measured(config: PolicyConfig) -> list[Term]:
    """How far the policy has moved, and what the clip took, if any; values: `measures`."""
    names = ["policy/ppo_kl"]
    if config.clips:
        names += ["policy/clipfrac_low", "policy/clipfrac_high"]
    return [Term(name, over=Role.ROLLOUT, mean="token_mean", coef=0.0) for name in names]


def penalty_terms(config: PolicyConfig, coef: float = 1.0) -> list[Term]:
    """The KL penalty over the rollouts, if there is one."""
    weight = coef * config.kl_weight
    return [policy_term(config, name="policy/kl_ref", coef=weight)] if config.kl_weight else []


def rollout_bonus_terms(config: PolicyConfig, coef: float = 1.0) -> list[Term]:
    """The entropy bonus over the rollouts, if there is one."""
    if not config.entropy_bonus:
        return []
    weight = -coef * config.entropy_bonus
    return [Term("entropy_bonus", over=Role.ROLLOUT, mean="token_mean", coef=weight)]


def policy_losses(stats: TokenStats, batch: PackedBatch, config: PolicyConfig) -> dict[str, Tensor]:
    """Values [T] of `policy_terms`."""
    surrogate = Surrogate.of(stats, batch, config)
    return {
        "pg": surrogate.loss_T(),
        **surrogate.measures(),
        **penalty_losses(stats, batch, config),
        **bonus_losses(stats, config),
    }


def penalty_losses(
    stats: TokenStats, batch: PackedBatch, config: PolicyConfig
) -> dict[str, Tensor]:
    """Values [T] of `penalty_terms`."""
    if not config.kl_weight:
        return {}
    assert batch.ref_logprob_T is not None, f"the engine fills {Frozen.REF_LOGPROB}"
    return {"policy/kl_ref": kl_estimate(stats.logprob_T, batch.ref_logprob_T, config.kl_kind)}


def bonus_losses(stats: TokenStats, config: PolicyConfig) -> dict[str, Tensor]:
    """Values [T] of an entropy bonus, whichever tokens it covers."""
    return {"entropy_bonus": stats.entropy_T} if config.entropy_bonus else {}


@dataclass(frozen=True)
class Surrogate:
    """Ratio and advantage of every token; log-probs are differentiable, all else is constant."""

    logprob_T: Tensor
    old_logprob_T: Tensor
    ratio_T: Tensor
    advantage_T: Tensor
    weight_T: Tensor | None
    config: PolicyConfig

    @classmethod
    def of(cls, stats: TokenStats, batch: PackedBatch, config: PolicyConfig) -> "Surrogate":
        """Of the current policy on `batch`."""
        logprob_T = stats.logprob_T
        old_T = _anchor(logprob_T, batch, config)
        difference_T = logprob_T - old_T
        if config.ratio == "sequence":
            mean_T = batch.per_token(batch.sequence_means(difference_T.detach()))
            log_ratio_T = (logprob_T - logprob_T.detach() + mean_T).clamp(
                max=_MAX_LOG_SEQUENCE_RATIO
            )
        else:
            log_ratio_T = difference_T.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        advantage_T = batch.per_token(batch.advantage_S).to(logprob_T.dtype)
        weight_T = None if config.tis == "none" else truncated_weight(old_T, batch, config)
        return cls(logprob_T, old_T, log_ratio_T.exp(), advantage_T, weight_T, config)

    def loss_T(self) -> Tensor:
        """[T]: -A r, clipped and truncated as configured."""
        unclipped_T = -self.advantage_T * self.ratio_T
        loss_T = torch.maximum(unclipped_T, -self.advantage_T * self._clipped_ratio_T())
        if self.config.dual_clip is not None:
            bounded_T = torch.minimum(loss_T, -self.advantage_T * self.config.dual_clip)
            loss_T = torch.where(self.advantage_T < 0, bounded_T, loss_T)
        return loss_T if self.weight_T is None else self.weight_T * loss_T

    def is_clipped_T(self) -> tuple[Tensor, Tensor]:
        """Bool [T] each: the clip took the gradient at the lower, at the upper bound."""
        low, high = self.config.clip_low, self.config.clip_high
        never_T = torch.zeros_like(self.ratio_T, dtype=torch.bool)
        is_low_T = never_T if low is None else (self.advantage_T < 0) & (self.ratio_T < 1 - low)
        is_high_T = never_T if high is None else (self.advantage_T > 0) & (self.ratio_T > 1 + high)
        return is_low_T, is_high_T

    def measures(self) -> Mapping[str, Tensor]:
        """Values [T] of `measured`, without a gradient."""
        found = {"policy/ppo_kl": (self.old_logprob_T - self.logprob_T).detach()}
        if self.config.clips:
            is_low_T, is_high_T = self.is_clipped_T()
            dtype = self.logprob_T.dtype
            found["policy/clipfrac_low"] = is_low_T.to(dtype)
            found["policy/clipfrac_high"] = is_high_T.to(dtype)
        return found

    def _clipped_ratio_T(self) -> Tensor:
        low = None if self.config.clip_low is None else 1 - self.config.clip_low
        high = None if self.config.clip_high is None else 1 + self.config.clip_high
        return self.ratio_T if low is None and high is None else self.ratio_T.clamp(low, high)


def kl_estimate(logprob_T: Tensor, ref_logprob_T: Tensor, kind: KLKind) -> Tensor:
    """[T]: single-sample estimate of KL(policy || reference), differentiable in the policy.

    k1 = d, k2 = d^2 / 2, k3 = e^-d + d - 1 with d = log p - log p_ref, as verl bounds it.
    """
    difference_T = logprob_T - ref_logprob_T
    if kind == "k1":
        return difference_T
    k2_T = 0.5 * difference_T.square()
    if kind == "k2":
        return k2_T
    back_T = (-difference_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    k3_T = (back_T.exp() - back_T - 1).clamp(-_MAX_K3, _MAX_K3)
    return k3_T if kind == "k3" else k3_T.detach() + k2_T - k2_T.detach()


def _anchor(logprob_T: Tensor, batch: PackedBatch, config: PolicyConfig) -> Tensor:
    if config.old_policy == "current":
        return logprob_T.detach()
    return batch.old_logprob_T if config.old_policy == "prepass" else batch.rollout_logprob_T
