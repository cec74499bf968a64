"""Shards and their union: the same table as without shards, and what is refused."""

import re
import shutil

import polars as pl
import pytest

from megatron_reason.curation._rewriting_counts import write_counts
from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.curation.merge import Merge, MergeConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.files import read_json
from megatron_reason.schema.tables import SCHEMAS, Kind, Quarantine, read_table, write_table
from tests.curation.stages import context, sample, write_samples

NUM_SHARDS = 3


def grade(folder, table, **config):
    config = GradeConfig(name="graded", table="in", reward="numeric", workers=1, **config)
    return Grade(config).run(context(folder, {"in": table}))


def merge(output, folders):
    inputs = {f"t{number}": folder for number, folder in enumerate(folders)}
    config = MergeConfig(name="merged", tables=tuple({"table": name} for name in inputs))
    return Merge(config).run(context(output, inputs))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = [sample(number, response=f"It is {number % 3}.") for number in range(10)]
    return write_samples(tmp_path_factory.mktemp("in"), rows)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, table):
    folders = [tmp_path_factory.mktemp(f"shard{index}") for index in range(NUM_SHARDS)]
    for index, folder in enumerate(folders):
        grade(folder, table, shard=f"{index}/{NUM_SHARDS}")
    return folders


def test_shards_make_up_the_whole_in_any_order(tmp_path, table, shards):
    grade(tmp_path / "whole", table)
    result = merge(tmp_path / "merged", [shards[2], shards[0], shards[1]])
    whole = read_table(tmp_path / "whole", Kind.SAMPLES)
    assert read_table(tmp_path / "merged", Kind.SAMPLES).equals(whole)
    assert result.num_rows == 10
    assert sorted(result.counts.values()) == [3, 3, 4]


def test_refused_shards(tmp_path, table, shards):
    with pytest.raises(DataError, match=r"'t0' and 't3' are the same shard, 0/3, rows 0 to 3"):
        merge(tmp_path, [*shards, shards[0]])
    with pytest.raises(DataError, match="shards 1/3 are missing"):
        merge(tmp_path, [shards[0], shards[2]])
    with pytest.raises(DataError, match="is a whole table"):
        merge(tmp_path, [*shards, table])
    grade(tmp_path / "other", table, shard="1/3", keep="correct")
    with pytest.raises(DataError, match="not shards of one whole"):
        merge(tmp_path / "out", [shards[0], tmp_path / "other", shards[2]])
    with pytest.raises(ConfigError, match=re.escape("first is 0/3, the last 2/3")):
        grade(tmp_path / "none", table, shard="3/3")


def test_whole_tables_are_joined_unless_they_share_a_sample(tmp_path, table):
    more = write_samples(tmp_path / "more", [sample(number) for number in range(20, 23)])
    with Quarantine(more) as quarantine:
        quarantine.add("bad", "row")
    assert merge(tmp_path / "both", [table, more]).num_rows == 13
    assert (tmp_path / "both" / "quarantine.parquet").is_file()
    again = write_samples(tmp_path / "again", [sample(30), sample(21)])
    with pytest.raises(DataError, match=r"1 samples occur twice.*row 1 of 't1' and row 1 of 't2'"):
        merge(tmp_path / "twice", [table, more, again])


def test_counts_of_rewritten_shards_are_added_up(tmp_path, table, shards):
    rewritten = [shutil.copytree(folder, tmp_path / folder.name) for folder in shards]
    for number, folder in enumerate(rewritten):
        write_counts(folder, "model", {"self": number, "guided": 1})
    merge(tmp_path / "merged", rewritten)
    found = read_json(tmp_path / "merged" / "rewriting.json")
    assert found == {"model": "model", "counts": {"self": 3, "guided": 3}}
    (rewritten[0] / "rewriting.json").unlink()
    merge(tmp_path / "some", rewritten)
    assert not (tmp_path / "some" / "rewriting.json").exists()


def test_later_rows_with_another_answer_are_set_aside(tmp_path):
    first = [sample(0, answer="2"), sample(1, answer="a  b")]
    second = [sample(0, answer="3"), sample(10, problem=1, answer="a b"), sample(2, answer="2")]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, rows in zip(folders, (first, second), strict=True):
        write_samples(folder, rows)
        problems = read_table(folder, Kind.SAMPLES).select(SCHEMAS[Kind.PROBLEMS].names)
        write_table(folder, Kind.PROBLEMS, problems)
    with Quarantine(folders[0]) as quarantine:
        quarantine.add("bad", "row")
    result = merge(tmp_path / "merged", folders)
    merged = read_table(tmp_path / "merged", Kind.SAMPLES)
    assert merged["sample_id"].to_list() == [row.sample_id for row in (*first, *second[1:])]
    problems = read_table(tmp_path / "merged", Kind.PROBLEMS)
    assert set(problems["problem_id"]) == set(merged["problem_id"])
    assert result.counts["contradictory answer"] == 2
    aside = pl.read_parquet(tmp_path / "merged" / "quarantine.parquet")
    assert aside["place"].to_list() == [
        "", f"t1 problem {second[0].problem_id}", f"t1 sample {second[0].sample_id}",
    ]  # fmt: skip
