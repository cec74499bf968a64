"""Memory does not grow with the table: every stage on 240 MB of text with batches of 2 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NUM_ROWS = 6_000
CHARACTERS = 40_000

SCRIPT = f"""
import json, resource, sys
from pathlib import Path
import polars as pl
from megatron_reason.curation import ingest
from megatron_reason.schema import tables
tables.BATCH_BYTES = ingest.BATCH_BYTES = 2 << 20
from megatron_reason.curation.filter import Filter, FilterConfig
from megatron_reason.curation.grade import Grade, GradeConfig
from megatron_reason.curation.ingest import Ingest, IngestConfig
from megatron_reason.curation.merge import Merge, MergeConfig
from megatron_reason.curation.select import Select, SelectConfig
from megatron_reason.schema.tables import Kind, TableReader, TableWriter
from tests.curation.stages import context

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

folder = Path(sys.argv[1])
inputs = {{name: folder / name for name in ("teacher", "scored", "graded", "filtered")}}
before = peak_mb()
peaks = {{}}

def run(stage, name):
    result = stage.run(context(folder / name, inputs))
    peaks[name] = peak_mb() - before
    return result.num_rows

rows = run(Ingest(IngestConfig(name="teacher", source=str(folder / "source.jsonl"))), "teacher")
assert rows == {NUM_ROWS}, rows
assert run(Grade(GradeConfig(name="graded", table="teacher", workers=1)), "graded") == rows
assert run(Filter(FilterConfig(name="filtered", table="graded")), "filtered") == rows
with TableWriter(folder / "scored", Kind.SAMPLES) as writer:
    for batch in TableReader(folder / "filtered", Kind.SAMPLES).batches():
        writer.append(batch.with_columns(ppl=pl.lit(2.0), num_tokens=pl.lit(9), scorer=pl.lit("m")))
select = SelectConfig.model_validate(
    dict(name="selected", table="scored", role="demo", count=rows // 2, where="correct",
         rule=dict(name="lowest"))
)
assert run(Select(select), "selected") == rows // 2
merge = MergeConfig.model_validate(dict(name="merged", tables=[dict(table="scored")]))
assert run(Merge(merge), "merged") == rows
print(json.dumps(peaks))
"""


def test_no_stage_holds_its_table(tmp_path, record_property):
    filler = "So we go on with the next step of this proof. " * (CHARACTERS // 46)
    with (tmp_path / "source.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(NUM_ROWS):
            row = {
                "id": str(number), "problem": f"What is {number}?", "answer": str(number),
                "solution": f"<think>{filler}{number}</think> It is \\boxed{{{number}}}.",
            }  # fmt: skip
            lines.write(json.dumps(row) + "\n")
    assert (tmp_path / "source.jsonl").stat().st_size > 238e6
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"POLARS_MAX_THREADS": "2"},
    )
    assert run.returncode == 0, run.stderr
    peaks = json.loads(run.stdout.splitlines()[-1])
    record_property("peak MB above the imports", peaks)
    # A few batches in their several forms, not the text.
    assert max(peaks.values()) < 200, peaks
