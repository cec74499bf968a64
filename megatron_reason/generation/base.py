"""The contract of a generation engine: token ids in, token ids and log-probs out.

Engines are context managers that own their processes; text is derived from ids by the caller's
tokenizer and never re-encoded. Not here: any engine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.errors import GenerationError
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

    @property
    def description(self) -> Mapping[str, str | int]:
        """What, beside weights and sampling, its answers depend on: kind, data type, lengths."""
        ...

    @property
    def weights(self) -> str:
        """Fingerprint of the weights it answers with."""
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


def check_prompts(prompts: Sequence[Sequence[int]], max_model_len: int) -> None:
    """Refuse prompts that an engine could not continue by a single token.

    Raises:
        GenerationError: an empty prompt, or one that fills the context.
    """
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < max_model_len:
            raise GenerationError(
                f"prompt {index} of {len(prompts)}",
                f"it has {len(prompt)} tokens; prompt and response together may have "
                f"{max_model_len} (engine.max_model_len).",
                "Raise engine.max_model_len, or drop such prompts before generating.",
            )
