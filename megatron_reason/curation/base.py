"""The contract of a stage: typed config, named inputs, one output folder.

A stage reads tables from its inputs' folders and writes its own with `schema.tables.write_table`;
rows it refuses go to a `Quarantine`. Whether it is skipped, where it runs and what its folder is
called is the pipeline's business. Not here: any stage.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import polars as pl
from pydantic import Field

from megatron_reason.config.base import Strict
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.generation.base import Engine
from megatron_reason.registry import Registry
from megatron_reason.schema.topology import Topology


class StageConfig(Strict):
    """Base of a stage's configuration; the stage owns its fields."""

    stage: str
    """Kind of stage, as `mreason list stages` prints it."""
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """Name of this stage's output, by which later stages refer to it."""
    weights: str | None = None
    """Variant, trained before, whose weights answer or score in this stage; None takes those of the
    base model. Only for stages that do either."""

    def inputs(self) -> tuple[str, ...]:
        """Names of the stages whose output this one reads."""
        return ()

    @property
    def draws_text(self) -> bool:
        """Whether the stage asks an engine for text: if it has sampling parameters."""
        return any(isinstance(value, SamplingConfig) for _, value in self)


class RowwiseConfig(StageConfig):
    """Base of the configuration of a stage that treats every row of one table by itself.

    Such a stage can be killed and goes on where it was, and can be divided over many jobs.
    """

    table: str
    """Stage whose samples it reads."""
    shard: str | None = Field(default=None, pattern=r"^\d+/\d+$")
    """`i/n`: only the i-th of n even shares of the rows, from 0, which `merge` puts together."""

    def inputs(self) -> tuple[str, ...]:
        """The table read."""
        return (self.table,)


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may use besides its own configuration."""

    output: Path
    """Folder to write to."""
    inputs: Mapping[str, Path]
    """Output folders of the stages named by `StageConfig.inputs`."""
    model: ModelConfig
    """The run's base model, or the variant that the stage's `weights` name."""
    model_folder: Path
    """Hugging Face folder of its weights."""
    template: TemplateConfig
    """How messages become tokens."""
    seed: int
    """The run's seed."""
    open_engine: Callable[[Path], Engine]
    """Engine that answers with the weights in the given HF folder; owned and kept by the caller."""
    topology: Topology = field(default_factory=Topology)
    """This rank's place, for stages that run on ranks."""


@dataclass(frozen=True)
class StageResult:
    """What a stage reports for its manifest and the log."""

    num_rows: int
    """Rows of the main table written."""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    """Further totals: rows refused by reason, shortages, verdicts by status..."""


C = TypeVar("C", bound=StageConfig)


@dataclass(frozen=True)
class Stage(ABC, Generic[C]):
    """Base of all curation stages; one file in `curation/` each."""

    config: C
    config_class: ClassVar[type[StageConfig]]
    runs_on: ClassVar[Literal["host", "ranks"]] = "host"
    """`host`: one process; `ranks`: every worker process calls `run`, Megatron is initialised."""

    def parallel(self) -> ParallelConfig:
        """Layout of the model, for stages that run on ranks."""
        return ParallelConfig()

    @abstractmethod
    def run(self, context: StageContext) -> StageResult:
        """Read the inputs, write the output.

        Raises:
            DataError: inputs that cannot satisfy the configuration.
        """

    def refuse_repeats(self, table: str, rows: pl.DataFrame) -> None:
        """For stages that want one response to each problem.

        Args:
            table: name of the stage that wrote the rows.
            rows: its rows, or their column `problem_id` alone.

        Raises:
            DataError: a problem with two responses.
        """
        again = rows.filter(~pl.col("problem_id").is_first_distinct())
        if len(again):
            raise DataError(
                f"stage '{self.config.name}'",
                f"{len(again)} rows of '{table}' are further responses to a problem, the first "
                f"to {again['problem_id'][0]}.",
                "Select one a problem first: stage 'select' with 'per_problem: 1'.",
            )


STAGES: Registry[type[Stage[Any]]] = Registry("stage", "megatron_reason.curation")


def stage(cls: type[Stage[Any]]) -> type[Stage[Any]]:
    """Class decorator: register a stage under the default of its config's field `stage`."""
    name = cls.config_class.model_fields["stage"].default
    if not isinstance(name, str):
        raise ConfigError(
            cls.config_class.__name__,
            "a stage's configuration must give its own kind as the default of 'stage'.",
            'Write: stage: Literal["my_stage"] = "my_stage"',
        )
    return STAGES.register(name)(cls)


def build_stage(config: StageConfig) -> Stage[Any]:
    """Stage for an already validated configuration."""
    return STAGES.get(config.stage)(config)
