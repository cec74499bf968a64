"""LUFFY: a demonstration inside the group, as an off-policy rollout with a shaped ratio.

Loss. -A r over rollouts, -A f(p) over the demonstration with f(p) = p / (p + gamma), minus an
entropy bonus; A from the mean over rollouts and demonstration together.
Source: LUFFY (arXiv 2504.14945) eqs. 4-8.
Data. Prompts with a demonstration each, which is graded like a rollout.
Expect. Rare demonstration tokens are pushed most: the gradient is largest at p = gamma.
Deviations. The defaults are the released script's, not the text's: no standard deviation, no clip,
the sum over tokens divided by the generation budget alone. `demo_loss: likelihood` with
`group: rollouts` is the repository's baseline "RL with SFT loss".
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megatron_reason.methods._hybrid import HybridConfig, bonus_losses, bonus_terms
from megatron_reason.methods._rollout import group_advantages
from megatron_reason.methods._surrogate import PolicyMethod, Surrogate
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import EVERYTHING, Needs, Term, TrainState, method


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


@method
class LUFFY(PolicyMethod[LUFFYConfig]):
    """Mixed-policy GRPO with policy shaping."""

    config_class = LUFFYConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """One policy term over rollouts and demonstrations, or one of each."""
        config = self.config
        is_shaped = config.demo_loss == "shaped"
        over = EVERYTHING if is_shaped else Role.ROLLOUT
        length = config.max_response_length
        terms = [Term("pg", over=over, mean=config.mean, constant=length)]
        if not is_shaped:
            terms.append(Term("sft", over=Role.DEMO, mean="token_mean", coef=config.sft_weight))
        return terms + bonus_terms(config)

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """-A r of rollouts, -A f(p) of demonstrations."""
        surrogate = Surrogate.of(stats, batch, self.config)
        losses = {"pg": surrogate.loss_T()}
        if self.config.demo_loss == "shaped":
            prob_T = stats.logprob_T.exp()
            shaped_T = -surrogate.advantage_T * prob_T / (prob_T + self.config.gamma)
            is_demo_T = batch.role_mask_T(Role.DEMO)
            losses["pg"] = torch.where(is_demo_T, shaped_T, losses["pg"])
        else:
            losses["sft"] = -stats.logprob_T
        return losses | bonus_losses(stats, self.config)

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
