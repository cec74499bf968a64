"""GRPO, with DAPO, Dr.GRPO and GSPO as settings.

Loss. -min(r A, clip(r) A) with r = p / p_old and A = (R - mean) / std within the prompt's rollouts,
plus, where asked for, a KL penalty and an entropy bonus.
Source: GRPO (arXiv 2402.03300) eqs. 1-3; DAPO (arXiv 2503.14476) eqs. 8-13; Dr.GRPO
(arXiv 2503.20783) eq. 3; GSPO (arXiv 2507.18071) eqs. 5-7.
Settings. GRPO as verl runs it: the defaults. DAPO: clip_high 0.28, dual_clip null,
drop_equal_groups true, overlong_buffer. Dr.GRPO: divide_by_std false, mean seq_mean_token_sum_norm.
GSPO: ratio sequence, mean seq_mean_token_mean, clip_low 3e-4, clip_high 4e-4. OXA's RL: kl_weight
0.001, temperature 0.85. SFT -> RL is a run of SFT whose weights a run of this starts from.
Data. Fresh rollouts, graded.
Expect. With one update per batch of rollouts the loss is 0 up to rounding and the gradient is
REINFORCE's; that is right. Groups whose rewards are all equal teach nothing.
Deviations. verl 0.5 averages over the tokens of each micro-batch; here the mean is over the global
batch. Dr.GRPO divides by the generation budget and by the sequences; verl's newest mode does not do
the latter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor

from megatron_reason.methods._rollout import group_advantages
from megatron_reason.methods._surrogate import (
    PolicyConfig,
    PolicyMethod,
    policy_losses,
    policy_terms,
)
from megatron_reason.schema.batch import PackedBatch, Role, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Needs, Term, TrainState, UpdatePlan, method


class GRPOConfig(PolicyConfig):
    """Configuration of GRPO and its kin."""

    name: Literal["grpo"] = "grpo"
    """Name of the method."""
    drop_equal_groups: bool = False
    """Leave out prompts whose rollouts all have the same reward, and answer others in their place
    (DAPO's dynamic sampling)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `max_response_length` over which the reward falls by up to 1 (DAPO eq. 13);
    0 does not punish length."""


@method
class GRPO(PolicyMethod[GRPOConfig]):
    """Group-relative policy optimisation."""

    config_class = GRPOConfig
    needs = Needs(roles=frozenset({Role.ROLLOUT}))

    def plan(self, state: TrainState) -> UpdatePlan:
        """Fresh rollouts of the next prompts, refilled where groups are dropped."""
        return replace(super().plan(state), refills=self.config.drop_equal_groups)

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """Policy gradient, and what the settings add."""
        return policy_terms(self.config)

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Clipped surrogate of each token."""
        return policy_losses(stats, batch, self.config)

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages within the group, after the penalty for length."""
        rewards = [
            reward + self._length_penalty(length)
            for reward, length in zip(group.rewards, group.lengths, strict=True)
        ]
        is_kept = not self.config.drop_equal_groups or len(set(group.rewards)) > 1
        advantages = group_advantages(rewards, divide_by_std=self.config.divide_by_std)
        return Credit(advantages, keep_rollouts=is_kept)

    def _length_penalty(self, length: int) -> float:
        buffer = self.config.overlong_buffer
        if not buffer:
            return 0.0
        room = self.config.max_response_length - length
        return min(0.0, max(-1.0, (room - buffer) / buffer))
