import json
import math

import pytest

from megatron_reason.errors import DataError
from megatron_reason.tracking.jsonl import JsonlSink, read_metrics, truncate_after


def test_what_is_logged_is_on_disk_at_once_and_reads_back(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log(1, {"train/loss": 2.5, "train/lr": 1e-7})
    sink.log(2, {"train/loss": 2.25})
    first, second = read_metrics(path)  # before the sink is closed
    sink.close()
    assert first["step"] == 1
    assert (first["train/loss"], first["train/lr"]) == (2.5, 1e-7)
    assert (second["step"], second["train/loss"]) == (2, 2.25)
    assert second["time"] >= first["time"] > 1.7e9


def test_numbers_that_json_lacks_survive_in_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.log(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    sink.close()

    def refuse(word):
        pytest.fail(f"{word} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (row,) = read_metrics(path)
    assert math.isnan(row["a"])
    assert (row["b"], row["c"]) == (math.inf, -math.inf)


def test_resuming_drops_later_steps_and_the_line_that_was_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in (1, 2, 3, 4):
        sink.log(step, {"x": step / 3})
    sink.close()
    with path.open("ab") as stream:
        stream.write(b'{"step": 5, "x": \xc3')
    resumed = JsonlSink(path, resume_after=2)
    resumed.log(3, {"x": 30.0})
    resumed.close()
    assert [(row["step"], row["x"]) for row in read_metrics(path)] == [
        (1, 1 / 3), (2, 2 / 3), (3, 30.0),
    ]  # fmt: skip


def test_only_the_last_line_may_be_unfinished(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "x": 1}\n{"step": 2, "x"')
    assert [row["step"] for row in read_metrics(path)] == [1]
    for damaged in ('{"step": 1\n{"step": 2}\n', "[1]\n", '{"x": 1}\n', '{"step": "one"}\n'):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"metrics\.jsonl:1"):
            read_metrics(path)


def test_truncating_a_missing_file_makes_an_empty_one(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    truncate_after(tmp_path / "metrics.jsonl", 3)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
