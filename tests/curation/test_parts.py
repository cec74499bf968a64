"""Output in parts: what a killed stage keeps, and when it begins anew."""

from dataclasses import replace

import polars as pl
import pytest

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation._parts import PARTS, PartedOutput
from megatron_reason.curation.grade import GradeConfig
from megatron_reason.schema.tables import Kind, TableReader, read_table
from tests.curation.stages import context, sample, write_samples


class KilledError(Exception):
    pass


def work(source, output, *, stop_at=None, shard=None, config=None, made=None, **options):
    """Mark every row with the number of the run that made it; returns the parts worked on."""
    config = config or GradeConfig(name="graded", table="in", shard=shard)
    setting = replace(context(output), **(made or {}))
    parts = PartedOutput(config, TableReader(source, Kind.SAMPLES), setting, **options)
    done = []
    for part in parts.missing:
        with parts.open(part) as opened:
            rows = parts.read(part)
            opened.counts["rows"] += len(rows)
            opened.quarantine.add("seen", rows["sample_id"][0], place=f"row {part.start}")
            if part.start == stop_at:
                raise KilledError
            opened.write(rows.with_columns(role=pl.lit("demo")))
        done.append(part.start)
    return done, *parts.finish()


@pytest.fixture
def source(tmp_path):
    return write_samples(tmp_path / "in", [sample(number) for number in range(10)])


def test_goes_on_at_the_first_missing_part(tmp_path, source):
    output = tmp_path / "out"
    with pytest.raises(KilledError):
        work(source, output, stop_at=6, rows_per_part=3)
    assert not (output / "samples.parquet").exists()
    done, num_rows, counts = work(source, output, rows_per_part=3)
    assert done == [6, 9]
    assert num_rows == 10
    assert counts == {"rows": 10, "seen": 4}
    ids = read_table(source, Kind.SAMPLES)["sample_id"]
    assert read_table(output, Kind.SAMPLES, filled=("role",))["sample_id"].equals(ids)
    aside = pl.read_parquet(output / "quarantine.parquet")
    assert aside["place"].to_list() == ["row 0", "row 3", "row 6", "row 9"]
    assert not (output / PARTS).exists()


@pytest.mark.parametrize("what", ["settings", "rows", "shard", "model", "template", "seed"])
def test_begins_anew_when_anything_else_is_asked_for(tmp_path, source, what):
    output = tmp_path / "out"
    with pytest.raises(KilledError):
        work(source, output, stop_at=6, rows_per_part=3)
    options = {"rows_per_part": 3}
    match what:
        case "settings":
            options["config"] = GradeConfig(name="graded", table="in", keep="correct")
        case "rows":
            write_samples(source, [sample(number) for number in range(1, 11)])
        case "shard":
            options["shard"] = "0/2"
        case "model":
            options["made"] = {"model": ModelConfig(path="another")}
        case "template":
            options["made"] = {"template": TemplateConfig(suffix="!")}
        case "seed":
            options["made"] = {"seed": 1}
    done, num_rows, _ = work(source, output, **options)
    assert done == ([0, 3] if what == "shard" else [0, 3, 6, 9])
    assert num_rows == (5 if what == "shard" else 10)


def test_a_new_name_is_no_new_work(tmp_path, source):
    with pytest.raises(KilledError):
        work(source, tmp_path, stop_at=3, rows_per_part=3)
    renamed = GradeConfig(name="other", table="in")
    assert work(source, tmp_path, config=renamed, rows_per_part=3)[0] == [3, 6, 9]


def test_an_empty_table_and_empty_shards(tmp_path):
    source = write_samples(tmp_path / "none", [])
    assert work(source, tmp_path / "out") == ([], 0, {})
    one = write_samples(tmp_path / "one", [sample(0)])
    assert [work(one, tmp_path / f"{i}", shard=f"{i}/3")[1] for i in range(3)] == [0, 0, 1]
