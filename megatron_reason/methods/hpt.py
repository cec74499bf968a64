"""HPT: each prompt is either reinforced or imitated, by how many of its rollouts are correct.

Loss. -A r over the rollouts of prompts solved more than `gate` times, c -log p over the
demonstrations of the others, minus an entropy bonus.
Source: HPT (arXiv 2509.04419) algorithm 1 and eqs. 14-15.
Data. Prompts with a demonstration each.
Expect. The share of prompts that are imitated falls as the model learns.
Deviations. The released code adds up the token means of its micro-batches, so that the weight of
SFT, and of the entropy bonus, grows with their number; here each is one token mean. It also skips
updates whose gradient norm exceeds 80: train.optim.skip_grad_norm 80. Of the presets, 8 rollouts
and the gate are the paper's, too; the policy loss without standard deviation, clip or division by
the sequences, and the weight 0.3 of SFT at 1.5B, are the released code's. Its band of prompts that
LUFFY's loss may take is empty in its scripts and missing here. By default (`tis: token`) the policy
loss of a token is multiplied by min(p_old / p_engine, 2), which neither paper nor released code
does: `tis: none` is theirs.
"""

from typing import Literal

from megatron_reason.methods._hybrid import HybridConfig, HybridMethod
from megatron_reason.methods._rollout import group_advantages
from megatron_reason.schema.batch import Role
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Needs, Preset, method


class HPTConfig(HybridConfig):
    """Configuration of HPT."""

    name: Literal["hpt"] = "hpt"
    """Name of the method."""
    gate: int = 0
    """A prompt solved more often than this is reinforced, any other imitated."""


_RELEASED = HPTConfig(
    prompts_per_update=64, rollouts_per_prompt=8, temperature=1.0, divide_by_std=False,
    clip_low=None, clip_high=None, mean="sum_over_constant", policy_weight=1 / 8,
    max_response_length=8192, entropy_bonus=0.001, sft_weight=1.0, gate=0,
)  # fmt: skip


@method
class HPT(HybridMethod[HPTConfig]):
    """Per-prompt switch between reinforcement and imitation."""

    config_class = HPTConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))
    presets = (
        Preset("released", _RELEASED, "HPT's released script for Qwen2.5-Math-7B, on 8 ranks"),
        Preset(
            "released_1_5b",
            HPTConfig(sft_weight=0.3),
            "HPT's released script for Qwen2.5-Math-1.5B",
            over=_RELEASED,
        ),
        Preset(
            "released_llama_8b",
            HPTConfig(gate=2),
            "HPT's released script for Llama-3.1-8B",
            over=_RELEASED,
        ),
    )

    def credit(self, group: GroupOutcome) -> Credit:
        """Rollouts of prompts that pass the gate, the demonstration of the others."""
        advantages = group_advantages(group.rewards, divide_by_std=self.config.divide_by_std)
        is_reinforced = sum(group.solved) > self.config.gate
        return Credit(advantages, keep_rollouts=is_reinforced, keep_demo=not is_reinforced)
