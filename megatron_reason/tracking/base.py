"""What a metric sink is, and opening those a configuration asks for.

A sink's libraries are imported when it is opened. Not here: any sink.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.tracking.jsonl import METRICS, JsonlSink


class Sink(Protocol):
    """Somewhere metrics go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step."""
        ...

    def close(self) -> None:
        """Write what is pending and let go."""
        ...


@dataclass(frozen=True)
class FanOut:
    """Sink that passes everything on to several others."""

    sinks: Sequence[Sink]

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of one step everywhere."""
        for sink in self.sinks:
            sink.log(step, values)

    def close(self) -> None:
        """Close all."""
        for sink in self.sinks:
            sink.close()


def open_sinks(config: TrackingConfig, folder: Path, *, resume_after: int = 0) -> FanOut:
    """`metrics.jsonl` in `folder`, and the sinks of `config` beside it.

    Args:
        config: which further sinks.
        folder: the run's folder.
        resume_after: steps above this one are dropped: they will be made again.

    Raises:
        DataError: a damaged `metrics.jsonl` to go on with.
        PlatformError: a sink whose package is not installed.
    """
    sinks: list[Sink] = [JsonlSink(folder / METRICS, resume_after=resume_after)]
    if "tensorboard" in config.sinks:
        from megatron_reason.tracking.tensorboard import TensorBoardSink

        sinks.append(TensorBoardSink(folder / "tensorboard", resume_after=resume_after))
    if "wandb" in config.sinks:
        from megatron_reason.tracking.wandb import WandbSink

        sinks.append(WandbSink(folder, project=config.project, resume_after=resume_after))
    return FanOut(sinks)
