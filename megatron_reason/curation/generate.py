"""Stage `generate`: draws responses from a model to the train problems of a table.

Not here: the engines (`generation`), and verdicts on what they wrote (`grade.py`).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.generation.base import Completion
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.schema.problems import train_problems
from megatron_reason.schema.records import Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, Quarantine, write_table

_LOGGER = get_logger(__name__)


class GenerateConfig(StageConfig):
    """Configuration of the stage `generate`."""

    stage: Literal["generate"] = "generate"
    """Kind of stage."""
    table: str
    """Stage whose train problems are answered."""
    model: str | None = None
    """Hugging Face folder of the model that answers; None takes the run's base model."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are drawn."""
    max_problems: int | None = Field(default=None, ge=1)
    """First so many problems only; None takes all."""

    def inputs(self) -> tuple[str, ...]:
        """The table with the problems."""
        return (self.table,)


@stage
class Generate(Stage[GenerateConfig]):
    """Writes one sample per response, with origin `policy`."""

    config_class = GenerateConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the generated samples.

        Raises:
            ConfigError: `model` is no folder.
            DataError: no train problem, or nothing but empty responses.
            GenerationError: the engine died or missed its deadline.
        """
        config = self.config
        folder = context.model_folder if config.model is None else Path(config.model)
        if not folder.is_dir():
            raise ConfigError(
                f"stage '{config.name}' model",
                f"'{folder}' is no folder.",
                "Give the Hugging Face folder of a model, or leave 'model' out.",
            )
        problems = train_problems(context.inputs[config.table])[: config.max_problems]
        template = load_template(context.template, folder)
        engine = context.open_engine(folder)
        with progress("generate", len(problems), "problems") as bar:
            completions = engine.generate(
                [template.prompt_ids(problem.messages) for problem in problems],
                config.sampling,
                stop_token_ids=template.stop_token_ids,
                on_done=bar.advance,
            )
        with Quarantine(context.output) as quarantine:
            samples = _samples(
                problems, completions, template, generator=folder.name, aside=quarantine
            )
        finishes = Counter(f"finish_{sample.finish}" for sample in samples)
        counts = {"problems": len(problems), **finishes, **quarantine.counts()}
        _LOGGER.info("%s answered %s: %s", folder.name, config.table, counts)
        if not samples:
            raise DataError(
                f"stage '{config.name}'",
                f"{folder.name} wrote only empty responses to {len(problems)} problems.",
                "Check the template and the sampling parameters.",
            )
        write_table(context.output, Kind.SAMPLES, samples)
        return StageResult(len(samples), counts)


def _samples(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    template: Template,
    *,
    generator: str,
    aside: Quarantine,
) -> list[Sample]:
    samples: list[Sample] = []
    for problem, drawn in zip(problems, completions, strict=True):
        for index, completion in enumerate(drawn):
            text = template.decode(completion.token_ids)
            if not text.strip():
                aside.add("empty response", completion, place=f"problem {problem.problem_id}")
                continue
            samples.append(
                Sample.of(
                    problem,
                    text,
                    finish=completion.finish,
                    origin=Origin.POLICY,
                    generator=generator,
                    index=index,
                )
            )
    return samples
