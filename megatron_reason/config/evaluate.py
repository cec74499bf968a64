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
    """Benchmarks answered: names, or paths of .jsonl or .parquet files."""
    benchmark_folder: Path = Path("data")
    """Folder below which the benchmarks' JSONL files lie."""
    max_problems: int | None = Field(default=None, ge=1)
    """First so many problems only; None takes all."""
    sampling: SamplingConfig = SamplingConfig()
    """How answers are drawn."""
    samples_of: dict[str, int] = Field(default_factory=dict)
    """Samples a problem of single benchmarks, where not `sampling.samples_per_prompt`."""
    choice_seed: int | None = 0
    """Seed of the order of multiple-choice options; None keeps the file's order."""
    reward: str = "math_verify"
    """Reward that grades answers to the table's problems."""
    benchmark_reward: str | None = None
    """Reward that grades answers to benchmarks; None takes each benchmark's own."""
    reward_of: dict[str, str] = Field(default_factory=dict)
    """Reward of single benchmarks, where not `benchmark_reward`."""
    include_base: bool = True
    """Also measure the model before training."""
    num_entropy_responses: int = Field(default=64, ge=0)
    """Responses whose full-vocabulary entropy is computed by a forward pass; 0 skips it."""

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.table is None and not self.benchmarks:
            raise ValueError("give 'table' or 'benchmarks'")
        return self

    @model_validator(mode="after")
    def _at_least_one_sample(self) -> Self:
        if too_few := [name for name, count in self.samples_of.items() if count < 1]:
            raise ValueError(f"samples_of.{too_few[0]} must be at least 1")
        return self
