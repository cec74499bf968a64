"""What a launcher hands to worker processes: one JSON file, one of three jobs.

A job is self-contained: every rank reads it and needs nothing else but the files it names. Not
here: doing any of it (`worker.py`).
"""

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, TypeAdapter

from megatron_reason.config.base import Strict
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.config.train import TrainConfig
from megatron_reason.curation.base import STAGES, StageConfig
from megatron_reason.files import read_json
from megatron_reason.schema.method import METHODS, MethodConfig


def _as_method_config(value: Any) -> Any:  # noqa: ANN401 - a validator sees raw input
    return METHODS.get(value["name"]).config_class(**value) if isinstance(value, dict) else value


def _as_stage_config(value: Any) -> Any:  # noqa: ANN401 - a validator sees raw input
    return STAGES.get(value["stage"]).config_class(**value) if isinstance(value, dict) else value


AnyMethodConfig = Annotated[SerializeAsAny[MethodConfig], BeforeValidator(_as_method_config)]
AnyStageConfig = Annotated[SerializeAsAny[StageConfig], BeforeValidator(_as_stage_config)]


class _Job(Strict):
    model: ModelConfig
    """The model to load."""
    model_folder: Path
    """Hugging Face folder of its weights."""
    output: Path
    """Folder to write to."""
    seed: int
    """Seed of everything random."""
    plugins: tuple[str, ...] = ()
    """Modules to import before anything of theirs is looked up."""


class RolloutJob(Strict):
    """What the rollouts of a training need besides its model."""

    settings: RolloutSection
    """How problems are answered and judged."""
    problems: Path
    """Folder of the table of problems."""
    monitored: Path | None = None
    """Folder of the table whose held-out problems are answered during training."""
    engine: EngineConfig
    """What generates text."""


class TrainJob(_Job):
    """Train one model with one method; leaves `output/huggingface`."""

    kind: Literal["train"] = "train"
    """Which job this is."""
    method: AnyMethodConfig
    """What to learn."""
    train: TrainConfig
    """How to spend the updates."""
    table: Path | None = None
    """Folder of the tokens table; None where all that is learnt from is rollouts."""
    rollout: RolloutJob | None = None
    """How rollouts are made, for methods that learn from their own."""
    template: TemplateConfig | None = None
    """How its sequences were made, to show and check them; None for sequences from elsewhere."""
    track: TrackingConfig = TrackingConfig()
    """Where metrics go."""
    stop_after: int | None = Field(default=None, ge=1)
    """Save and leave after the step that makes this update, as if told to by a signal."""


class StageJob(_Job):
    """Run a curation stage whose `runs_on` is `ranks`; leaves its table and `result.json`."""

    kind: Literal["stage"] = "stage"
    """Which job this is."""
    stage: AnyStageConfig
    """The stage's configuration."""
    inputs: dict[str, Path]
    """Output folders of the stages it reads, by name."""
    template: TemplateConfig
    """How messages become tokens."""


class EntropyJob(_Job):
    """Measure the entropy of stored generations under a model; leaves `output/entropy.parquet`.

    The parquet file has the columns problem_id, sample_index, mean_entropy (nats, full vocabulary,
    at temperature 1, averaged over the tokens of the response).
    """

    kind: Literal["entropy"] = "entropy"
    """Which job this is."""
    generations: Path
    """Folder of the generations table."""
    problems: Path
    """Folder of the problems table the generations answer."""
    template: TemplateConfig
    """How messages become tokens."""
    num_responses: int = Field(ge=1)
    """Responses measured, spread evenly over the problems."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the model over the processes."""
    max_tokens_per_microbatch: int = Field(default=4096, ge=1)
    """Tokens packed into one micro-batch."""


Job = TrainJob | StageJob | EntropyJob
_JOBS: TypeAdapter[Job] = TypeAdapter(Annotated[Job, Field(discriminator="kind")])


def read_job(path: Path) -> Job:
    """Parse the job file `path`, whose plug-ins are imported first."""
    job = read_json(path)
    for module in job.get("plugins", ()):
        importlib.import_module(module)
    return _JOBS.validate_python(job)
