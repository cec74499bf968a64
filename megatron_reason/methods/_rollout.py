"""What methods that learn from rollouts share: sizes of an update and group advantages.

Source: GRPO (arXiv 2402.03300), eq. 1. Not here: any loss (`_surrogate.py`).
"""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Generic, TypeVar

from pydantic import Field

from megatron_reason.schema.method import Method, MethodConfig, TrainState, UpdatePlan

_STD_EPSILON = 1e-6


class RolloutConfig(MethodConfig):
    """Settings of every method that learns from its own rollouts."""

    prompts_per_update: int = Field(default=64, ge=1)
    """Prompts whose rollouts make one optimizer update."""
    rollouts_per_prompt: int = Field(default=8, ge=1)
    """Rollouts drawn for each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the rollouts; the loss is taken of the tempered policy."""
    divide_by_std: bool = True
    """Whether advantages are divided by the group's standard deviation (Dr.GRPO does not)."""


R = TypeVar("R", bound=RolloutConfig)


class RolloutMethod(Method[R], Generic[R]):
    """Base of the methods that learn from their own rollouts."""

    @property
    def temperature(self) -> float:
        """The rollouts' own temperature."""
        return self.config.temperature

    def plan(self, state: TrainState) -> UpdatePlan:  # noqa: ARG002 - the plan never changes
        """Fresh rollouts of the next prompts."""
        return UpdatePlan(
            prompts=self.config.prompts_per_update,
            rollouts_per_prompt=self.config.rollouts_per_prompt,
        )


def group_advantages(rewards: Sequence[float], *, divide_by_std: bool) -> tuple[float, ...]:
    """(R - mean) / (std + 1e-6) within one group, or R - mean.

    The standard deviation is the sample's (n - 1), as in verl; a group of one keeps its reward.

    Args:
        rewards: of each member of the group.
        divide_by_std: whether to divide.
    """
    if len(rewards) < 2:
        return tuple(rewards)
    mean = fmean(rewards)
    scale = stdev(rewards) + _STD_EPSILON if divide_by_std else 1.0
    return tuple((reward - mean) / scale for reward in rewards)
