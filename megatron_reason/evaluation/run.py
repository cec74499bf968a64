"""Answer problems with an engine, grade the answers, and keep both; continues where it stopped.

Writes `eval_card.json`, `generations.parquet` and `summary.json`. Not here: metrics
(`summary.py`), graders (`rewards`), and the entropy of the answers, which needs a forward pass of
the trainer's model and is entered later with `fill_entropy`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.errors import DataError
from megatron_reason.evaluation.card import (
    CARD,
    EvalCard,
    differences,
    make_card,
    needs_only_grading,
    read_card,
    write_card,
)
from megatron_reason.evaluation.disagreements import write_disagreements
from megatron_reason.evaluation.regrade import Grade, replace_verdicts
from megatron_reason.evaluation.summary import (
    SUMMARY,
    EvalSummary,
    fill_entropy,
    summarise,
    write_summary,
)
from megatron_reason.generation.base import Completion, Engine
from megatron_reason.logs import get_logger, progress
from megatron_reason.schema.records import EvalRecord, Message
from megatron_reason.schema.tables import Kind, read_table, table_path, write_table

if TYPE_CHECKING:
    from megatron_reason.generation.templates import Template

__all__ = ["Grade", "evaluate", "fill_entropy"]

_SAMPLES_PER_CHUNK = 1024
"""Answers between two writes: all that a crash can cost. The engine runs empty after each chunk,
so small chunks cost throughput."""

_log = get_logger(__name__)


def evaluate(
    problems: pl.DataFrame,
    engine: Engine,
    *,
    template: "Template",
    config: EvalConfig,
    output: Path,
    grade: Grade,
) -> EvalSummary:
    """Draw `config.sampling.samples_per_prompt` answers to each problem, grade and summarise them.

    Problems already answered in `output` under the same card are not answered again; where only
    the grader is another one, they are graded again. A folder with another card is started afresh,
    with a warning that names the differences.

    Args:
        problems: rows of `Kind.PROBLEMS`.
        engine: where answers come from.
        template: how problems become prompts, and ids become text.
        config: what to do.
        output: folder to write to.
        grade: who judges.

    Raises:
        DataError: no problems, or two with the same id.
        GenerationError: the engine died; what was done until then is kept.
    """
    if config.max_problems is not None:
        problems = problems.head(config.max_problems)
    _check(problems, output)
    card = make_card(problems["problem_id"], engine, template, config)
    records = _resumed(output, card, grade)
    answered = {record.problem_id for record in records}
    pending = [row for row in problems.to_dicts() if row["problem_id"] not in answered]
    samples_per_prompt = config.sampling.samples_per_prompt
    chunk = max(_SAMPLES_PER_CHUNK // samples_per_prompt, 1)
    with progress("evaluate", len(pending) * samples_per_prompt, "answers") as bar:
        for start in range(0, len(pending), chunk):
            rows = pending[start : start + chunk]
            completions = engine.generate(
                [template.prompt_ids(_messages(row)) for row in rows],
                config.sampling,
                stop_token_ids=template.stop_token_ids,
                on_done=lambda count: bar.advance(count * samples_per_prompt),
            )
            records += _graded(rows, completions, template, grade)
            write_table(output, Kind.GENERATIONS, records)
    generations = read_table(output, Kind.GENERATIONS)
    _log.info("%s", write_disagreements(output, generations, card.reward).in_short)
    summary = summarise(generations, seed=config.sampling.seed)
    write_summary(output, summary)
    return summary


def _check(problems: pl.DataFrame, output: Path) -> None:
    if problems.is_empty():
        raise DataError(str(output), "there are no problems to answer.", "Check the split.")
    repeated = problems.filter(problems["problem_id"].is_duplicated())["problem_id"]
    if not repeated.is_empty():
        raise DataError(
            str(output),
            f"{repeated.n_unique()} problem ids occur more than once, for example {repeated[0]}.",
            "Remove duplicates with the stage 'filter'.",
        )


def _resumed(output: Path, card: EvalCard, grade: Grade) -> list[EvalRecord]:
    """Records already there under the same card; otherwise an emptied folder with the new card."""
    if (output / CARD).is_file() and table_path(output, Kind.GENERATIONS).is_file():
        changes = differences(read_card(output), card)
        if changes and needs_only_grading(changes):
            _log.info("stored answers in %s are graded again: %s", output, "; ".join(changes))
            replace_verdicts(output, card.reward, grade)
            changes = []
        if not changes:
            records = _stored(output, card.sampling.samples_per_prompt)
            _log.info("%d answers are there already in %s", len(records), output)
            return records
        _log.warning("%s is made anew: %s", output, "; ".join(changes))
    # In this order: a table must never lie beside a card that it was not made under.
    (output / SUMMARY).unlink(missing_ok=True)
    table_path(output, Kind.GENERATIONS).unlink(missing_ok=True)
    write_card(output, card)
    return []


def _stored(output: Path, samples_per_prompt: int) -> list[EvalRecord]:
    frame = read_table(output, Kind.GENERATIONS)
    is_whole = pl.len().over("problem_id") == samples_per_prompt
    return [EvalRecord(**row) for row in frame.filter(is_whole).to_dicts()]


def _graded(
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Sequence[Completion]],
    template: "Template",
    grade: Grade,
) -> list[EvalRecord]:
    answers = [
        (row, index, completion, template.decode(completion.token_ids))
        for row, drawn in zip(rows, completions, strict=True)
        for index, completion in enumerate(drawn)
    ]
    verdicts = grade([(row["answer"], response) for row, _, _, response in answers])
    return [
        EvalRecord(
            problem_id=row["problem_id"],
            sample_index=index,
            problem=_messages(row)[-1].content,
            answer=row["answer"],
            family=row["family"],
            response=response,
            finish=completion.finish,
            num_tokens=len(completion.token_ids),
            mean_entropy=None,
            status=verdict.status,
            score=verdict.score,
            extracted=verdict.extracted,
        )
        for (row, index, completion, response), verdict in zip(answers, verdicts, strict=True)
    ]


def _messages(row: dict[str, Any]) -> list[Message]:
    return [Message(**turn) for turn in row["messages"]]
