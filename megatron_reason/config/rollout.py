"""Which problems a policy answers while it learns, how, and who judges the answers.

How many prompts and rollouts an update takes, and at which temperature, is the method's to say.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.config.rewriting import RewritingConfig
from megatron_reason.config.sync import SyncConfig

_WHOLE = (
    "rollouts are drawn from the whole distribution: with tokens cut off, the trainer's log-probs "
    "would be those of another one."
)


class MonitorConfig(Strict):
    """Section `rollout.monitor`: held-out problems that the policy answers while it learns."""

    every: int = Field(default=50, ge=1)
    """Updates between two measurements."""
    table: str
    """Stage whose held-out problems are answered."""
    max_problems: int = Field(default=100, ge=1)
    """First so many of them only."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers to each."""
    temperature: float = Field(default=1.0, ge=0)
    """Temperature of these answers; 0 is greedy."""
    reward: str = "math_verify"
    """Reward that grades them."""


class RolloutSection(Strict):
    """Section `rollout`, for methods that learn from their own rollouts."""

    ABSENT: ClassVar = {
        **dict.fromkeys(("top_p", "top_k", "min_p"), (_WHOLE, "Leave it out.")),
        "temperature": (
            "the temperature of rollouts is the method's, which scores them at the same.",
            "Write it there: method.temperature.",
        ),
    }

    problems: str
    """Stage whose train problems are answered."""
    reward: str = "math_verify"
    """Reward that grades the rollouts, as `mreason list rewards` prints it."""
    reward_workers: int = Field(default=2, ge=1)
    """Grading processes."""
    reward_deadline_s: float = Field(default=5.0, gt=0)
    """Seconds one answer may take to be graded."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest response in tokens; a prompt that leaves less room is set aside."""
    order: Literal["shuffled", "table"] = "shuffled"
    """A new order of the problems for every pass, or that of the table (a curriculum)."""
    updates_per_step: int = Field(default=1, ge=1)
    """Optimizer updates made from one batch of rollouts, each from prompts of its own."""
    steps_ahead: Literal[0, 1] = 0
    """0 answers with the newest weights; 1 answers the next prompts during the updates, with
    weights one step old."""
    max_refills: int = Field(default=4, ge=0)
    """Times in a step that further prompts are answered in place of those dropped, for methods that
    refill."""
    max_empty_steps: int = Field(default=10, ge=1)
    """Steps in a row without anything to learn from after which the run stops."""
    rewrite: RewritingConfig | None = None
    """Put each update's demonstrations into the policy's own words first; None takes them as they
    are. Methods that learn from demonstrations alone then train with an engine, too."""
    sync: SyncConfig = SyncConfig()
    """How weights reach the engine."""
    monitor: MonitorConfig | None = None
    """What is measured during training; None measures nothing."""

    def decisive(self) -> dict[str, Any]:
        """The settings that decide what is learnt; the others may change when a run goes on."""
        return self.model_dump(
            mode="json", exclude={"monitor", "reward_workers", "sync", "max_empty_steps"}
        )
