"""Stage `grade`: gives every response of a table its verdict.

Not here: how an answer is judged (`rewards`), and what a verdict is good for (`select.py`).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from megatron_reason.curation._parts import OpenPart, PartedOutput
from megatron_reason.curation.base import RowwiseConfig, Stage, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.logs import get_logger, progress
from megatron_reason.rewards.base import FAILED_STATUSES, Limits
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, Quarantine, TableReader

_LOGGER = get_logger(__name__)
KEPT_STATUSES: dict[str, tuple[Status, ...]] = {
    "all": tuple(Status),
    "correct": (Status.OK,),
    "wrong": FAILED_STATUSES,
}


class GradeConfig(RowwiseConfig):
    """Configuration of the stage `grade`."""

    stage: Literal["grade"] = "grade"
    """Kind of stage."""
    reward: str = "math_verify"
    """Reward that grades them, as `mreason list rewards` prints it."""
    keep: Literal["all", "correct", "wrong"] = "all"
    """Rows passed on; `wrong` means known to be wrong, not that checking failed."""
    workers: int = Field(default=2, ge=1)
    """Grading processes."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Seconds one answer may take."""
    max_failed: float = Field(default=0.05, ge=0, le=1)
    """Share of timeouts and crashes from which grading stops, as broken."""
    max_unread: float = Field(default=0.5, ge=0, le=1)
    """Share of unreadable answers, given or true, from which grading stops."""


@stage
class Grade(Stage[GradeConfig]):
    """Fills `status`, `score` and `extracted`; rows that could not be checked are set aside."""

    config_class = GradeConfig

    def run(self, context: StageContext) -> StageResult:
        """Write the graded samples that `keep` asks for.

        Raises:
            DataError: no row is left.
            RewardError: the grading processes do not start.
        """
        config = self.config
        source = TableReader(context.inputs[config.table], Kind.SAMPLES)
        parts = PartedOutput(config, source, context)
        limits = Limits(failed=config.max_failed, unread=config.max_unread)
        if parts.missing:
            with (
                AnswerPool(
                    config.workers, config.deadline_s, reward=config.reward, limits=limits
                ) as pool,
                progress("grade", parts.num_rows, "answers") as bar,
            ):
                for part in parts.missing:
                    with parts.open(part) as opened:
                        self._grade(parts.read(part), opened, pool, bar.advance)
        num_rows, counts = parts.finish()
        counts = {f"status_{status}": counts.get(f"status_{status}", 0) for status in Status} | {
            name: counts.get(name, 0) for name in ("not_kept", *counts)
        }
        _LOGGER.info("%s: %d rows, kept %d; %s", config.table, parts.num_rows, num_rows, counts)
        if num_rows == 0:
            raise DataError(
                f"stage '{config.name}'",
                f"no row of '{config.table}' is '{config.keep}'; verdicts: {counts}.",
                "Look at the responses, or use another reward.",
            )
        return StageResult(num_rows, counts)

    def _grade(
        self, rows: pl.DataFrame, part: OpenPart, pool: AnswerPool, advance: Callable[[int], None]
    ) -> None:
        pairs = list(zip(rows["answer"].to_list(), rows["response"].to_list(), strict=True))
        verdicts = pool.grade_many(pairs, on_done=advance)
        graded = rows.with_columns(
            pl.Series("status", [str(verdict.status) for verdict in verdicts], pl.String),
            pl.Series("score", [verdict.score for verdict in verdicts], pl.Float64),
            pl.Series("extracted", [verdict.extracted for verdict in verdicts], pl.String),
        )
        wanted = [str(status) for status in KEPT_STATUSES[self.config.keep]]
        kept = graded.filter(pl.col("status").is_in(wanted))
        part.counts.update(f"status_{verdict.status}" for verdict in verdicts)
        part.counts["not_kept"] += len(graded) - len(kept)
        _set_aside_unchecked(graded, wanted, part.quarantine)
        part.write(kept)


def _set_aside_unchecked(
    graded: pl.DataFrame, wanted: Sequence[str], quarantine: Quarantine
) -> None:
    """Rows that are not passed on because checking them failed, by status."""
    judged = [str(Status.OK), *(str(status) for status in FAILED_STATUSES)]
    for row in graded.filter(~pl.col("status").is_in([*judged, *wanted])).iter_rows(named=True):
        quarantine.add(
            f"not graded: {row['status']}", row, f"answer {row['answer']!r}", place=row["sample_id"]
        )
