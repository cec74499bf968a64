"""Grading a table: verdicts in the rows, counts by status, nothing lost."""

import polars as pl
import pytest

from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, read_table
from tests.curation.stages import context, sample, write_samples

RESPONSES = {
    "ok": r"So \boxed{2}.",
    "wrong": r"So \boxed{3}.",
    "no_answer": "I cannot say.",
    "parse_error": r"So \boxed{}.",
    "timeout": r"So \boxed{9^{9^{9^{9^9}}}}.",
}


@pytest.fixture
def table(tmp_path):
    rows = [sample(i, response=text) for i, text in enumerate(RESPONSES.values())]
    return write_samples(tmp_path / "in", rows)


def grade(folder, table, **config):
    config = GradeConfig(name="graded", table="in", deadline_s=2, **config)
    result = Grade(config).run(context(folder, {"in": table}))
    return result, read_table(folder, Kind.SAMPLES, filled=("status",))


def test_every_row_gets_its_verdict(tmp_path, table):
    result, rows = grade(tmp_path / "out", table)
    assert rows["status"].to_list() == list(RESPONSES)
    assert rows["score"].to_list() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert rows["extracted"].to_list()[:2] == ["2", "3"]
    assert all(result.counts[f"status_{status}"] == 1 for status in RESPONSES)
    assert result.counts["status_crash"] == result.counts["not_kept"] == 0
    assert not (tmp_path / "out" / "quarantine.parquet").exists()


@pytest.mark.parametrize(("keep", "kept"), [("correct", ["ok"]), ("wrong", ["wrong", "no_answer"])])
def test_rows_that_could_not_be_checked_count_as_neither_right_nor_wrong(
    tmp_path, table, keep, kept
):
    result, rows = grade(tmp_path / "out", table, keep=keep)
    assert rows["status"].to_list() == kept
    assert result.num_rows == len(kept)
    assert result.counts["not_kept"] == len(RESPONSES) - len(kept)
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert aside["reason"].to_list() == ["not graded: parse_error", "not graded: timeout"]


def test_refusals(tmp_path, table):
    only_wrong = write_samples(tmp_path / "wrong", [sample(response="7")])
    with pytest.raises(DataError, match="no row of 'in' is 'correct'"):
        grade(tmp_path / "out", only_wrong, keep="correct")
    with pytest.raises(ConfigError, match="Did you mean 'numeric'"):
        grade(tmp_path / "out", table, reward="numerik")


def test_other_rewards(tmp_path, table):
    _, rows = grade(tmp_path / "out", table, reward="numeric")
    assert rows["status"].to_list()[:3] == [Status.OK, Status.WRONG, Status.NO_ANSWER]
