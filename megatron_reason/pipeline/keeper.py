"""One engine kept alive over all stages of a run that generate, its weights exchanged in between.

Starting an engine takes half a minute, exchanging its weights a second. Not here: engines, and
what follows when one dies (`generation/owned.py`).
"""

from pathlib import Path
from types import TracebackType
from typing import Self

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.base import Engine
from megatron_reason.generation.open import open_engine
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)


class EngineKeeper:
    """Opens an engine on first use, and again where its weights cannot be exchanged.

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
        """An engine that answers with the weights of the HF folder `folder`; the keeper owns it."""
        if self._engine is not None and not self._engine.is_open:
            self._engine = None
        if self._engine is not None and self._folder != folder:
            try:
                self._engine.load_weights(folder)
            except GenerationError as error:
                _LOG.warning("a new engine is started, because: %s", error)
                self.close()
        if self._engine is None:
            self._engine = open_engine(
                folder, self._config, dtype=self._dtype, log_folder=self._log_folder
            )
        self._folder = folder
        return self._engine

    def close(self) -> None:
        """End the engine's processes; the next use opens a new engine."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
