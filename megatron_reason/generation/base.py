"""The contract of a generation engine: token ids in, token ids and log-probs out.

Engines are context managers that own their processes; text is derived from ids by the caller's
tokenizer and never re-encoded. Not here: any one engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Protocol, Self

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.hf_folder import check_same_architecture, weights_fingerprint
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


class OwnedEngine(ABC):
    """What every engine of ours is: a context manager that knows its weights and their version.

    Args:
        hf_folder: Hugging Face folder of the model.
        config: lengths, memory and deadlines.
        dtype: data type of the weights.
    """

    kind: ClassVar[str]
    """Name under which a configuration asks for it."""

    def __init__(self, hf_folder: Path, config: EngineConfig, dtype: Precision) -> None:
        self._folder = hf_folder
        self._config = config
        self._dtype: Precision = dtype
        self._weights = weights_fingerprint(hf_folder)
        self._policy_version = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def policy_version(self) -> int:
        """How often weights were loaded into this engine."""
        return self._policy_version

    @property
    def description(self) -> Mapping[str, str | int]:
        """Kind of engine, data type and longest sequence."""
        return {
            "name": self.kind,
            "dtype": self._dtype,
            "max_model_len": self._config.max_model_len,
        }

    @property
    def weights(self) -> str:
        """Fingerprint of the weights it answers with."""
        return self._weights

    def load_weights(self, folder: Path) -> None:
        """Answer with the weights of `folder` from now on.

        Raises:
            GenerationError: another architecture (this engine goes on as it was), or the engine
                died or hung.
        """
        check_same_architecture(self._folder, folder)
        self._exchange(folder)
        self._weights = weights_fingerprint(folder)
        self._policy_version += 1

    @abstractmethod
    def _exchange(self, folder: Path) -> None:
        """Put the weights of `folder` in place."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model and of every process."""


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
