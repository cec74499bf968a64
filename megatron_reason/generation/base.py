"""The contract of a generation engine: token ids in, token ids and log-probs out.

Engines are context managers that own their processes; text is derived from ids by the caller's
tokenizer and never re-encoded. Not here: any one engine, and what ours have in common (`owned.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.schema.records import Finish

Flag = str | int | float | bool
"""Value of an engine's setting."""

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the stop token included if there was one."""
    logprobs: tuple[float, ...]
    """Engine's log-probability of each sampled token, in nats; see `EngineConfig.logprobs`."""
    finish: Finish
    """Whether it stopped by itself."""
    policy_version: int
    """Version of the weights that made it; see `Engine.policy_version`."""


class Engine(Protocol):
    """A process (or several) that samples from one set of weights."""

    refill: Callable[[], None] | None
    """Puts a trainer's weights into this engine after it was started again; set by the trainer
    while it stands by (`WeightSync.run`)."""

    @property
    def is_open(self) -> bool:
        """Whether it can be asked; a process that died unnoticed still counts as open."""
        ...

    @property
    def num_copies(self) -> int:
        """How many copies of the weights answer: as many sequences of a `score` go to one each."""
        ...

    def is_healthy(self) -> bool:
        """Whether it answers, which it is asked for: False for a process that died or hangs.

        One that is not healthy has to be started again (`restart`) before anything else.
        """
        ...

    @property
    def is_asleep(self) -> bool:
        """Whether it gave its memory back, and must be woken before anything else."""
        ...

    @property
    def policy_version(self) -> int:
        """Version of the weights: how often folders were loaded, or what `update_weights` said."""
        ...

    @property
    def description(self) -> Mapping[str, str | int]:
        """What, beside weights and sampling, its answers depend on: kind, data type, lengths."""
        ...

    @property
    def flags(self) -> Mapping[str, Flag]:
        """Further settings it runs with; its answers depend on them by rounding at most."""
        ...

    @property
    def weights(self) -> str:
        """Fingerprint of the weights it answers with."""
        ...

    @property
    def takes_from_device(self) -> bool:
        """Whether tensors of `update_weights` had better lie on the trainer's device."""
        ...

    @property
    def vocabulary(self) -> str:
        """Fingerprint of what its token ids mean."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        first_sample: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw `sampling.samples_per_prompt` continuations of each prompt, in order.

        Args:
            prompts: token ids of each prompt.
            sampling: how to draw.
            stop_token_ids: tokens that end a continuation.
            first_sample: index of the first one drawn; those before it are there already, and the
                others are what they would be had all been drawn at once.
            on_done: called with the number of prompts that just got finished.

        Raises:
            GenerationError: a prompt that cannot be continued, or an engine that died or missed
                its deadline more often than `EngineConfig.max_restarts` allows; nothing is dropped
                silently.
        """
        ...

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        first_sample: int = 0,
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The same as `generate`, each prompt's number and continuations as soon as it is finished.

        An iterator that is given up before its end closes the engine.
        """
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token but the first of each sequence, in nats, at temperature 1.

        Raises:
            GenerationError: a sequence that is too long, or an engine that died.
        """
        ...

    def load_weights(self, folder: Path) -> None:
        """Answer with the weights of the HF folder `folder` from now on (same architecture)."""
        ...

    def update_weights(self, buckets: Iterable[Mapping[str, "Tensor"]], *, version: int) -> None:
        """Answer with these weights from now on, as `policy_version` `version`.

        Args:
            buckets: every tensor of the model once, by Hugging Face's name, in as many parts as the
                caller likes. A part is not read after the next one is asked for.
            version: what completions are stamped with.

        Raises:
            EngineDiedError: it died; `restart` and begin again.
            GenerationError: tensors that are missing, unknown or damaged. The engine is closed,
                because some of its weights may be new and some old.
        """
        ...

    def restart(self, because: GenerationError) -> None:
        """Start again, with the weights of the folder that was loaded last.

        Raises:
            GenerationError: `because`, if it died too often in a row.
        """
        ...

    def sleep(self) -> None:
        """Give memory back until `wake`; needs `EngineConfig.sleep_mode`.

        Raises:
            GenerationError: this engine cannot.
        """
        ...

    def wake(self) -> None:
        """Be ready to generate and to get weights again."""
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
