"""HPT: each prompt is either reinforced or imitated, by how many of its rollouts are correct.

Loss. -A r over the rollouts of prompts solved more than `gate` times, c -log p over the
demonstrations of the others, minus an entropy bonus.
Source: HPT (arXiv 2509.04419) algorithm 1 and eqs. 14-15.
Settings. gate 0 and sft_weight 1 for Qwen2.5-Math-7B, sft_weight 0.3 for 1.5B, gate 2 for Llama.
Data. Prompts with a demonstration each.
Expect. The share of prompts that are imitated falls as the model learns.
Deviations. The released code adds up the token means of its micro-batches, so that the weight of
SFT grows with their number; here it is one token mean. It also skips updates whose gradient norm
exceeds 80, which is a setting of the run, not of the method.
"""

from typing import Literal

from megatron_reason.methods._hybrid import HybridConfig, HybridMethod
from megatron_reason.methods._rollout import group_advantages
from megatron_reason.schema.batch import Role
from megatron_reason.schema.credit import Credit, GroupOutcome
from megatron_reason.schema.method import Needs, method


class HPTConfig(HybridConfig):
    """Configuration of HPT."""

    name: Literal["hpt"] = "hpt"
    """Name of the method."""
    gate: int = 0
    """A prompt solved more often than this is reinforced, any other imitated."""


@method
class HPT(HybridMethod[HPTConfig]):
    """Per-prompt switch between reinforcement and imitation."""

    config_class = HPTConfig
    needs = Needs(roles=frozenset({Role.DEMO, Role.ROLLOUT}))

    def credit(self, group: GroupOutcome) -> Credit:
        """Rollouts of prompts that pass the gate, the demonstration of the others."""
        advantages = group_advantages(group.rewards, divide_by_std=self.config.divide_by_std)
        is_reinforced = sum(group.solved) > self.config.gate
        return Credit(advantages, keep_rollouts=is_reinforced, keep_demo=not is_reinforced)
