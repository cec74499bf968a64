"""Time and memory of the OXA selection over a table of millions of scored rows.

    python tools/bench/selection.py --rows 2600000

A table of samples of that many rows, 13 to a problem, with short texts, and lognormal perplexities
and lengths: the stage `select` with the paper's bell (50,000 of 2.6 million rows, about 2.5) in a
process of its own, imports left out of the time and counted in the memory. What texts cost is in
`long_rows.py`. Asserts that every bin holds the quota of the released script and that no problem
has more than its share. Writes a table and a JSON file to `tools/bench/results/`.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PER_PROBLEM = 13
ROWS_PER_BATCH = 100_000
ROWS_PER_WANTED = 52


def make_table(folder: Path, rows: int) -> None:
    """Scored and graded samples; three of four are right."""
    import numpy as np
    import polars as pl

    from megatron_reason.schema.tables import SCHEMAS, Kind, TableWriter

    draw = np.random.default_rng(5)
    empty = pl.from_arrow(SCHEMAS[Kind.SAMPLES].empty_table())
    assert isinstance(empty, pl.DataFrame)
    with TableWriter(folder, Kind.SAMPLES) as writer:
        for begin in range(0, rows, ROWS_PER_BATCH):
            number = np.arange(begin, min(begin + ROWS_PER_BATCH, rows))
            ids = pl.Series(number).cast(pl.String)
            problem = pl.Series(number // PER_PROBLEM).cast(pl.String)
            tokens = np.clip(draw.lognormal(8.5, 0.7, len(number)), 50, 32768).astype(np.int64)
            ppl = 1 + draw.lognormal(0.2, 0.5, len(number))
            message = pl.struct(
                pl.lit("user").alias("role"), (pl.lit("Problem ") + problem).alias("content")
            )
            frame = pl.DataFrame({"sample_id": "sample-" + ids, "problem_id": "problem-" + problem})
            frame = frame.with_columns(
                messages=pl.concat_list(message), answer=problem, source=pl.lit("made"),
                split=pl.lit("train"), response=pl.lit("Well, ") + ids, finish=pl.lit("given"),
                origin=pl.lit("teacher"), generator=pl.lit("made"),
                status=pl.when(pl.Series(draw.random(len(number)) < 0.75))
                .then(pl.lit("ok")).otherwise(pl.lit("wrong")),
                num_tokens=pl.Series(tokens), ppl=pl.Series(ppl),
                nll_sum=pl.Series(np.log(ppl) * tokens), scorer=pl.lit("made"),
            )  # fmt: skip
            writer.append(pl.concat([empty, frame], how="diagonal_relaxed").select(empty.columns))


def run_select(folder: Path) -> None:
    """Select here, check what was taken, and print the figures as JSON."""
    from megatron_reason.curation.select import Select, SelectConfig
    from megatron_reason.schema.tables import Kind, TableReader, read_table
    from tests.curation.stages import context

    wanted = TableReader(folder / "scored", Kind.SAMPLES).num_rows // ROWS_PER_WANTED
    settings = {
        "name": "promote", "table": "scored", "role": "demo", "where": "correct", "count": wanted,
        "rule": {"name": "gaussian", "mean": 2.5, "std": 0.25},
    }  # fmt: skip
    stage = Select(SelectConfig.model_validate(settings))
    started = time.perf_counter()
    stage.run(context(folder / "promote", {"scored": folder / "scored"}))
    seconds = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = json.loads((folder / "promote" / "selection.json").read_text(encoding="utf-8"))
    assert told["taken"] == told["target"], told
    taken = read_table(folder / "promote", Kind.SAMPLES)
    assert max(Counter(taken["problem_id"]).values()) == 1
    figures = {"seconds": seconds, "peak_mb": peak_mb, "taken": len(taken)}
    sys.stdout.write(json.dumps(figures) + "\n")


def main() -> None:
    """Make the table, select in a fresh process, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_600_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        run_select(arguments.folder)
        return
    with tempfile.TemporaryDirectory() as scratch:
        make_table(Path(scratch, "scored"), arguments.rows)
        done = subprocess.run(
            [sys.executable, __file__, "--folder", scratch], stdout=subprocess.PIPE, text=True,
            check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
    figures = json.loads(done.stdout.splitlines()[-1])
    text = "\n".join([
        "# Selection", "",
        f"`python tools/bench/selection.py --rows {arguments.rows}`, {date.today()}: "
        f"{os.cpu_count()} CPU cores.", "",
        "| rows | taken | seconds | peak memory, imports included (MB) |", "|---|---|---|---|",
        f"| {arguments.rows} | {figures['taken']} | {figures['seconds']:.1f} "
        f"| {figures['peak_mb']:.0f} |", "",
    ])  # fmt: skip
    sys.stdout.write(text)
    results = ROOT / "tools" / "bench" / "results"
    (results / "selection.md").write_text(text, encoding="utf-8")
    content = {"date": str(date.today()), "rows": arguments.rows, **figures}
    (results / "selection.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
