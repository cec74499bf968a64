"""SRFT: supervised and reinforcement fine-tuning in one stage, weighted by entropy.

Loss. Four means: w_SFT -log p and -A p over demonstrations, w_RL -log p over correct rollouts and
log p over wrong ones, with w_SFT = 0.5 sg[exp(-H)] and w_RL = 0.1 sg[exp(H)].
Source: SRFT (arXiv 2506.19767) eqs. 7-13.
Data. Prompts with a demonstration each; rollouts and demonstration form one group for A.
Expect. `train/wrong` falls without bound if rollouts are used for several updates: make one.
If every rollout is right, the demonstration's advantage is 0 and only likelihood terms remain.
Deviations. The paper does not say where H is measured, nor how the means are taken. Default: the
mean entropy of the own sequence, token means with global counts. The public third-party code
(preset third_party) divides rollout terms by a constant, drops the standard deviation, shapes p as
LUFFY does and adds an entropy bonus; it takes the means of likelihood and bonus within each
micro-batch and adds them up, here they are taken over the global batch. The ablations (presets
without_w_sft, without_w_rl) set a weight to 1, its factor included. There is no policy ratio; with
`tis` rollout terms are weighed by the current policy over the engine's, which neither has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megatron_reason.methods._correction import CorrectedConfig, truncated_weight
from megatron_reason.methods._rollout import RolloutMethod, group_advantages
from megatron_reason.schema.batch import (
    ROLE_INDEX,
    GlobalTokens,
    PackedBatch,
    Role,
    Stat,
    TokenStats,
)
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import (
    EVERYTHING,
    Frozen,
    Mean,
    Needs,
    Preset,
    Term,
    TrainState,
    Where,
    method,
)


class SRFTConfig(CorrectedConfig):
    """Configuration of SRFT."""

    name: Literal["srft"] = "srft"
    """Name of the method."""
    prompts_per_update: int = Field(default=128, ge=1)
    """Prompts whose rollouts and demonstration make one optimizer update."""
    sft_scale: float = Field(default=0.5, ge=0)
    """Factor of exp(-H) in the weight of demonstrations."""
    rl_scale: float = Field(default=0.1, ge=0)
    """Factor of exp(H) in the weight of correct rollouts."""
    weigh_sft: bool = True
    """Weigh demonstrations by entropy; false is the ablation with weight 1."""
    weigh_rl: bool = True
    """Weigh correct rollouts by entropy; false is the ablation with weight 1."""
    entropy_scope: Literal["token", "sequence", "subset", "batch"] = "sequence"
    """Tokens whose mean entropy is H: the token alone, its sequence, its term, or all."""
    demo_shape: Literal["none", "luffy"] = "none"
    """Reinforce demonstrations by p, or by p / (p + 0.1)."""
    mean: Mean = "token_mean"
    """Aggregation of the likelihood of demonstrations."""
    rl_mean: Mean = "token_mean"
    """Aggregation of the three other terms."""
    rl_weight: float = Field(default=1.0, ge=0)
    """Weight of the three other terms. The third-party code averages the gradients of its ranks:
    1/8 on 8, where the loss is not divided by the number of sequences."""
    max_response_length: int = Field(default=8192, ge=1)
    """Generation budget in tokens; the constant of aggregations that divide by one."""
    entropy_bonus: float = Field(default=0.0, ge=0)
    """Weight of the mean entropy over every token; not in the paper."""


_PAPER = SRFTConfig(
    rollouts_per_prompt=8, divide_by_std=True, sft_scale=0.5, rl_scale=0.1, weigh_sft=True,
    weigh_rl=True, demo_shape="none",
)  # fmt: skip
_LUFFY_GAMMA = 0.1
_CORRECT = Where(
    "correct rollouts", lambda b: (b.role_S == ROLE_INDEX[Role.ROLLOUT]) & b.is_correct_S
)
_WRONG = Where("wrong rollouts", lambda b: (b.role_S == ROLE_INDEX[Role.ROLLOUT]) & ~b.is_correct_S)


@method
class SRFT(RolloutMethod[SRFTConfig]):
    """Entropy-weighted likelihood and reinforcement in one stage."""

    config_class = SRFTConfig
    needs = Needs(
        roles=frozenset({Role.DEMO, Role.ROLLOUT}), stats=frozenset({Stat.LOGPROB, Stat.ENTROPY})
    )
    presets = (
        Preset("paper", _PAPER, "SRFT (arXiv 2506.19767) eqs. 7-13"),
        Preset(
            "without_w_sft",
            SRFTConfig(weigh_sft=False), "SRFT Table 3, ablation w_SFT = 1", over=_PAPER,
        ),
        Preset(
            "without_w_rl",
            SRFTConfig(weigh_rl=False), "SRFT Table 3, ablation w_RL = 1", over=_PAPER,
        ),
        Preset(
            "third_party",
            SRFTConfig(
                prompts_per_update=64, rollouts_per_prompt=7, divide_by_std=False,
                entropy_scope="sequence", demo_shape="luffy", mean="token_mean",
                rl_mean="sum_over_constant", rl_weight=1 / 8, max_response_length=8192,
                entropy_bonus=0.001,
            ),
            "train_srft.sh of HPT's repository, on 8 ranks; SRFT's own code is not public",
        ),
    )  # fmt: skip

    def required(self) -> Needs:
        """What the scope of the entropy reaches beyond the token, and what weights compare with."""
        config = self.config
        frozen = {
            Frozen.ROLLOUT_LOGPROB: config.tis != "none",
            Frozen.COEFFICIENTS: config.entropy_scope in ("subset", "batch"),
        }
        return replace(
            self.needs,
            frozen=frozenset(what for what, is_needed in frozen.items() if is_needed),
            whole_sequences="sequence" in (config.entropy_scope, config.tis),
        )

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """Likelihood and reinforcement of demonstrations, correct and wrong rollouts; weights."""
        config = self.config
        mean, weight, length = config.rl_mean, config.rl_weight, config.max_response_length
        terms = [
            Term("sft", over=Role.DEMO, mean=config.mean, constant=length),
            Term("rl_demo", over=Role.DEMO, mean=mean, coef=weight, constant=length),
            Term("correct", over=_CORRECT, mean=mean, coef=weight, constant=length),
            Term("wrong", over=_WRONG, mean=mean, coef=weight, constant=length),
            Term("srft/w_sft", over=Role.DEMO, mean="token_mean", coef=0.0),
            Term("srft/w_rl", over=_CORRECT, mean="token_mean", coef=0.0),
        ]
        if config.entropy_bonus:
            bonus = -config.entropy_bonus
            terms.append(Term("entropy_bonus", over=EVERYTHING, mean="token_mean", coef=bonus))
        return terms

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Weighted likelihoods, -A p of demonstrations, and the two weights."""
        config = self.config
        nll_T = -stats.logprob_T
        entropy_T = self._entropy_T(stats, batch)
        one_T = torch.ones_like(entropy_T)
        w_sft_T = config.sft_scale * (-entropy_T).exp() if config.weigh_sft else one_T
        w_rl_T = config.rl_scale * entropy_T.exp() if config.weigh_rl else one_T
        prob_T = stats.logprob_T.exp()
        if config.demo_shape == "luffy":
            prob_T = prob_T / (prob_T + _LUFFY_GAMMA)
        advantage_T = batch.per_token(batch.advantage_S).to(prob_T.dtype)
        own_T = nll_T
        if config.tis != "none":
            own_T = truncated_weight(stats.logprob_T, batch, config) * nll_T
        losses = {
            "sft": w_sft_T * nll_T, "rl_demo": -advantage_T * prob_T, "correct": w_rl_T * own_T,
            "wrong": -own_T, "srft/w_sft": w_sft_T, "srft/w_rl": w_rl_T,
        }  # fmt: skip
        return losses | ({"entropy_bonus": stats.entropy_T} if config.entropy_bonus else {})

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages over rollouts and demonstration together."""
        demo = () if group.demo_reward is None else (group.demo_reward,)
        advantages = group_advantages(
            (*group.rewards, *demo), divide_by_std=self.config.divide_by_std
        )
        count = len(group.rewards)
        return Credit(
            advantages[:count],
            demo_advantage=advantages[count] if demo else 0.0,
            keep_demo=bool(demo),
        )

    def coefficients(self, whole: GlobalTokens, state: TrainState) -> Tensor:  # noqa: ARG002
        """[N]: the mean entropy of each token's term, or of the batch."""
        if self.config.entropy_scope == "batch":
            return whole.entropy_N.mean().expand_as(whole.entropy_N)
        is_rollout_S = whole.role_S == ROLE_INDEX[Role.ROLLOUT]
        subset_N = whole.per_token(torch.where(is_rollout_S, 1 + whole.is_correct_S.long(), 0))
        sums = whole.entropy_N.new_zeros(3).index_add(0, subset_N, whole.entropy_N)
        return (sums / torch.bincount(subset_N, minlength=3).clamp(min=1))[subset_N]

    def _entropy_T(self, stats: TokenStats, batch: PackedBatch) -> Tensor:
        entropy_T = stats.entropy_T.detach()
        match self.config.entropy_scope:
            case "token":
                return entropy_T
            case "sequence":
                return batch.per_token(batch.sequence_means(entropy_T))
            case "subset" | "batch":
                assert batch.coef_T is not None, f"the engine fills {Frozen.COEFFICIENTS}"
                return batch.coef_T.to(entropy_T.dtype)
