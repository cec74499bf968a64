"""The contract of a generation engine: token ids in, token ids and log-probs out.

Engines are context managers that own their processes; text is derived from ids by the caller's
tokenizer and never re-encoded. Not here: any engine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.schema.records import Finish


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the stop token included if there was one."""
    logprobs: tuple[float, ...]
    """Engine's log-probability of each sampled token, in nats."""
    finish: Finish
    """Whether it stopped by itself."""
    policy_version: int
    """Counter of the weights that made it; `load_weights` increments it."""


class Engine(Protocol):
    """A process (or several) that samples from one set of weights."""

    @property
    def policy_version(self) -> int:
        """How often weights were loaded into this engine."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw `sampling.samples_per_prompt` continuations of each prompt, in order.

        Args:
            prompts: token ids of each prompt.
            sampling: how to draw.
            stop_token_ids: tokens that end a continuation.
            on_done: called with the number of prompts that just got finished.

        Raises:
            GenerationError: the engine died or missed its deadline; nothing is dropped silently.
        """
        ...

    def load_weights(self, folder: Path) -> None:
        """Answer with the weights of the HF folder `folder` from now on (same architecture)."""
        ...

    def close(self) -> None:
        """End the engine's processes."""
        ...
