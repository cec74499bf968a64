from contextlib import suppress
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from megatron_reason.errors import SchemaError
from megatron_reason.schema.records import Finish, Message, Origin, Problem, Sample
from megatron_reason.schema.tables import Kind, Quarantine, read_table, write_table

PROBLEM = Problem((Message("user", "1+1?"),), "2", "test")
SAMPLE = Sample.of(PROBLEM, "2", finish=Finish.GIVEN, origin=Origin.TEACHER, generator="g")


def test_records_come_back_and_the_schema_names_itself(tmp_path: Path) -> None:
    path = write_table(tmp_path, Kind.PROBLEMS, [PROBLEM])
    frame = read_table(tmp_path, Kind.PROBLEMS)
    assert frame["problem_id"].to_list() == [PROBLEM.problem_id]
    assert frame["messages"].to_list() == [[{"role": "user", "content": "1+1?"}]]
    metadata = pq.read_schema(path).metadata
    assert (metadata[b"kind"], metadata[b"version"]) == (b"problems", b"1")
    assert read_table(path, Kind.PROBLEMS).equals(frame)


def test_what_an_earlier_stage_must_have_filled_is_asked_for(tmp_path: Path) -> None:
    write_table(tmp_path, Kind.SAMPLES, [SAMPLE])
    with pytest.raises(SchemaError, match=r"1 of 1 rows have no 'ppl'.\n.*'score'"):
        read_table(tmp_path, Kind.SAMPLES, filled=["ppl"])


def test_wrong_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="no table of samples"):
        read_table(tmp_path, Kind.SAMPLES)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "samples.parquet")
    with pytest.raises(SchemaError, match="this file has a"):
        read_table(tmp_path, Kind.SAMPLES)
    with pytest.raises(SchemaError, match="columns extra are not part"):
        write_table(tmp_path, Kind.PROBLEMS, pl.DataFrame({"extra": [1]}))
    with pytest.raises(SchemaError, match="do not fit"):
        write_table(tmp_path, Kind.SAMPLES, pl.DataFrame({"ppl": ["high"]}))


def test_quarantined_rows_are_counted_and_kept(tmp_path: Path) -> None:
    with Quarantine(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with Quarantine(tmp_path) as quarantine:
        for reason in ("empty", "empty", "too long"):
            quarantine.add(reason, SAMPLE, "detail", place="file:3")
    assert quarantine.counts() == {"empty": 2, "too long": 1}
    found = pl.read_parquet(tmp_path / "quarantine.parquet")
    assert found["place"].to_list() == ["file:3"] * 3
    with suppress(RuntimeError), Quarantine(tmp_path / "failed") as quarantine:
        quarantine.add("empty", SAMPLE)
        raise RuntimeError
    # What was refused before an error helps to understand it.
    assert len(pl.read_parquet(tmp_path / "failed" / "quarantine.parquet")) == 1
