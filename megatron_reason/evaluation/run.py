"""Answer problems with an engine, grade the answers, and keep both; continues where it stopped.

Writes `eval_card.json`, `generations.parquet` and `summary.json`. Not here: metrics
(`summary.py`), graders (`rewards`), and the entropy of the answers, which needs a forward pass of
the trainer's model and is entered later with `fill_entropy`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.errors import DataError
from megatron_reason.evaluation.aside import set_aside
from megatron_reason.evaluation.card import (
    CARD,
    EvalCard,
    check_belongs,
    differences,
    graded_alike,
    keeps_answers,
    make_card,
    mixed_up,
    read_card,
    write_card,
)
from megatron_reason.evaluation.disagreements import write_disagreements
from megatron_reason.evaluation.prompts import prompts_of
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
from megatron_reason.schema.records import EvalRecord
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

    Answers that `output` holds under the same card are not drawn again; where the grader is another
    one, they are graded again, and where more samples are wanted, the missing ones are drawn.
    Under another card all are drawn anew, with a warning that names the differences, and the stored
    ones are moved aside.

    Args:
        problems: rows of `Kind.PROBLEMS`.
        engine: where answers come from.
        template: how problems become prompts, and ids become text.
        config: what to do.
        output: folder to write to.
        grade: who judges.

    Raises:
        DataError: no problems, or two with the same id, or one that leaves no room for an answer,
            or stored answers to other problems.
        GenerationError: the engine died; what was done until then is kept.
    """
    if config.max_problems is not None:
        problems = problems.head(config.max_problems)
    _check(problems, output)
    longest = int(engine.description["max_model_len"])
    prompts = prompts_of(problems, template, max_model_len=longest, place=str(output))
    card = make_card(problems["problem_id"], engine, template, config)
    records = _resumed(output, card, grade)
    place = {name: index for index, name in enumerate(problems["problem_id"])}
    if unknown := [one.problem_id for one in records if one.problem_id not in place]:
        raise mixed_up(output, f"{len(unknown)} answers are to other problems than the card's")
    chunks = _chunks(problems, records, config.sampling.samples_per_prompt)
    missing = sum(len(chunk.rows) * chunk.num_missing for chunk in chunks)
    with progress("evaluate", missing, "answers") as bar:
        for chunk in chunks:
            completions = engine.generate(
                [prompts[row["problem_id"]] for row in chunk.rows],
                config.sampling,
                stop_token_ids=template.stop_token_ids,
                first_sample=chunk.first_sample,
                on_done=lambda count, each=chunk.num_missing: bar.advance(count * each),
            )
            records += _graded(chunk, completions, template, grade)
            records.sort(key=lambda record: (place[record.problem_id], record.sample_index))
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
    """Records already there that belong under `card`, which is in the folder then."""
    if table_path(output, Kind.GENERATIONS).is_file():
        if not (output / CARD).is_file():
            raise DataError(
                str(output),
                f"answers lie here without the {CARD} that says how they were drawn.",
                "Put the card back, or evaluate into an empty folder.",
            )
        before = read_card(output)
        if keeps_answers(before, card):
            return _kept(output, before, card, grade)
        changes = "; ".join(differences(before, card))
        place = set_aside(output)
        _log.warning(
            "%s is made anew: %s. The answers lie in %s now: to go on with them, move its files "
            "back and evaluate as before",
            output, changes, place,
        )  # fmt: skip
    (output / SUMMARY).unlink(missing_ok=True)
    write_card(output, card)
    return []


def _kept(output: Path, before: EvalCard, card: EvalCard, grade: Grade) -> list[EvalRecord]:
    """The stored records, graded as `card` says."""
    answered = read_table(output, Kind.GENERATIONS, columns=("problem_id",))["problem_id"]
    check_belongs(output, before, answered)
    if not graded_alike(before, card):
        changes = "; ".join(differences(before, card))
        _log.info("stored answers in %s are graded again: %s", output, changes)
        replace_verdicts(output, card.reward, grade)
    if before.sampling != card.sampling:
        (output / SUMMARY).unlink(missing_ok=True)
        write_card(output, card)
    records = [EvalRecord(**row) for row in read_table(output, Kind.GENERATIONS).to_dicts()]
    _log.info("%d answers are there already in %s", len(records), output)
    return records


@dataclass(frozen=True)
class _Chunk:
    """Problems that are asked together, each as often as the others."""

    rows: list[dict[str, Any]]
    first_sample: int
    """Samples of each that are there already."""
    num_missing: int
    """Samples of each that are drawn."""


def _chunks(problems: pl.DataFrame, records: Sequence[EvalRecord], wanted: int) -> list[_Chunk]:
    """Problems with fewer than `wanted` answers, in order, those with equally many together."""
    there = Counter(record.problem_id for record in records)
    pending: dict[int, list[dict[str, Any]]] = {}
    for row in problems.to_dicts():
        if (first := there[row["problem_id"]]) < wanted:
            pending.setdefault(first, []).append(row)
    return [
        _Chunk(rows[start : start + size], first, wanted - first)
        for first, rows in pending.items()
        for size in [max(_SAMPLES_PER_CHUNK // (wanted - first), 1)]
        for start in range(0, len(rows), size)
    ]


def _graded(
    chunk: _Chunk,
    completions: Sequence[Sequence[Completion]],
    template: "Template",
    grade: Grade,
) -> list[EvalRecord]:
    answers = [
        (row, index, completion, template.answer(completion.token_ids))
        for row, drawn in zip(chunk.rows, completions, strict=True)
        for index, completion in enumerate(drawn, start=chunk.first_sample)
    ]
    verdicts = grade([(row["answer"], response) for row, _, _, response in answers])
    return [
        EvalRecord(
            problem_id=row["problem_id"],
            sample_index=index,
            problem=row["messages"][-1]["content"],
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
