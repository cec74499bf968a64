"""Answers on which the grader and the deterministic one disagree: where to look first.

`math_verify` accepts other forms of an answer, which strings cannot; where `plain` alone says yes,
one of the two is mistaken. Not here: the graders (`rewards`).
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from megatron_reason.files import write_json
from megatron_reason.rewards.plain import grade_plain
from megatron_reason.schema.records import Status

DISAGREEMENTS = "disagreements.json"
_MOST_LISTED = 200


@dataclass(frozen=True)
class Disagreements:
    """Comparison of the stored verdicts with those of `plain`."""

    reward: str
    """The grader of the stored verdicts."""
    num_answers: int
    """Answers compared."""
    only_grader: int
    """Right for the grader alone: mostly other forms of the gold answer."""
    only_plain: int
    """Right for `plain` alone: mostly the grader's mistakes, time-outs or stricter format."""
    rows: pl.DataFrame
    """Columns problem_id, sample_index (the first such), answer, status, extracted, plain_status,
    plain_extracted, num_samples; a row per problem and pair of answers, most frequent first."""

    @property
    def in_short(self) -> str:
        """One sentence."""
        return (
            f"{self.reward} and plain disagree on {self.only_grader + self.only_plain} of "
            f"{self.num_answers} answers: {self.only_grader} right for {self.reward} alone, "
            f"{self.only_plain} for plain alone"
        )


def find_disagreements(generations: pl.DataFrame, reward: str) -> Disagreements:
    """Grade the stored texts with `plain` and compare.

    Args:
        generations: rows of `Kind.GENERATIONS`.
        reward: grader of the stored verdicts, for the record.
    """
    plain = [
        grade_plain(response, answer)
        for response, answer in generations.select("response", "answer").iter_rows()
    ]
    compared = generations.select(
        "problem_id", "sample_index", "answer", "status", "extracted"
    ).with_columns(
        plain_status=pl.Series([str(one.status) for one in plain], dtype=pl.String),
        plain_extracted=pl.Series([one.extracted for one in plain], dtype=pl.String),
    )
    by_grader, by_plain = pl.col("status") == Status.OK, pl.col("plain_status") == Status.OK
    differing = compared.filter(by_grader != by_plain)
    rows = (
        differing.group_by(
            "problem_id", "answer", "status", "extracted", "plain_status", "plain_extracted",
            maintain_order=True,
        )
        .agg(pl.col("sample_index").min(), num_samples=pl.len())
        .sort("num_samples", "problem_id", "sample_index", descending=[True, False, False])
        .select(
            "problem_id", "sample_index", "answer", "status", "extracted", "plain_status",
            "plain_extracted", "num_samples",
        )
    )  # fmt: skip
    return Disagreements(
        reward=reward,
        num_answers=len(generations),
        only_grader=len(differing.filter(by_grader)),
        only_plain=len(differing.filter(by_plain)),
        rows=rows,
    )


def write_disagreements(folder: Path, generations: pl.DataFrame, reward: str) -> Disagreements:
    """Write `disagreements.json` into `folder`, the most frequent 200 of them in full."""
    found = find_disagreements(generations, reward)
    write_json(
        folder / DISAGREEMENTS,
        {
            "reward": found.reward,
            "num_answers": found.num_answers,
            "only_grader": found.only_grader,
            "only_plain": found.only_plain,
            "num_distinct": len(found.rows),
            "rows": found.rows.head(_MOST_LISTED).to_dicts(),
        },
    )
    return found
