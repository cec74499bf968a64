"""Held-out problems answered during training, by the engine that makes the rollouts.

Not here: evaluation stages (`evaluation`), which this is a small one of.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.rollout import MonitorConfig
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.evaluation.run import evaluate
from megatron_reason.generation.base import Engine
from megatron_reason.generation.templates import Template
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.metrics import MEASURED


@dataclass(frozen=True)
class Monitor:
    """A measurement that is repeated."""

    settings: MonitorConfig
    problems: pl.DataFrame
    """Rows of `Kind.PROBLEMS`."""
    engine: Engine
    graders: AnswerPool
    template: Template
    max_tokens: int
    """Longest answer."""
    folder: Path
    """Where answers go, one folder a measurement."""

    def measure(self, update: int) -> dict[str, float]:
        """Metrics `eval/<table>/...` of the engine's weights after `update` updates."""
        settings = self.settings
        config = EvalConfig(
            table=settings.table,
            max_problems=settings.max_problems,
            reward=settings.reward,
            sampling=SamplingConfig(
                samples_per_prompt=settings.samples_per_prompt,
                temperature=settings.temperature,
                max_tokens=self.max_tokens,
            ),
        )
        summary = evaluate(
            self.problems,
            self.engine,
            template=self.template,
            config=config,
            output=self.folder / f"step_{update:06d}",
            grade=self.graders.grade_many,
        )
        start = f"{MEASURED}{settings.table}"
        found = {f"{start}/{name}": estimate.value for name, estimate in summary.metrics.items()}
        return {f"{start}/avg@{settings.samples_per_prompt}": found[f"{start}/pass@1"], **found}
