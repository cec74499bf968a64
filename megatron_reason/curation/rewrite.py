"""Stage `rewrite`: expert solutions become the model's own words where it finds them.

Reads one expert solution a problem; writes one response a problem, with the plain prompt. The
column `origin` names the stage of every row: `policy` (self-alignment), `rewritten` (guided
alignment), `expert` (fallback); `rewriting.json` counts them (Table 1 of the paper), and the
verbatim overlap of the retellings. For Table 3, score the tables before and after with the stage
`score`. Not here: the three stages themselves (`_rewriting.py`).
"""

from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from megatron_reason.config.rewriting import RewritingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation._parts import OpenPart, PartedOutput
from megatron_reason.curation._rewriting import Rewriter, Rewritten
from megatron_reason.curation._rewriting_counts import write_counts
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.errors import ConfigError
from megatron_reason.generation.templates import load_template
from megatron_reason.logs import get_logger, progress
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import (
    SCORE_FIELDS,
    Finish,
    Message,
    Origin,
    Problem,
    Sample,
)
from megatron_reason.schema.tables import Kind, TableReader, read_table

_LOGGER = get_logger(__name__)
_STAGES = {Origin.POLICY: "self", Origin.REWRITTEN: "guided", Origin.EXPERT: "fallback"}


class RewriteConfig(RowwiseConfig, RewritingConfig):
    """Configuration of the stage `rewrite`."""

    stage: Literal["rewrite"] = "rewrite"
    """Kind of stage."""
    model: str | None = None
    """Hugging Face folder of the model that rewrites; None takes the run's base model."""
    template: TemplateConfig | None = None
    """How problems become that model's prompts; None takes the run's section `template`."""
    reward: str = "math_verify"
    """Reward that says which candidates are correct."""
    workers: int = Field(default=2, ge=1)
    """Grading processes."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Seconds one answer may take to grade."""
    problems_per_step: int = Field(default=256, ge=1)
    """Problems that are rewritten together, and lost when the stage is killed."""
    seed: int | None = None
    """Seed of the choice among correct candidates; None takes the run's."""


@stage
class Rewrite(Stage[RewriteConfig]):
    """Writes one response to each problem of the table."""

    config_class = RewriteConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the mixed samples.

        Raises:
            ConfigError: `model` is no folder.
            DataError: a problem with two solutions.
            GenerationError: the engine died or missed its deadline.
        """
        config = self.config
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        keys = read_table(source.path, Kind.SAMPLES, columns=["problem_id"])
        self.refuse_repeats(config.table, keys)
        folder = context.model_folder if config.model is None else Path(config.model)
        if not folder.is_dir():
            raise ConfigError(
                f"stage '{config.name}' model",
                f"'{folder}' is no folder.",
                "Give the Hugging Face folder of a model, or leave 'model' out.",
            )
        parts = PartedOutput(
            config, source, context, rows_per_part=config.problems_per_step
        )  # fmt: skip
        if parts.missing:
            template = load_template(config.template or context.template, folder)
            seed = context.seed if config.seed is None else config.seed
            with (
                AnswerPool(config.workers, config.deadline_s, reward=config.reward) as pool,
                progress("rewrite", parts.num_rows, "problems") as bar,
            ):
                engine = context.open_engine(folder)
                rewriter = Rewriter(engine, template, pool, config, seed)
                for part in parts.missing:
                    with parts.open(part) as opened:
                        rows = parts.read(part)
                        self._rewrite(rows, opened, rewriter, folder.name)
                    bar.advance(len(rows))
        num_rows, counts = parts.finish()
        write_counts(context.output, folder.name, counts)
        _LOGGER.info("%s: %s", config.table, counts)
        return StageResult(num_rows, counts)

    def _rewrite(
        self, rows: pl.DataFrame, part: OpenPart, rewriter: Rewriter, generator: str
    ) -> None:
        records = rows.to_dicts()
        problems = [_problem(row) for row in records]
        found = rewriter.rewrite(problems, [row["response"] for row in records])
        written: list[dict[str, Any]] = []
        for row, problem, one in zip(records, problems, found, strict=True):
            written.append(_row(row, problem, one, generator))
            part.counts[_STAGES[one.origin]] += 1
            part.counts["copies"] += one.num_copies
            part.counts["mentions_of_the_prompt"] += one.num_leaks
            part.counts["guided_prompt_too_long"] += one.was_too_long
            if one.overlap is not None:
                part.counts[f"overlap_from_{10 * min(int(10 * one.overlap), 9)}_percent"] += 1
        part.write(pl.DataFrame(written, schema=rows.schema))


def _problem(row: dict[str, Any]) -> Problem:
    return Problem(
        messages=tuple(Message(**turn) for turn in row["messages"]),
        answer=row["answer"],
        source=row["source"],
        family=row["family"],
        split=row["split"],
    )


def _row(row: dict[str, Any], problem: Problem, found: Rewritten, generator: str) -> dict[str, Any]:
    if found.verdict is None:
        return row | {"origin": str(Origin.EXPERT)}
    made = Sample.of(
        problem, found.text, finish=Finish.STOP, origin=found.origin, generator=generator
    )
    return row | dict.fromkeys(SCORE_FIELDS) | {
        "sample_id": made.sample_id,
        "response": made.response,
        "finish": str(made.finish),
        "origin": str(made.origin),
        "generator": generator,
        "status": str(found.verdict.status),
        "score": found.verdict.score,
        "extracted": found.verdict.extracted,
    }  # fmt: skip
