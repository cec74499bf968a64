"""What a run folder holds, read for the report: tables and JSON, whatever of them is there.

A stage that is missing or unfinished is left out; the page says so. Not here: pictures
(`figures.py`) and the page (`page.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from megatron_reason.errors import DataError
from megatron_reason.evaluation.estimators import Estimate
from megatron_reason.files import QUARANTINE, STAGE_MANIFEST, read_json
from megatron_reason.schema.tables import Kind, read_table, table_path
from megatron_reason.tracking.jsonl import read_metrics

PLAN = "plan.json"


@dataclass(frozen=True)
class StageRecord:
    """One stage of the plan, and its manifest if it is done."""

    name: str
    kind: str
    stage: str | None
    variant: str | None
    folder: Path
    manifest: dict[str, Any] | None

    @property
    def refused(self) -> dict[str, int]:
        """Rows set aside, by reason."""
        path = self.folder / QUARANTINE
        if not path.is_file():
            return {}
        counts = pl.read_parquet(path)["reason"].value_counts(sort=True)
        return dict(counts.iter_rows())


@dataclass(frozen=True)
class Variant:
    """One model of the run: what it was trained with and what it answered."""

    name: str
    metrics: pl.DataFrame | None
    """One row per update; None before training."""
    summary: dict[str, Estimate]
    """Metrics of the evaluation; empty before it."""
    num_problems: int
    generations: pl.DataFrame | None


@dataclass(frozen=True)
class RunData:
    """All of a run that the report shows."""

    folder: Path
    stages: list[StageRecord]
    variants: list[Variant] = field(default_factory=list[Variant])

    @classmethod
    def read(cls, folder: Path) -> "RunData":
        """Read the run in `folder`.

        Raises:
            DataError: this is no run folder.
        """
        plan = folder / PLAN
        if not plan.is_file():
            raise DataError(
                str(folder),
                f"there is no {PLAN} here, so this is no run folder.",
                "Give a folder that `mreason run` made, such as runs/oxa-quickstart.",
            )
        stages = [_stage(folder, row) for row in read_json(plan)]
        names = [stage.variant for stage in stages if stage.kind == "eval" and stage.variant]
        names += [stage.variant for stage in stages if stage.kind == "train" and stage.variant]
        return cls(folder, stages, [_variant(name, stages) for name in dict.fromkeys(names)])

    def samples(self) -> Iterator[tuple[StageRecord, pl.DataFrame]]:
        """Finished curation stages that wrote samples, with their tables."""
        for stage in self.stages:
            if stage.manifest is not None and table_path(stage.folder, Kind.SAMPLES).is_file():
                yield stage, read_table(stage.folder, Kind.SAMPLES)


def _stage(run: Path, row: dict[str, Any]) -> StageRecord:
    folder = run / row["folder"]
    manifest = folder / STAGE_MANIFEST
    return StageRecord(
        name=row["name"],
        kind=row["kind"],
        stage=row.get("stage"),
        variant=row.get("variant"),
        folder=folder,
        manifest=read_json(manifest) if manifest.is_file() else None,
    )


def _variant(name: str, stages: list[StageRecord]) -> Variant:
    metrics: pl.DataFrame | None = None
    summary: dict[str, Estimate] = {}
    num_problems = 0
    generations: pl.DataFrame | None = None
    for stage in stages:
        if stage.variant != name:
            continue
        rows = read_metrics(stage.folder / "metrics.jsonl") if stage.kind == "train" else []
        if rows:
            metrics = pl.DataFrame(rows, infer_schema_length=None)
        found = next(iter(sorted(stage.folder.rglob("summary.json"))), None)
        if stage.kind == "eval" and found is not None:
            stored = read_json(found)
            summary = {key: Estimate(**value) for key, value in stored["metrics"].items()}
            num_problems = stored["num_problems"]
            generations = read_table(found.parent, Kind.GENERATIONS)
    return Variant(name, metrics, summary, num_problems, generations)
