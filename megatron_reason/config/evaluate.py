"""What a trained model is measured on."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from megatron_reason.config.base import Strict
from megatron_reason.config.sampling import SamplingConfig


class EvalConfig(Strict):
    """Section `eval`."""

    table: str | None = None
    """Name of a stage of this run whose held-out problems are answered; this or `benchmarks`."""
    benchmarks: tuple[str, ...] = ()
    """Benchmarks answered, by name."""
    benchmark_folder: Path = Path("data")
    """Folder below which the benchmarks' JSONL files lie."""
    max_problems: int | None = Field(default=None, ge=1)
    """First so many problems only; None takes all."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are drawn."""
    reward: str = "math_verify"
    """Reward that grades the answers."""
    include_base: bool = True
    """Also measure the model before training."""
    num_entropy_responses: int = Field(default=64, ge=0)
    """Responses whose full-vocabulary entropy is computed by a forward pass; 0 skips it."""

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.table is None and not self.benchmarks:
            raise ValueError("give 'table' or 'benchmarks'")
        return self
