"""The pool of prompts that nobody solved, as ReLIFT fills and empties it.

Source: ReLIFT (arXiv 2506.07527) algorithm 1 and its released code: new prompts go to the front, a
burst takes from the front, what is left waits. Not here: who decides that a prompt is hard
(`Method.credit`) and when a burst is due (`Method.plan`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HardPool:
    """Problem ids that wait for a burst, newest first; a value, stored with the training state."""

    problem_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.problem_ids)

    def pushed(self, problem_ids: Sequence[str]) -> "HardPool":
        """The pool with these in front, in their order; a prompt that waits already stays put."""
        waiting = set(self.problem_ids)
        new = [name for name in dict.fromkeys(problem_ids) if name not in waiting]
        return HardPool((*new, *self.problem_ids))

    def taken(self, count: int) -> tuple[tuple[str, ...], "HardPool"]:
        """The newest `count`, and the pool without them.

        Raises:
            ValueError: fewer wait.
        """
        if count > len(self):
            raise ValueError(f"{count} prompts wanted, {len(self)} wait")
        return self.problem_ids[:count], HardPool(self.problem_ids[count:])
