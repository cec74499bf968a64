"""ReLIFT: reinforcement, with bursts of SFT on the prompts that nobody solved.

Loss. A rollout update is GRPO's with an entropy bonus; a burst is likelihood with the same bonus on
the demonstrations of the newest hard prompts.
Source: ReLIFT (arXiv 2506.07527) algorithm 1.
Data. Prompts with a demonstration each. A prompt is hard if all its rollouts are wrong; hard
prompts wait in a pool, newest first, and a burst takes `burst_size` once so many wait.
Expect. About one demonstration in eight is used.
Deviations. The released code keeps a second optimizer state, and another clip norm (0.7), for
rollout updates; here both share one optimizer. By default bursts are token means of the global
batch; the presets take those of micro-batches of 4 (2 at 1.5B), as released. In rollout updates the
released code adds up the mean entropies of as many micro-batches as its packer makes; here it is
the mean over chunks of that same size.
"""

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


_RELEASED = ReLIFTConfig(
    prompts_per_update=64, rollouts_per_prompt=8, temperature=1.0, divide_by_std=False,
    clip_low=None, clip_high=None, mean="sum_over_constant", policy_weight=1 / 8,
    max_response_length=8192, entropy_bonus=0.001, sft_weight=1.0,
    sft_mean="chunk_mean_token_mean", chunk=4, burst_size=128,
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

    def plan(self, state: TrainState) -> UpdatePlan:
        """A burst once enough hard prompts wait, else fresh rollouts."""
        if state.num_hard >= self.config.burst_size:
            return UpdatePlan(hard_demos=self.config.burst_size)
        return super().plan(state)

    def credit(self, group: GroupOutcome) -> Credit:
        """Advantages within the rollouts; a prompt nobody solved goes to the pool."""
        advantages = group_advantages(group.rewards, divide_by_std=self.config.divide_by_std)
        return Credit(advantages, is_hard=not any(group.solved))
