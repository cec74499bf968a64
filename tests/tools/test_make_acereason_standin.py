"""The stand-in for AceReason, and the example that is made for it, at a hundredth of its size."""

import json
import sys
from pathlib import Path

import make_acereason_standin
import pytest

from megatron_reason.config.load import load_config
from megatron_reason.pipeline.execute import execute
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.schema.tables import Kind, read_table

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "curation_acereason.yaml"


@pytest.fixture
def source(tmp_path, monkeypatch):
    path = tmp_path / "standin" / "acereason.jsonl"
    arguments = ["make", str(path), "--problems", "200", "--traces", "10"]
    monkeypatch.setattr(sys, "argv", arguments)
    make_acereason_standin.main()
    return path


def test_has_the_columns_of_the_real_set(source):
    rows = [json.loads(line) for line in source.open(encoding="utf-8")]
    assert len(rows) == 200
    assert set(rows[0]) == {"uuid", "query", "gt", "DeepSeek-R1_Response_List"}
    assert {len(row["DeepSeek-R1_Response_List"]) for row in rows} == {10}


def test_the_example_runs_from_rows_to_training_tables(source, tmp_path, smollm2):
    fewer = {3: "count=24", 5: "count=8", 6: "count=8", 7: "count=8", 8: "max_problems=4"}
    overrides = [
        f"run.dir={tmp_path}", f"curate.0.source={source}", f"model.path={smollm2}",
        "launch.processes=1", "engine.name=transformers", "curate.8.sampling.max_tokens=24",
        *(f"curate.{index}.{change}" for index, change in fewer.items()),
    ]  # fmt: skip
    folder = execute(load_config(EXAMPLE, overrides, RunConfig))
    graded = read_table(folder / "20-graded", Kind.SAMPLES, filled=("status",))
    counts = dict(graded["status"].value_counts().iter_rows())
    assert set(counts) == {"ok", "wrong", "no_answer"}
    assert 0.7 < counts["ok"] / len(graded) < 0.8
    sampled = read_table(folder / "40-sampled", Kind.SAMPLES, filled=("role",))
    assert len(sampled) == 24
    assert set(sampled["status"]) == {"ok"}
    (table,) = folder.glob("*-oxa_full_table")
    roles = read_table(table, Kind.TOKENS)["role"]
    assert set(roles) == {"demo", "negative"}
    (suppressed,) = folder.glob("*-suppress")
    assert len(read_table(suppressed, Kind.SAMPLES)) == (roles == "negative").sum()
