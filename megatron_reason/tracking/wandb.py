"""Weights & Biases sink: optional, and never a reason for a run to fail.

Whatever goes wrong on its side is reported once and counted; the metrics are in `metrics.jsonl` in
any case. Not here: logging in, which is `wandb login`.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_reason.errors import PlatformError
from megatron_reason.files import hash_text
from megatron_reason.logs import get_logger

_LOG = get_logger(__name__)


class WandbSink:
    """Logs to a run named after the folder; offline when the machine is not logged in.

    Args:
        folder: the run's folder; the same folder continues the same run.
        project: project the run belongs to.
        resume_after: last step that was logged before.

    Raises:
        PlatformError: the package, which the configuration asks for, cannot be imported.
    """

    def __init__(self, folder: Path, *, project: str, resume_after: int = 0) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise PlatformError(
                "track.sinks",
                f"the sink 'wandb' is asked for, and the package cannot be imported: {error}.",
                "Type: pip install wandb, or take 'wandb' out of track.sinks.",
            ) from error
        self.num_failures = 0
        """Calls that wandb did not take."""
        self._resume_after = resume_after
        self._run: Any = None
        self._guarded(lambda: self._open(folder, project))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send one step."""
        if self._run is None:
            self.num_failures += 1
        else:
            self._guarded(lambda: self._run.log(dict(values), step=step))

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._guarded(self._run.finish)
        if self.num_failures:
            _LOG.warning("wandb did not take %d calls of this run", self.num_failures)

    def _open(self, folder: Path, project: str) -> None:
        self._run = self._wandb.init(
            project=project,
            name=folder.name,
            id=hash_text(str(folder.resolve())),
            dir=str(folder),
            mode="online" if self._wandb.api.api_key else "offline",
            resume="allow" if self._resume_after else None,
        )

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - process boundary: a sink must not end a run
            self.num_failures += 1
            if self.num_failures == 1:
                _LOG.warning("wandb: %s; the metrics are in metrics.jsonl", error)
