"""From the trainer's weights to the engine's, by way of a Hugging Face folder.

Every rank takes part; only rank 0 holds the engine. Not here: when weights are pushed
(`training/online.py`).
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from megatron_reason.generation.base import Engine
from megatron_reason.models.companions import Changes
from megatron_reason.models.exporter import export_hf
from megatron_reason.schema.topology import Topology


@dataclass(frozen=True)
class PushReport:
    """What a push took."""

    seconds: float
    """On this rank."""


class Pusher(Protocol):
    """Gives the engine the weights that the trainer holds now; all ranks call it together."""

    def push(self, version: int) -> PushReport:
        """Let the engine answer with the present weights.

        Args:
            version: updates that have made them.

        Raises:
            GenerationError: the engine did not take them.
        """
        ...


@dataclass(frozen=True)
class Exported:
    """A model and the folder in which it is handed to the engine."""

    stage: nn.Module
    """This rank's pipeline stage."""
    source: Path
    """Folder the model was imported from."""
    folder: Path
    """Folder that is written."""
    topology: Topology
    changes: Changes

    def write(self) -> None:
        """Write the present weights; all ranks call it."""
        export_hf(self.stage, self.source, self.folder, self.topology, self.changes)


@dataclass(frozen=True)
class FolderPush:
    """Pushes by writing the folder and having the engine read it."""

    exported: Exported
    engine: Engine | None
    """The engine on rank 0, None elsewhere."""

    def push(self, version: int) -> PushReport:  # noqa: ARG002 - the engine counts by itself
        """Write and read the folder."""
        started = time.perf_counter()
        self.exported.write()
        if self.engine is not None:
            self.engine.load_weights(self.exported.folder)
        return PushReport(time.perf_counter() - started)
