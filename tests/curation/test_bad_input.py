"""Bad input of every kind: refused, or set aside with a count and the exact place."""

import json

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_reason.curation.filter import Filter, FilterConfig
from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.curation.ingest import Ingest, IngestConfig
from megatron_reason.curation.select import Select, SelectConfig
from megatron_reason.errors import DataError, RewardError, SchemaError
from megatron_reason.schema.tables import Kind, TableReader
from tests.curation.stages import context, sample, write_samples

GOOD = {"id": "good", "problem": "1+1?", "answer": "2", "solution": "It is 2."}


def line(**changes):
    return json.dumps(GOOD | changes).encode()


# What stands in line 2, after a good line 1, and why it is set aside.
LINES = {
    "duplicate id": line(problem="2+2?"),
    "duplicate response": line(id="b"),
    "contradictory answer": line(id="b", answer="3"),
    "empty problem": line(id="b", problem=" "),
    "empty response": line(id="b", problem="2+2?", solution=" \n"),
    "empty answer": line(id="b", problem="2+2?", answer=""),
    "missing columns": b'{"id": "b", "problem": "2+2?"}',
    "not UTF-8": line(id="b", problem="2+2?").replace(b"2+2", b"2\xff2"),
    "text is not Unicode": b'{"problem": "2+2?", "answer": "4", "solution": "\\ud800"}',
    "not a JSON object": line(id="b", problem="2+2?")[:20],
    "longer than max_characters": line(id="b", problem="2+2?", solution="4" * 2000),
}


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ({"question": "1+1?", "answer": "2 #### 2"}, {"question": "2+2?", "answer": "work #### "}),
        (
            {"prompt": "1+1?", "reward_model": {"ground_truth": "2"}},
            {"prompt": "2+2?", "reward_model": {"ground_truth": ""}},
        ),
    ],
)
def test_an_empty_answer_is_set_aside_in_every_shape(tmp_path, good, bad):
    source = tmp_path / "some.jsonl"
    source.write_text("\n".join(map(json.dumps, [good, bad])))
    result = Ingest(IngestConfig(name="in", source=str(source))).run(context(tmp_path / "out"))
    assert result.counts["empty answer"] == result.counts["problems_train"] == 1


def test_a_huge_answer_is_set_aside(tmp_path):
    source = tmp_path / "some.jsonl"
    source.write_bytes(line() + b"\n" + line(id="b", problem="2+2?", answer="4" * 2000))
    config = IngestConfig(name="in", source=str(source), max_characters=1000)
    assert Ingest(config).run(context(tmp_path / "out")).counts["longer than max_characters"] == 1


def test_zero_is_an_id(tmp_path):
    source = tmp_path / "some.jsonl"
    source.write_bytes(line(id=0) + b"\n" + line(id=0, problem="2+2?"))
    result = Ingest(IngestConfig(name="in", source=str(source))).run(context(tmp_path / "out"))
    assert result.counts["duplicate id"] == 1


@pytest.mark.parametrize("reason", LINES)
def test_a_bad_line_is_set_aside_with_its_place(tmp_path, reason):
    source = tmp_path / "some.jsonl"
    source.write_bytes(line() + b"\n" + LINES[reason] + b"\n" + line(id="c", problem="5+5?"))
    config = IngestConfig(name="in", source=str(source), max_characters=1000)
    result = Ingest(config).run(context(tmp_path / "out"))
    assert result.counts[reason] == 1
    assert result.num_rows == 2
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet").to_dicts()
    assert [(row["reason"], row["place"]) for row in aside] == [(reason, "some.jsonl:2")]


def test_rows_without_ids_are_told_apart_by_their_content(tmp_path):
    source = tmp_path / "some.jsonl"
    rows = [{"problem": "1+1?", "answer": "2", "solution": s} for s in ("It is 2.", "2.", "2.")]
    source.write_text("\n".join(map(json.dumps, rows)))
    result = Ingest(IngestConfig(name="in", source=str(source))).run(context(tmp_path / "out"))
    assert (result.num_rows, result.counts["duplicate response"]) == (2, 1)


def test_a_parquet_cell_that_is_not_utf8_costs_its_row_only(tmp_path):
    texts = [b"It is 2.", b"It is \xff.", b"It is 4."]
    turns = [[{"role": "user", "content": text}] for text in (b"1+1?", b"2+2?", b"\xfe?")]
    turn = pa.struct([("role", pa.string()), ("content", pa.binary())])
    table = pa.table(
        {
            "prompt": _unchecked(pa.array(turns, pa.list_(turn))),
            "completion": _unchecked(pa.array(texts, pa.binary())),
        }
    )
    pq.write_table(table, tmp_path / "some.parquet")
    config = IngestConfig(name="in", source=str(tmp_path / "some.parquet"))
    result = Ingest(config).run(context(tmp_path / "out"))
    assert (result.num_rows, result.counts["not UTF-8"]) == (1, 2)
    aside = pl.read_parquet(tmp_path / "out" / "quarantine.parquet")
    assert aside["place"].to_list() == ["some.parquet row 1", "some.parquet row 2"]
    assert [detail.split(":")[0] for detail in aside["detail"]] == [
        "column 'completion'", "column 'prompt'",
    ]  # fmt: skip


def _unchecked(array):
    """Bytes passed off as text, as writers do that check nothing."""
    if pa.types.is_binary(array.type):
        return pa.Array.from_buffers(pa.string(), len(array), array.buffers())
    turns = array.values
    parts = [turns.field("role"), _unchecked(turns.field("content"))]
    turns = pa.StructArray.from_arrays(parts, ["role", "content"])
    return pa.ListArray.from_arrays(array.offsets, turns)


@pytest.mark.parametrize("keep_bytes", [0, 100, 0.5, 0.99])
def test_a_parquet_file_cut_short_is_refused(tmp_path, keep_bytes):
    rows = [sample(number, response=f"{number} " * 500) for number in range(50)]
    table = write_samples(tmp_path / "in", rows)
    path = table / "samples.parquet"
    content = path.read_bytes()
    kept = content[: keep_bytes if keep_bytes > 1 else int(keep_bytes * len(content))]
    path.write_bytes(kept)
    with pytest.raises(SchemaError, match=r"samples\.parquet\n.*cut short or damaged"):
        Filter(FilterConfig(name="f", table="in")).run(context(tmp_path / "out", {"in": table}))
    ingest = Ingest(IngestConfig(name="in", source=str(path)))
    with pytest.raises(DataError, match=r"cut short or damaged"):
        ingest.run(context(tmp_path / "ingested"))


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_an_arrow_file_cut_short_is_refused(tmp_path, kept):
    rows = [{"problem": f"{n}?", "answer": f"{n}"} for n in range(500)]
    path = tmp_path / "data.arrow"
    pl.DataFrame(rows).write_ipc_stream(path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    ingest = Ingest(IngestConfig(name="in", source=str(path)))
    with pytest.raises(DataError, match=r"(?s)as Arrow beyond row 0.*cut short or damaged"):
        ingest.run(context(tmp_path / "ingested"))


def test_an_arrow_stream_cut_between_two_batches_is_refused(tmp_path):
    path = tmp_path / "data.arrow"
    schema = pa.schema([("problem", pa.string()), ("answer", pa.string())])
    ends = []
    with path.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for number in range(3):
            rows = {"problem": [f"{number}?"], "answer": [f"{number}"]}
            stream.write_batch(pa.record_batch(rows, schema=schema))
            ends.append(file.tell())
    path.write_bytes(path.read_bytes()[: ends[1]])
    ingest = Ingest(IngestConfig(name="in", source=str(path)))
    with pytest.raises(DataError, match=r"beyond row 2: the end mark .* is missing"):
        ingest.run(context(tmp_path / "ingested"))


def test_both_kinds_of_arrow_files_are_read(tmp_path):
    rows = pl.DataFrame([{"problem": f"{n}?", "answer": f"{n}"} for n in range(500)])
    rows.write_ipc_stream(tmp_path / "stream.arrow")
    rows.write_ipc(tmp_path / "file.arrow")
    for kind in ("stream", "file"):
        ingest = Ingest(IngestConfig(name="in", source=str(tmp_path / f"{kind}.arrow")))
        result = ingest.run(context(tmp_path / kind))
        assert result.counts["problems_train"] == len(rows)


def test_a_damaged_page_is_refused_with_its_row_group(tmp_path):
    rows = [sample(number, response=f"{number} " * 500) for number in range(50)]
    table = write_samples(tmp_path / "in", rows)
    path = table / "samples.parquet"
    content = bytearray(path.read_bytes())
    content[8:4000] = bytes(3992)
    path.write_bytes(content)
    with pytest.raises(SchemaError, match="row group that begins at row 0"):
        list(TableReader(table, Kind.SAMPLES).batches())


def test_answers_that_are_absent_stop_the_grading(tmp_path):
    rows = [sample(number, response="\\boxed{2}", answer="") for number in range(200)]
    table = write_samples(tmp_path / "in", rows)
    with pytest.raises(RewardError, match="cannot be read"):
        Grade(GradeConfig(name="g", table="in")).run(context(tmp_path / "out", {"in": table}))


@pytest.mark.parametrize(
    ("scorers", "wanted", "message"),
    [
        (("a:prompt:1", "b:prompt:1"), None, "cannot be compared, by a:prompt:1, b:prompt:1"),
        (("a:prompt:1", "a:prompt:2"), None, "cannot be compared"),
        (("a:prompt:1", None), None, "cannot be compared, by .*does not name.*, a:prompt:1"),
        ((None, None), "a:prompt:1", "by .*does not name.*, not a:prompt:1"),
        (("a:prompt:1", "a:prompt:1"), "a:prompt:2", "are by a:prompt:1, not a:prompt:2"),
    ],
)
def test_scores_of_another_model_or_template_are_refused(tmp_path, scorers, wanted, message):
    rows = [sample(n, ppl=2.0, num_tokens=5, scorer=name) for n, name in enumerate(scorers)]
    table = write_samples(tmp_path / "in", rows)
    config = {
        "name": "s", "table": "in", "role": "demo", "count": 1, "where": "any",
        "rule": {"name": "lowest"}, "scorer": wanted,
    }  # fmt: skip
    stage = Select(SelectConfig.model_validate(config))
    with pytest.raises(DataError, match=message):
        stage.run(context(tmp_path / "out", {"in": table}))
