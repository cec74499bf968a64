import polars as pl

from megatron_reason.evaluation.disagreements import find_disagreements
from megatron_reason.schema.records import Status
from megatron_reason.schema.tables import Kind, read_table
from tests.evaluation.stored import write_evaluation


def test_answers_that_one_grader_alone_accepts_are_listed(tmp_path):
    folder = write_evaluation(tmp_path, [[True, True, True], [False, False, True]])
    rows = read_table(folder, Kind.GENERATIONS)
    assert find_disagreements(rows, "math_verify").rows.is_empty()
    # Other forms of the same number, which plain comparison does not see, and a grader that timed
    # out.
    rows = rows.with_columns(
        response=pl.when(pl.col("answer") == "0")
        .then(pl.lit(r"\boxed{7 - 7}"))
        .otherwise("response"),
        status=pl.when((pl.col("answer") == "1") & (pl.col("sample_index") == 2))
        .then(pl.lit(str(Status.TIMEOUT)))
        .otherwise("status"),
    )
    found = find_disagreements(rows, "math_verify")
    assert (found.only_grader, found.only_plain, found.num_answers) == (3, 1, 6)
    assert found.rows["num_samples"].to_list() == [3, 1]
    first, second = found.rows.to_dicts()
    assert (first["plain_extracted"], first["plain_status"]) == ("7 - 7", "wrong")
    assert (second["status"], second["plain_status"]) == ("timeout", "ok")
    assert "disagree on 4 of 6 answers" in found.in_short
