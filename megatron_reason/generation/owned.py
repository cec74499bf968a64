"""What our engines have in common: which weights they hold, and how they come back after a death.

An engine whose process dies is started again and goes on with the prompts that were not finished.
Weights from a folder it finds by itself; a trainer's must be put back by the trainer (`refill`).
Not here: any one engine.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.base import Completion, Flag, check_prompts
from megatron_reason.generation.buckets import ArrivingBucket, described
from megatron_reason.generation.hf_folder import (
    check_same_architecture,
    tensor_shapes,
    vocabulary_fingerprint,
    weights_fingerprint,
)
from megatron_reason.generation.seeds import request_seeds
from megatron_reason.logs import get_logger

if TYPE_CHECKING:
    from torch import Tensor

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Request:
    """A prompt and the seed of each of its samples."""

    ids: tuple[int, ...]
    seeds: tuple[int, ...]


class OwnedEngine(ABC):
    """A context manager that knows its weights and their version, and survives its process.

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
        self._folder_version = 0
        self._is_filled = False
        self._deaths = 0
        self._is_asleep = False
        self.refill: Callable[[], None] | None = None

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
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it can be asked."""

    @property
    def num_copies(self) -> int:
        """How many copies of the weights answer; see `Engine.num_copies`."""
        return 1

    @abstractmethod
    def is_healthy(self) -> bool:
        """Whether it answers now; see `Engine.is_healthy`."""

    @property
    def is_asleep(self) -> bool:
        """Whether it gave its memory back."""
        return self._is_asleep

    @property
    def policy_version(self) -> int:
        """How often folders were loaded into this engine, or what `update_weights` said."""
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
    def flags(self) -> Mapping[str, Flag]:
        """Further settings it runs with; its answers depend on them by rounding at most."""
        return {"max_num_seqs": self._config.max_num_seqs}

    @property
    def weights(self) -> str:
        """Fingerprint of the weights it answers with."""
        return self._weights

    @property
    def takes_from_device(self) -> bool:
        """Whether tensors of `update_weights` had better lie on the trainer's device."""
        return False

    @property
    def vocabulary(self) -> str:
        """Fingerprint of what its token ids mean."""
        return vocabulary_fingerprint(self._folder)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        first_sample: int = 0,
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw continuations; see `Engine.generate`.

        Only `stop_token_ids` end a continuation, not the model's own end tokens. The engine is
        closed when this is left by an exception, for instance one that `on_done` raises.
        """
        rows: list[list[Completion]] = [[] for _ in prompts]
        drawn = self.stream(
            prompts, sampling, stop_token_ids=stop_token_ids, first_sample=first_sample
        )
        with closing(drawn) as stream:
            for index, completions in stream:
                rows[index] = completions
                if on_done is not None:
                    on_done(1)
        return rows

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        first_sample: int = 0,
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        """Each prompt's continuations as soon as they are there; see `Engine.stream`."""
        self._check_awake()
        check_prompts(prompts, self._config.max_model_len)
        seeds = request_seeds(prompts, sampling, first_sample)
        left = {
            index: Request(tuple(prompt), tuple(seeds[index]))
            for index, prompt in enumerate(prompts)
        }
        while left:
            indices = list(left)
            drawn = self._draw(list(left.values()), sampling, tuple(stop_token_ids))
            try:
                with closing(drawn):
                    for at, completions in drawn:
                        del left[indices[at]]
                        self._deaths = 0
                        yield indices[at], completions
            except EngineDiedError as error:
                self._revive(error, f"{len(left)} of {len(prompts)} prompts are asked again")

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of given tokens; see `Engine.score`."""
        self._check_awake()
        check_prompts(sequences, self._config.max_model_len)
        while True:
            try:
                return self._score([tuple(ids) for ids in sequences])
            except EngineDiedError as error:
                self._revive(error, f"{len(sequences)} sequences are scored again")

    def load_weights(self, folder: Path) -> None:
        """Answer with the weights of `folder` from now on.

        Raises:
            GenerationError: another architecture (this engine goes on as it was), or the engine
                died or hung too often.
        """
        self._check_awake()
        check_same_architecture(self._folder, folder)
        self._folder = folder
        try:
            self._exchange()
        except EngineDiedError as error:
            self.restart(error)
        self._weights = weights_fingerprint(folder)
        self._policy_version += 1
        self._folder_version = self._policy_version
        self._is_filled = False

    def update_weights(self, buckets: "Iterable[Mapping[str, Tensor]]", *, version: int) -> None:
        """Answer with these weights from now on; see `Engine.update_weights`."""
        self._check_awake()
        digest = sha256()
        is_complete = False
        try:
            self._receive(self._checked(buckets, digest.update), version)
            is_complete = True
        finally:
            if not is_complete:
                self.close()
        self._weights = digest.hexdigest()[:16]
        self._policy_version = version
        self._is_filled = True

    def restart(self, because: GenerationError) -> None:
        """Start again, with the weights of the folder that was loaded last.

        Raises:
            GenerationError: `because`, if it died too often in a row.
        """
        self.close()
        self._deaths += 1
        if self._deaths > self._config.max_restarts:
            raise because
        _LOG.warning(
            "the engine is started again (%d of %d in a row), because: %s",
            self._deaths, self._config.max_restarts, because,
        )  # fmt: skip
        self._weights = weights_fingerprint(self._folder)
        self._policy_version = self._folder_version
        self._is_filled = self._is_asleep = False
        try:
            self._start()
        except EngineDiedError as error:
            self.restart(error)

    def sleep(self) -> None:
        """Give memory back until `wake`.

        Raises:
            GenerationError: it was not started for that.
        """
        if not self._config.sleep_mode:
            raise GenerationError(
                "engine.sleep_mode",
                "the engine was not started so that it can sleep.",
                "Set engine.sleep_mode: true.",
            )
        self._sleep()
        self._is_asleep = True

    def wake(self) -> None:
        """Take memory again.

        Raises:
            EngineDiedError: it died asleep.
        """
        self._wake()
        self._is_asleep = False

    def _check_awake(self) -> None:
        if self._is_asleep:
            raise GenerationError(str(self._folder), "this engine sleeps.", "Call wake() first.")

    @abstractmethod
    def _start(self) -> None:
        """Begin with the weights of `self._folder`."""

    @abstractmethod
    def _draw(
        self, requests: Sequence[Request], sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        """Each request's number and samples as soon as they are there."""

    @abstractmethod
    def _score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """Log-probability of each token but the first."""

    @abstractmethod
    def _exchange(self) -> None:
        """Put the weights of `self._folder` in place of others."""

    @abstractmethod
    def _receive(self, buckets: Iterable[ArrivingBucket], version: int) -> None:
        """Put tensors in place of others; every bucket is asked for to its end."""

    @abstractmethod
    def _sleep(self) -> None:
        """Give memory back."""

    @abstractmethod
    def _wake(self) -> None:
        """Take memory again."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the model and of every process."""

    def _revive(self, because: EngineDiedError, what_follows: str) -> None:
        """Start again with the weights it had.

        Raises:
            EngineDiedError: `because`, if it died too often, or only an absent trainer has them.
        """
        is_filled = self._is_filled
        if is_filled and self.refill is None:
            self.close()
            raise because
        self.restart(because)
        if is_filled:
            assert self.refill is not None, "checked above"
            self.refill()
        _LOG.warning("the engine is back; %s", what_follows)

    def _checked(
        self, buckets: "Iterable[Mapping[str, Tensor]]", update_digest: Callable[[bytes], None]
    ) -> Iterator[ArrivingBucket]:
        """The buckets, of which each tensor is checked when it is asked for, and at the end all.

        Raises:
            GenerationError: tensors that are missing or that the model has not.
        """
        missing = tensor_shapes(self._folder)

        def arriving(tensors: "Mapping[str, Tensor]") -> ArrivingBucket:
            for name, tensor in tensors.items():
                entry, _ = described(name, tensor)
                if (expected := missing.pop(name, None)) != entry.shape:
                    raise _unfit(
                        f"{name} of shape {entry.shape} came, which the engine's model has "
                        + (f"with shape {expected}." if expected else "not, or had already.")
                    )
                update_digest(repr(entry).encode())
                yield entry, tensor

        for tensors in buckets:
            yield arriving(tensors)
        if missing:
            raise _unfit(f"{len(missing)} tensors did not come, {sorted(missing)[:3]} among them.")


def _unfit(what: str) -> GenerationError:
    return GenerationError(
        "weight update",
        what,
        "Start the engine on the folder that the trainer's model was imported from.",
    )
