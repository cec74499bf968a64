"""Grade stored answers again, without a model: another grader, or a newer version of it.

Not here: graders (`rewards`), and drawing answers (`run.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.aside import is_aside
from megatron_reason.evaluation.card import (
    EvalCard,
    check_belongs,
    grader_versions,
    read_card,
    write_card,
)
from megatron_reason.evaluation.disagreements import write_disagreements
from megatron_reason.evaluation.summary import (
    SUMMARY,
    EvalSummary,
    summarise,
    write_summary,
)
from megatron_reason.schema.records import Verdict
from megatron_reason.schema.tables import Kind, read_table, table_path, write_table

Grade = Callable[[Sequence[tuple[str, str]]], list[Verdict]]
"""Verdicts on (gold answer, response) pairs, in order; `AnswerPool.grade_many` is one."""
_UNFINISHED = " (unfinished)"


@dataclass(frozen=True)
class Regraded:
    """What grading again found."""

    summary: EvalSummary
    num_changed: int
    """Answers whose status is another one now."""


def evaluation_folders(folder: Path) -> dict[str, Path]:
    """Folders below `folder`, itself included, that hold stored answers, by name.

    The names are paths relative to `folder`, or its own name. Answers that were set aside do not
    count, unless `folder` is where they lie.

    Raises:
        DataError: there is none.
    """
    places = (path.parent for path in folder.rglob(table_path(Path(), Kind.GENERATIONS).name))
    found = sorted(path for path in places if not is_aside(path.relative_to(folder)))
    if not found:
        raise DataError(
            str(folder),
            "no stored answers (generations.parquet) lie here.",
            "Give the folder that `mreason eval --out` or a run's evaluation wrote.",
        )
    return {
        (folder.resolve().name if path == folder else path.relative_to(folder).as_posix()): path
        for path in found
    }


def regrade(folder: Path, reward: str, grade: Grade) -> Regraded:
    """Replace the verdicts of the answers in `folder`, and all that follows from them.

    Args:
        folder: an evaluation's folder.
        reward: name of the grader.
        grade: the grader.

    Raises:
        SchemaError: a table that cannot be read.
        DataError: there is no card, or it is that of other answers.
    """
    before, after = replace_verdicts(folder, reward, grade)
    write_disagreements(folder, after, reward)
    summary = summarise(after, seed=read_card(folder).sampling.seed)
    write_summary(folder, summary)
    return Regraded(summary, int((after["status"] != before["status"]).sum()))


def replace_verdicts(folder: Path, reward: str, grade: Grade) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Grade the answers in `folder` anew and say so on their card.

    Interrupted, it leaves a card with which no evaluation goes on without grading again.

    Returns:
        The table before and after.
    """
    before, card = read_table(folder, Kind.GENERATIONS), read_card(folder)
    check_belongs(folder, card, before["problem_id"])
    (folder / SUMMARY).unlink(missing_ok=True)
    write_card(folder, _graded_by(card, f"{reward}{_UNFINISHED}"))
    pairs = list(before.select("answer", "response").iter_rows())
    verdicts = grade(pairs)
    after = before.with_columns(
        status=pl.Series([str(one.status) for one in verdicts], dtype=pl.String),
        score=pl.Series([one.score for one in verdicts], dtype=pl.Float64),
        extracted=pl.Series([one.extracted for one in verdicts], dtype=pl.String),
    )
    write_table(folder, Kind.GENERATIONS, after)
    write_card(folder, _graded_by(card, reward))
    return before, after


def grader_of(folder: Path) -> str:
    """Name of the reward that graded the answers in `folder`."""
    return read_card(folder).reward.removesuffix(_UNFINISHED)


def _graded_by(card: EvalCard, reward: str) -> EvalCard:
    versions = card.versions | grader_versions()
    return card.model_copy(update={"reward": reward, "versions": versions})
