"""One engine kept alive over all stages of a run that generate, its weights exchanged in between.

Starting an engine takes half a minute, exchanging its weights a second. Not here: engines.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.base import Completion, Engine, check_prompts
from megatron_reason.generation.open import open_engine
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)


class EngineKeeper:
    """An `Engine` that opens on first use, and once more should it die.

    Args:
        config: which engine.
        dtype: data type of its weights.
        log_folder: where it keeps its log.
    """

    def __init__(self, config: EngineConfig, *, dtype: Precision, log_folder: Path) -> None:
        self._config = config
        self._dtype: Precision = dtype
        self._log_folder = log_folder
        self._engine: Engine | None = None
        self._folder: Path | None = None
        self._restarts_left = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, folder: Path) -> Engine:
        """This engine, answering with the weights of the HF folder `folder`; the keeper owns it."""
        if self._engine is not None and self._folder != folder:
            try:
                self._engine.load_weights(folder)
            except GenerationError as error:
                _LOG.warning("a new engine is started, because: %s", error)
                self.close()
        self._running(folder)
        return self

    @property
    def policy_version(self) -> int:
        """How often weights were loaded into the engine that runs now."""
        return 0 if self._engine is None else self._engine.policy_version

    @property
    def description(self) -> Mapping[str, str | int]:
        """What, beside weights and sampling, answers depend on."""
        return self._opened().description

    @property
    def weights(self) -> str:
        """Fingerprint of the weights it answers with."""
        return self._opened().weights

    def load_weights(self, folder: Path) -> None:
        """Answer with the weights of `folder` from now on."""
        self.open(folder)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw continuations; see `Engine.generate`. Asks a new engine again if this one dies.

        Raises:
            GenerationError: prompts that are too long, or an engine that died twice.
        """
        # A request that cannot be answered is refused here: what fails below is the engine's doing.
        check_prompts(prompts, self._config.max_model_len)
        report = _Monotone(on_done)
        while True:
            try:
                return self._opened().generate(
                    prompts, sampling, stop_token_ids=stop_token_ids, on_done=report.advance
                )
            except GenerationError as error:
                self.close()
                if self._restarts_left == 0:
                    raise
                self._restarts_left -= 1
                _LOG.warning("the engine is started again, because: %s", error)
                report.begin_again()

    def close(self) -> None:
        """End the engine's processes; the next use opens a new engine."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _opened(self) -> Engine:
        assert self._folder is not None, "open() comes first"
        return self._running(self._folder)

    def _running(self, folder: Path) -> Engine:
        if self._engine is None:
            self._engine = open_engine(
                folder, self._config, dtype=self._dtype, log_folder=self._log_folder
            )
        self._folder = folder
        return self._engine


class _Monotone:
    """Progress that does not run backwards when a request is repeated."""

    def __init__(self, on_done: Callable[[int], None] | None) -> None:
        self._on_done = on_done
        self._done = 0
        self._reported = 0

    def advance(self, count: int) -> None:
        """Pass on what goes beyond the last attempt."""
        self._done += count
        if self._done > self._reported:
            new, self._reported = self._done - self._reported, self._done
            if self._on_done is not None:
                self._on_done(new)

    def begin_again(self) -> None:
        """A new attempt starts."""
        self._done = 0
