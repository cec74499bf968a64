"""What a graded group of rollouts says, and what a method makes of it. No torch.

A group is one prompt with its n rollouts and, where there is one, its demonstration. Not here: how
rollouts are made and graded (`rollout`), and any method's rule.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GroupOutcome:
    """The grades of one prompt's answers: all that `Method.credit` sees."""

    rewards: tuple[float, ...]
    """Total reward of each rollout."""
    solved: tuple[bool, ...]
    """Whether the final answer of each rollout is correct, whatever its format."""
    lengths: tuple[int, ...]
    """Response tokens of each rollout."""
    demo_reward: float | None = None
    """Reward of the demonstration, graded like a rollout; None without one, or where its check ran
    into the deadline or died."""
    draw: float = 0.0
    """Uniform in [0, 1), fixed by seed, update and prompt: for rules that toss a coin."""


@dataclass(frozen=True)
class Credit:
    """What a group contributes to the update."""

    advantages: tuple[float, ...]
    """Advantage of each rollout; the same for all its tokens."""
    demo_advantage: float = 0.0
    """Advantage of the demonstration."""
    rollout_coef: float = 1.0
    """Factor of the rollouts (LESE's alpha)."""
    demo_coef: float = 1.0
    """Factor of the demonstration (LESE's 1 - alpha)."""
    keep_rollouts: bool = True
    """Whether the rollouts enter the update."""
    keep_demo: bool = False
    """Whether the demonstration enters the update."""
    is_hard: bool = False
    """Whether the prompt enters the pool of prompts that nobody solved (ReLIFT)."""
