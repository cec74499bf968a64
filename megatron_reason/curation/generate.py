"""Stage `generate`: draws responses from a model to the train problems of a table.

Answers are kept step by step: killed, the stage goes on at the first step that is missing, and
draws what it would have drawn, because a seed follows from the problem and the sample's index. An
empty response is a row, too: a wrong answer that a pass rate counts; `score` and `mix` set it
aside. Not here: the engines (`generation`), and verdicts on what they wrote (`grade.py`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.config.template import TemplateConfig
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
_TOO_LONG = "prompt fills the context"


class GenerateConfig(RowwiseConfig):
    """Configuration of the stage `generate`."""

    stage: Literal["generate"] = "generate"
    """Kind of stage."""
    table: str
    """Stage whose train problems are answered."""
    model: str | None = None
    """Hugging Face folder of the model that answers; None takes the run's base model."""
    template: TemplateConfig | None = None
    """How problems become that model's prompts; None takes the run's section `template`."""
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
            config, source, context,
            rows_per_part=config.problems_per_step * source.num_rows // len(asked),
        )  # fmt: skip
        if parts.missing:
            template = load_template(config.template or context.template, folder)
            engine = context.open_engine(folder)
            todo = [asked.filter(asked.is_between(p.start, p.stop - 1)) for p in parts.missing]
            with progress("generate", sum(map(len, todo)), "problems") as bar:
                for part, rows in zip(parts.missing, todo, strict=True):
                    with parts.open(part) as opened:
                        problems = problems_of(parts.read(part)[(rows - part.start).to_list()])
                        prompts = _fitting(problems, template, engine, opened)
                        bar.advance(len(problems) - len(prompts))
                        drawn = self._draw(prompts, template, engine, bar.advance)
                        _keep(prompts, drawn, template, folder.name, opened)
        num_rows, counts = parts.finish()
        _LOGGER.info("%s answered %s: %s", folder.name, config.table, counts)
        too_long = counts.get(_TOO_LONG, 0)
        if num_rows == counts.get("empty_responses", 0) and (num_rows or too_long):
            raise DataError(
                f"stage '{config.name}'",
                f"{folder.name} wrote only empty responses to {counts['problems']} problems; "
                f"{too_long} prompts fill the context.",
                "Check the template, the sampling parameters and engine.max_model_len.",
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
        prompts: Mapping[Problem, list[int]],
        template: Template,
        engine: Engine,
        advance: Callable[[int], None],
    ) -> list[list[Completion]]:
        if not prompts:
            return []
        return engine.generate(
            list(prompts.values()),
            self.config.sampling,
            stop_token_ids=template.stop_token_ids,
            on_done=advance,
        )


def _fitting(
    problems: Iterable[Problem], template: Template, engine: Engine, part: OpenPart
) -> dict[Problem, list[int]]:
    """Problems with their prompts; those that leave no room for an answer are set aside."""
    room = int(engine.description["max_model_len"])
    prompts = {problem: template.prompt_ids(problem.messages) for problem in problems}
    for problem, ids in prompts.items():
        if len(ids) >= room:
            detail = f"{len(ids)} tokens, engine.max_model_len is {room}"
            place = f"problem {problem.problem_id}"
            part.quarantine.add(_TOO_LONG, problem, detail, place=place)
    return {problem: ids for problem, ids in prompts.items() if len(ids) < room}


def _keep(
    problems: Collection[Problem],
    completions: Sequence[Sequence[Completion]],
    template: Template,
    generator: str,
    part: OpenPart,
) -> None:
    samples: list[Sample] = []
    for problem, drawn in zip(problems, completions, strict=True):
        for index, completion in enumerate(drawn):
            samples.append(
                Sample.of(
                    problem,
                    template.answer(completion.token_ids),
                    finish=completion.finish,
                    origin=Origin.POLICY,
                    generator=generator,
                    index=index,
                )
            )
    part.counts["problems"] += len(problems)
    part.counts.update(f"finish_{sample.finish}" for sample in samples)
    part.counts["empty_responses"] += sum(not sample.response.strip() for sample in samples)
    write_table(part.folder, Kind.SAMPLES, samples)
