"""Where metrics go besides `metrics.jsonl`, which is always written."""

from typing import Literal

from megatron_reason.config.base import Strict


class TrackingConfig(Strict):
    """Section `track`."""

    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """Further destinations of the metrics."""
    project: str = "megatron-reason"
    """Project name, for sinks that have projects."""
