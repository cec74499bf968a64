"""Stage `generate`: draws responses from a model to the train problems of a table.

Answers are kept step by step: killed, the stage goes on at the first step that is missing, and
draws what it would have drawn, because a seed follows from the problem and the sample's index. Not
here: the engines (`generation`), and verdicts on what they wrote (`grade.py`).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.curation._parts import OpenPart, PartedOutput
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.generation.base import Completion, Engine
from megatron_reason.generation.templates import Template, load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.schema.problems import distinct_train, problem_table, problems_of
from megatron_reason.schema.records import Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, TableReader, write_table

_LOGGER = get_logger(__name__)


class GenerateConfig(RowwiseConfig):
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
    problems_per_step: int = Field(default=512, ge=1)
    """About how many problems are answered together, and lost when the stage is killed; the engine
    is less than full at the end of each step."""


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
        source = problem_table(context.inputs[config.table])
        asked = self._asked(source)
        parts = PartedOutput(
            config, source, context.output, shard=config.shard,
            rows_per_part=config.problems_per_step * source.num_rows // len(asked),
        )  # fmt: skip
        if parts.missing:
            template = load_template(context.template, folder)
            engine = context.open_engine(folder)
            todo = [asked.filter(asked.is_between(p.start, p.stop - 1)) for p in parts.missing]
            with progress("generate", sum(map(len, todo)), "problems") as bar:
                for part, rows in zip(parts.missing, todo, strict=True):
                    with parts.open(part) as opened:
                        problems = problems_of(parts.read(part)[(rows - part.start).to_list()])
                        drawn = self._draw(problems, template, engine, bar.advance)
                        _keep(problems, drawn, template, folder.name, opened)
        num_rows, counts = parts.finish()
        _LOGGER.info("%s answered %s: %s", folder.name, config.table, counts)
        if not num_rows:
            raise DataError(
                f"stage '{config.name}'",
                f"{folder.name} wrote only empty responses to {counts['problems']} problems.",
                "Check the template and the sampling parameters.",
            )
        return StageResult(num_rows, counts)

    def _asked(self, source: TableReader) -> pl.Series:
        """Numbers of the rows that are answered: one of each train problem."""
        keys = source.batches(columns=("problem_id", "split"))
        rows = pl.concat([source.empty(("problem_id", "split")), *keys]).with_row_index("row")
        distinct = distinct_train(rows, f"stage '{self.config.name}', table '{self.config.table}'")
        return distinct["row"].head(self.config.max_problems or len(distinct)).cast(pl.Int64)

    def _draw(
        self,
        problems: Sequence[Problem],
        template: Template,
        engine: Engine,
        advance: Callable[[int], None],
    ) -> list[list[Completion]]:
        if not problems:
            return []
        return engine.generate(
            [template.prompt_ids(problem.messages) for problem in problems],
            self.config.sampling,
            stop_token_ids=template.stop_token_ids,
            on_done=advance,
        )


def _keep(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[Completion]],
    template: Template,
    generator: str,
    part: OpenPart,
) -> None:
    samples: list[Sample] = []
    for problem, drawn in zip(problems, completions, strict=True):
        for index, completion in enumerate(drawn):
            text = template.decode(completion.token_ids)
            if not text.strip():
                part.quarantine.add(
                    "empty response", completion, place=f"problem {problem.problem_id}"
                )
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
    part.counts["problems"] += len(problems)
    part.counts.update(f"finish_{sample.finish}" for sample in samples)
    write_table(part.folder, Kind.SAMPLES, samples)
