"""Peak memory and throughput of the curation's stages on long rows, at two sizes of the table.

    python tools/bench/long_rows.py --rows 20000 200000 --characters 40000

A Parquet file of worked texts, all different, each of that many characters; then ingest, grade,
filter, select (half of the rows) and merge, each in a process of its own, with the batches they
have in production. Memory is the peak of resident memory above what the imports take, workers
left out. What may grow with the rows are eight-byte hashes and the columns that `select` chooses
by; the text must not. Writes a table and a JSON file to `tools/bench/results/`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STAGES = ("ingest", "grade", "filter", "select", "merge")
INPUTS = {"grade": "ingest", "filter": "grade", "select": "scored", "merge": "filter"}
ROWS_PER_GROUP = 500


@dataclass(frozen=True)
class Figure:
    """One stage on one table."""

    rows: int
    stage: str
    peak_mb: float
    seconds: float


def make_source(path: Path, rows: int, characters: int) -> None:
    """Rows as a public set has them, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sentence = "So we go on with the next step of this proof. "
    filler = sentence * (characters // len(sentence))
    schema = pa.schema([(name, pa.string()) for name in ("id", "problem", "answer", "solution")])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for begin in range(0, rows, ROWS_PER_GROUP):
            numbers = [str(n) for n in range(begin, min(begin + ROWS_PER_GROUP, rows))]
            columns = {
                "id": numbers,
                "problem": [f"What is {n}?" for n in numbers],
                "answer": numbers,
                "solution": [f"<think>{n} {filler}</think> It is \\boxed{{{n}}}." for n in numbers],
            }
            writer.write_table(pa.table(columns, schema))


def run_stage(folder: Path, stage: str) -> None:
    """Run one stage here and print its figures as JSON."""
    import polars as pl

    from megatron_reason.curation.filter import Filter, FilterConfig
    from megatron_reason.curation.grade import Grade, GradeConfig
    from megatron_reason.curation.ingest import Ingest, IngestConfig
    from megatron_reason.curation.merge import Merge, MergeConfig
    from megatron_reason.curation.select import Select, SelectConfig
    from megatron_reason.schema.tables import Kind, TableReader, TableWriter
    from tests.curation.stages import context

    table = INPUTS.get(stage, "")
    if stage == "scored":
        with TableWriter(folder / "scored", Kind.SAMPLES) as writer:
            for batch in TableReader(folder / "filter", Kind.SAMPLES).batches():
                writer.append(
                    batch.with_columns(ppl=pl.lit(2.0), num_tokens=pl.lit(9), scorer=pl.lit("m"))
                )
        return
    count = 0
    if stage == "select":
        count = TableReader(folder / table, Kind.SAMPLES).num_rows // 2
    selection = {"name": stage, "table": table, "role": "demo", "count": count or 1,
                 "where": "correct", "rule": {"name": "lowest"}}  # fmt: skip
    chosen = {
        "ingest": lambda: Ingest(IngestConfig(name=stage, source=str(folder / "source.parquet"))),
        "grade": lambda: Grade(GradeConfig(name=stage, table=table, workers=1)),
        "filter": lambda: Filter(FilterConfig(name=stage, table=table)),
        "select": lambda: Select(SelectConfig.model_validate(selection)),
        "merge": lambda: Merge(
            MergeConfig.model_validate({"name": stage, "tables": [{"table": table}]})
        ),
    }[stage]()
    before, started = _peak_mb(), time.perf_counter()
    inputs = {name: folder / name for name in (*STAGES, "scored")}
    result = chosen.run(context(folder / stage, inputs))
    figures = {"peak_mb": _peak_mb() - before, "seconds": time.perf_counter() - started,
               "rows": result.num_rows}  # fmt: skip
    sys.stdout.write(json.dumps(figures) + "\n")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(rows: int, characters: int, scratch: Path) -> list[Figure]:
    """All stages, one after the other."""
    make_source(scratch / "source.parquet", rows, characters)
    found: list[Figure] = []
    for stage in ("ingest", "grade", "filter", "scored", "select", "merge"):
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(scratch)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT,
            env=os.environ | {"POLARS_MAX_THREADS": "2", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        if stage == "scored":
            continue
        figures = json.loads(done.stdout.splitlines()[-1])
        expected = rows // 2 if stage == "select" else rows
        assert figures["rows"] == expected, (stage, figures)
        found.append(Figure(rows, stage, figures["peak_mb"], figures["seconds"]))
        print(f"{rows} rows, {stage}: {found[-1].peak_mb:.0f} MB, {found[-1].seconds:.1f} s",
              flush=True)  # fmt: skip
    return found


def main() -> None:
    """Measure each size, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--characters", type=int, default=40_000)
    parser.add_argument("--stage", choices=[*STAGES, "scored"])
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.folder, arguments.stage)
        return
    figures: list[Figure] = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            figures += measure(rows, arguments.characters, Path(scratch))
    report(figures, arguments.characters)


def report(figures: list[Figure], characters: int) -> None:
    """Print and store the table."""
    sizes = " ".join(str(rows) for rows in dict.fromkeys(figure.rows for figure in figures))
    command = f"python tools/bench/long_rows.py --rows {sizes} --characters {characters}"
    lines = [
        "# Curation of long rows", "",
        f"`{command}`, {date.today()}: {os.cpu_count()} CPU cores, one grading worker.", "",
        "| rows | text (GB) | stage | peak above the imports (MB) | seconds | MB of text / s |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for figure in figures:
        text_mb = figure.rows * characters / 1e6
        lines.append(
            f"| {figure.rows} | {text_mb / 1e3:.1f} | {figure.stage} | {figure.peak_mb:.0f} "
            f"| {figure.seconds:.1f} | {text_mb / figure.seconds:.0f} |"
        )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    results = ROOT / "tools" / "bench" / "results"
    (results / "long_rows.md").write_text(text, encoding="utf-8")
    content = {"characters": characters, "figures": [asdict(figure) for figure in figures]}
    (results / "long_rows.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
