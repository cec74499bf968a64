"""LUFFY: a demonstration inside the group, as an off-policy rollout with a shaped ratio.

Loss. -A r over rollouts, -A f(p) over the demonstration with f(p) = p / (p + gamma), minus an
entropy bonus; A from the mean over rollouts and demonstration together.
Source: LUFFY (arXiv 2504.14945) eqs. 4-8.
Data. Prompts with a demonstration each, which is graded like a rollout.
Expect. Rare demonstration tokens are pushed most: the gradient is largest at p = gamma.
Deviations. The defaults are the released script's, not the text's: no standard deviation, no clip,
the sum over tokens divided by the generation budget alone; the preset adds the 1/8 of its ranks.
The script takes the mean entropy within each micro-batch and adds those up, which multiplies the
bonus by their number; here it is one mean. It makes two updates of 64 prompts from 128 prompts.
Preset rl_with_sft_loss: the script adds up the token means of the likelihood likewise; here that,
too, is one mean. By default (`tis: token`) the policy loss of a rollout's token is multiplied by
min(p_old / p_engine, 2), which neither paper nor script does: `tis: none` is theirs.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megatron_reason.methods._hybrid import HybridConfig, bonus_terms, sft_term
from megatron_reason.methods._rollout import group_advantages
from megatron_reason.methods._surrogate import (
    PolicyMethod,
    Surrogate,
    bonus_losses,
    measured,
    penalty_losses,
    penalty_terms,
    policy_term,
)
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import EVERYTHING, Needs, Preset, Term, TrainState, method


class LUFFYConfig(HybridConfig):
    """Configuration of LUFFY."""

    name: Literal["luffy"] = "luffy"
    """Name of the method."""
    rollouts_per_prompt: int = Field(default=7, ge=1)
    """Rollouts drawn for each prompt, beside its demonstration."""
    gamma: float = Field(default=0.1, gt=0)
    """Probability at which the shaped ratio is steepest."""
    group: Literal["all", "rollouts"] = "all"
    """Whose rewards the advantages are relative to."""
    demo_loss: Literal["shaped", "likelihood"] = "shaped"
    """How the demonstration is learnt: reinforced off-policy, or imitated."""


_RELEASED = LUFFYConfig(
    prompts_per_update=64, rollouts_per_prompt=7, temperature=1.0, divide_by_std=False,
    clip_low=None, clip_high=None, mean="sum_over_constant", policy_weight=1 / 8,
    max_response_length=8192, entropy_bonus=0.001,
)  # fmt: skip


@method
class LUFFY(PolicyMethod[LUFFYConfig]):
    """Mixed-policy GRPO with policy shaping."""

    config_class = LUFFYConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))
    presets = (
        Preset(
            "paper",
            LUFFYConfig(
                divide_by_std=True,
                clip_low=0.2,
                clip_high=0.2,
                mean="token_mean",
                entropy_bonus=0.0,
                gamma=0.1,
                group="all",
                demo_loss="shaped",
            ),
            "LUFFY (arXiv 2504.14945) eqs. 4-8 as written",
        ),
        Preset(
            "released",
            LUFFYConfig(gamma=0.1, group="all", demo_loss="shaped"),
            "LUFFY's released script, on 8 ranks",
            over=_RELEASED,
        ),
        Preset(
            "rl_with_sft_loss",
            LUFFYConfig(group="rollouts", demo_loss="likelihood", sft_weight=1.0),
            "the baseline RL with SFT loss of LUFFY's repository, on 8 ranks",
            over=_RELEASED,
        ),
    )

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """One policy term over rollouts and demonstrations, or one of each."""
        config = self.config
        is_shaped = config.demo_loss == "shaped"
        over = EVERYTHING if is_shaped else Role.ROLLOUT
        policy = policy_term(config, over=over, coef=config.policy_weight)
        penalty = penalty_terms(config, config.policy_weight)
        likelihood = [] if is_shaped else [sft_term(config)]
        return [policy, *measured(config), *penalty, *likelihood, *bonus_terms(config)]

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """-A r of rollouts, -A f(p) of demonstrations, and what the settings add."""
        surrogate = Surrogate.of(stats, batch, self.config)
        losses = {"pg": surrogate.loss_T(), **surrogate.measures()}
        if self.config.demo_loss == "shaped":
            prob_T = stats.logprob_T.exp()
            shaped_T = -surrogate.advantage_T * prob_T / (prob_T + self.config.gamma)
            is_demo_T = batch.role_mask_T(Role.DEMO)
            losses["pg"] = torch.where(is_demo_T, shaped_T, losses["pg"])
        else:
            losses["sft"] = -stats.logprob_T
        penalty = penalty_losses(stats, batch, self.config)
        return losses | penalty | bonus_losses(stats, self.config)

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages over the group, the demonstration a member of it or not."""
        joins = group.demo_reward is not None and self.config.group == "all"
        rewards = (*group.rewards, group.demo_reward) if joins else group.rewards
        advantages = group_advantages(
            [reward for reward in rewards if reward is not None],
            divide_by_std=self.config.divide_by_std,
        )
        count = len(group.rewards)
        return Credit(
            advantages[:count],
            demo_advantage=advantages[count] if joins else 0.0,
            keep_demo=group.demo_reward is not None,
        )
