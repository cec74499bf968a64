"""ReLIFT: reinforcement, with bursts of SFT on the prompts that nobody solved.

Loss. A rollout update is GRPO's with an entropy bonus; a burst is likelihood with the same bonus on
the demonstrations of the newest hard prompts.
Source: ReLIFT (arXiv 2506.07527) algorithm 1.
Data. Prompts with a demonstration each. A prompt is hard if all its rollouts are wrong; hard
prompts wait in a pool, newest first, and a burst takes `burst_size` once so many wait.
Expect. About one demonstration in eight is used. Bursts have moments and a clip norm of their own,
as released; the rate is `train.optim`'s for both, whose `clip_grad` the released runs set to 0.7.
Deviations. By default bursts are token means of the global batch; the presets take those of
micro-batches of 4 (2 at 1.5B), as released. In rollout updates the released code adds up the mean
entropies of as many micro-batches as its packer makes; the presets take the mean over chunks of
that same size, the defaults the mean over tokens. Advantages are not divided by the standard
deviation and ratios are not clipped, as released; GRPO as published does both. By default
(`tis: token`) the policy loss of a token is multiplied by min(p_old / p_engine, 2), which neither
paper nor released code does: `tis: none` is theirs.
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from megatron_reason.methods._hybrid import HybridConfig, HybridMethod
from megatron_reason.methods._rollout import group_advantages
from megatron_reason.schema.batch import Role
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Needs, Preset, TrainState, UpdatePlan, method


class ReLIFTConfig(HybridConfig):
    """Configuration of ReLIFT."""

    name: Literal["relift"] = "relift"
    """Name of the method."""
    burst_size: int = Field(default=128, ge=1)
    """Demonstrations per burst."""
    burst_moments: bool = True
    """Whether bursts step with moments of their own, which take 8 bytes a weight more."""
    burst_clip_grad: float | None = Field(default=1.0, ge=0)
    """Largest global gradient norm of a burst; 0 does not clip, null takes that of
    `train.optim`."""


_RELEASED = ReLIFTConfig(
    prompts_per_update=64, rollouts_per_prompt=8, temperature=1.0, divide_by_std=False,
    clip_low=None, clip_high=None, mean="sum_over_constant", policy_weight=1 / 8,
    max_response_length=8192, entropy_bonus=0.001, sft_weight=1.0,
    sft_mean="chunk_mean_token_mean", chunk=4, burst_size=128, burst_moments=True,
    burst_clip_grad=1.0,
)  # fmt: skip


@method
class ReLIFT(HybridMethod[ReLIFTConfig]):
    """Reinforcement interleaved with SFT on the hardest prompts."""

    config_class = ReLIFTConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))
    presets = (
        Preset("released", _RELEASED, "ReLIFT's released script at 7B, on 8 ranks"),
        Preset(
            "released_1_5b",
            ReLIFTConfig(chunk=2),
            "ReLIFT's released script at 1.5B: micro-batches of 2",
            over=_RELEASED,
        ),
    )

    def required(self) -> Needs:
        """Two sets of moments, unless bursts share the other."""
        return replace(super().required(), optimizer_states=1 + self.config.burst_moments)

    def plan(self, state: TrainState) -> UpdatePlan:
        """A burst once enough hard prompts wait, else fresh rollouts."""
        if state.num_hard < self.config.burst_size:
            return super().plan(state)
        return UpdatePlan(
            hard_demos=self.config.burst_size,
            optimizer_state=int(self.config.burst_moments),
            clip_grad=self.config.burst_clip_grad,
            temperature=1.0,
        )

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages within the rollouts; a prompt nobody solved goes to the pool."""
        advantages = group_advantages(group.rewards, divide_by_std=self.config.divide_by_std)
        return Credit(advantages, is_hard=not any(group.solved))
