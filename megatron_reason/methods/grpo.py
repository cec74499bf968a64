"""GRPO, with DAPO, Dr.GRPO and GSPO as settings.

Loss. -min(r A, clip(r) A) with r = p / p_old and A = (R - mean) / std within the prompt's rollouts,
plus, where asked for, a KL penalty and an entropy bonus.
Source: GRPO (arXiv 2402.03300) eqs. 1-3; DAPO (arXiv 2503.14476) eqs. 8-13; Dr.GRPO
(arXiv 2503.20783) eq. 3; GSPO (arXiv 2507.18071) eqs. 5-7.
Settings. GRPO as verl runs it: the defaults. DAPO, Dr.GRPO, GSPO and OXA's RL are presets. SFT ->
RL is a run of SFT whose weights a run of this starts from.
Data. Fresh rollouts, graded.
Expect. With one update per batch of rollouts the loss is 0 up to rounding and the gradient is
REINFORCE's; that is right. Groups whose rewards are all equal teach nothing.
Deviations. verl 0.5, which OXA's RL runs on, averages over the tokens of each micro-batch and then
over micro-batches by their sequences; here the mean is over the global batch. mean
chunk_mean_token_mean does as verl does in chunks of a fixed number of sequences; verl fills its
micro-batches up to 32,768 tokens, which no fixed number imitates. Dr.GRPO divides by the generation
budget and by the sequences; verl's newest mode does not do the latter (mean sum_over_constant).
By default (`tis: token`) the policy loss of a token is multiplied by min(p_old / p_engine, 2),
which none of the sources does: `tis: none` is theirs. GSPO's bounds 3e-4 and 4e-4 were checked
against a quotation of its paper, not its text. OXA's released prompts for RL have a space before
the suffix, those for SFT and evaluation have none; template `oxa` has none anywhere.
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
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Needs, Preset, Term, TrainState, UpdatePlan, method


class GRPOConfig(PolicyConfig):
    """Configuration of GRPO and its kin."""

    name: Literal["grpo"] = "grpo"
    """Name of the method."""
    policy_weight: float = Field(default=1.0, ge=0)
    """Weight of the policy loss, its KL penalty and its entropy bonus. Released runs average the
    gradients of their ranks: 1/8 on 8, where the loss is not divided by the number of sequences."""
    drop_equal_groups: bool = False
    """Leave out prompts whose rollouts all have the same reward, and answer others in their place
    (DAPO's dynamic sampling)."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `max_response_length` over which the reward falls by up to 1 (DAPO eq. 13);
    0 does not punish length."""
    least_entropy: float = Field(default=0.0, ge=0)
    """Tokens of less entropy, in nats, have no policy gradient, and still count in the mean: the
    ablation of SRFT (arXiv 2506.19767), Figure A2, which does not give its threshold."""


_OXA_RL = GRPOConfig(
    prompts_per_update=64, rollouts_per_prompt=8, temperature=0.85, divide_by_std=True,
    clip_low=0.2, clip_high=0.2, dual_clip=3.0, mean="token_mean", max_response_length=16384,
    kl_weight=0.001, kl_kind="k3", entropy_bonus=0.0, drop_equal_groups=False,
)  # fmt: skip


@method
class GRPO(PolicyMethod[GRPOConfig]):
    """Group-relative policy optimisation."""

    config_class = GRPOConfig
    needs = Needs(roles=frozenset({Role.ROLLOUT}))
    presets = (
        Preset(
            "dapo",
            GRPOConfig(
                prompts_per_update=32,
                rollouts_per_prompt=16,
                temperature=1.0,
                divide_by_std=True,
                clip_low=0.2,
                clip_high=0.28,
                dual_clip=None,
                mean="token_mean",
                max_response_length=20480,
                kl_weight=0.0,
                drop_equal_groups=True,
                overlong_buffer=4096,
            ),
            "DAPO (arXiv 2503.14476) eqs. 8-13, section 4.1 and its released script at 32B",
        ),
        Preset(
            "dr_grpo",
            GRPOConfig(
                divide_by_std=False,
                clip_low=0.2,
                clip_high=0.2,
                dual_clip=None,
                mean="seq_mean_token_sum_norm",
                max_response_length=3000,
                kl_weight=0.0,
            ),
            "Dr.GRPO (arXiv 2503.20783) eq. 3, with the budget of its released code",
        ),
        Preset(
            "gspo",
            GRPOConfig(
                ratio="sequence",
                clip_low=3e-4,
                clip_high=4e-4,
                dual_clip=None,
                mean="seq_mean_token_mean",
            ),
            "GSPO (arXiv 2507.18071) eqs. 5-7 and section 5.1",
        ),
        Preset(
            "oxa",
            _OXA_RL,
            "RL of OXA (arXiv 2603.16206): as its paper says, and its 7B script for OXA runs",
        ),
        Preset(
            "oxa_1_5b",
            GRPOConfig(max_response_length=18432),
            "released script of RL after OXA at 1.5B: 2,048 tokens more than after SFT",
            over=_OXA_RL,
        ),
        Preset(
            "oxa_7b_sft",
            GRPOConfig(max_response_length=14336),
            "released script of RL after SFT and SFT_LP at 7B: 2,048 tokens less than after OXA",
            over=_OXA_RL,
        ),
        Preset(
            "luffy_sft_rl",
            GRPOConfig(
                rollouts_per_prompt=8,
                divide_by_std=False,
                clip_low=0.2,
                clip_high=0.2,
                dual_clip=None,
                entropy_bonus=0.001,
                mean="sum_over_constant",
                policy_weight=1 / 8,
                max_response_length=8192,
            ),
            "RL stage of the baseline SFT -> RL in LUFFY's repository, on 8 ranks",
        ),
    )

    def required(self) -> Needs:
        """Entropies too, where they decide which tokens have a gradient."""
        needs = super().required()
        extra = {Stat.ENTROPY} if self.config.least_entropy else set[Stat]()
        return replace(needs, stats=needs.stats | extra)

    def plan(self, state: TrainState) -> UpdatePlan:
        """Fresh rollouts of the next prompts, refilled where groups are dropped."""
        return replace(super().plan(state), refills=self.config.drop_equal_groups)

    def terms(self, state: TrainState) -> Sequence[Term]:  # noqa: ARG002 - the terms never change
        """Policy gradient, and what the settings add."""
        return policy_terms(self.config, self.config.policy_weight)

    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Clipped surrogate of each token."""
        losses = policy_losses(stats, batch, self.config)
        if self.config.least_entropy:
            is_undecided_T = stats.entropy_T.detach() >= self.config.least_entropy
            losses["pg"] = losses["pg"].where(is_undecided_T, 0.0)
        return losses

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
