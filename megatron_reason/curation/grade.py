"""Stage `grade`: gives every response of a table its verdict.

Not here: how an answer is judged (`rewards`), and what a verdict is good for (`select.py`).
"""

from collections import Counter
from typing import Literal

import polars as pl
from pydantic import Field

from megatron_reason.curation.base import Stage, StageConfig, StageContext, StageResult, stage
from megatron_reason.errors import DataError
from megatron_reason.logs import get_logger, progress
from megatron_reason.rewards.base import FAILED_STATUSES
from megatron_reason.rewards.pool import AnswerPool
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, Quarantine, read_table, write_table

_LOGGER = get_logger(__name__)
KEPT_STATUSES: dict[str, tuple[Status, ...]] = {
    "all": tuple(Status),
    "correct": (Status.OK,),
    "wrong": FAILED_STATUSES,
}


class GradeConfig(StageConfig):
    """Configuration of the stage `grade`."""

    stage: Literal["grade"] = "grade"
    """Kind of stage."""
    table: str
    """Stage whose samples are graded."""
    reward: str = "math_verify"
    """Reward that grades them, as `mreason list rewards` prints it."""
    keep: Literal["all", "correct", "wrong"] = "all"
    """Rows passed on; `wrong` means known to be wrong, not that checking failed."""
    workers: int = Field(default=2, ge=1)
    """Grading processes."""
    deadline_s: float = Field(default=5.0, gt=0)
    """Seconds one answer may take."""

    def inputs(self) -> tuple[str, ...]:
        """The graded table."""
        return (self.table,)


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
        samples = read_table(context.inputs[config.table], Kind.SAMPLES)
        pairs = list(zip(samples["answer"].to_list(), samples["response"].to_list(), strict=True))
        with (
            AnswerPool(config.workers, config.deadline_s, reward=config.reward) as pool,
            progress("grade", len(pairs), "answers") as bar,
        ):
            verdicts = pool.grade_many(pairs, on_done=bar.advance)
        graded = samples.with_columns(
            pl.Series("status", [str(verdict.status) for verdict in verdicts], pl.String),
            pl.Series("score", [verdict.score for verdict in verdicts], pl.Float64),
            pl.Series("extracted", [verdict.extracted for verdict in verdicts], pl.String),
        )
        kept = graded.filter(pl.col("status").is_in([str(s) for s in KEPT_STATUSES[config.keep]]))
        by_status = Counter(verdict.status for verdict in verdicts)
        quarantine = _set_aside_unchecked(graded, kept)
        quarantine.write(context.output)
        counts = {f"status_{status}": by_status[status] for status in Status}
        counts["not_kept"] = len(graded) - len(kept)
        _LOGGER.info("%s: %d rows, kept %d; %s", config.table, len(graded), len(kept), counts)
        if kept.is_empty():
            raise DataError(
                f"stage '{config.name}'",
                f"no row of '{config.table}' is '{config.keep}'; verdicts: {counts}.",
                "Look at the responses, or use another reward.",
            )
        write_table(context.output, Kind.SAMPLES, kept)
        return StageResult(len(kept), counts)


def _set_aside_unchecked(graded: pl.DataFrame, kept: pl.DataFrame) -> Quarantine:
    """Rows that are not passed on because checking them failed, by status."""
    judged = [str(Status.OK), *(str(status) for status in FAILED_STATUSES)]
    unchecked = graded.filter(~pl.col("status").is_in(judged)).join(
        kept, on="sample_id", how="anti"
    )
    quarantine = Quarantine.empty()
    for row in unchecked.to_dicts():
        quarantine.add(f"not graded: {row['status']}", row, f"answer {row['answer']!r}")
    return quarantine
