"""What a run folder holds, read for the report: tables and JSON, whatever of them is there.

A stage that is not done is left out; a file that cannot be read is named in `troubles`. Not here:
pictures (`figures.py`), the headline table (`table.py`) and the page (`page.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import yaml

from megatron_reason.errors import DataError, ReasonError
from megatron_reason.evaluation.aside import is_aside
from megatron_reason.evaluation.average import average, average_name
from megatron_reason.evaluation.card import CARD, EvalCard, comparable, read_card
from megatron_reason.evaluation.summary import SUMMARY, EvalSummary, read_summary
from megatron_reason.files import QUARANTINE, STAGE_MANIFEST, read_json
from megatron_reason.report.differences import Differences
from megatron_reason.schema.tables import Kind, table_path
from megatron_reason.tracking.jsonl import METRICS, read_metrics

PLAN = "plan.json"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
SELECTION = "selection.json"
BASE = "base"

_ANSWER_COLUMNS = ["problem_id", "sample_index", "status", "score", "num_tokens"]
_UNREADABLE = (
    OSError, ValueError, KeyError, TypeError, yaml.YAMLError, pl.exceptions.PolarsError,
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class StageRecord:
    """One stage of the plan and what it left."""

    folder: Path
    name: str
    kind: str
    """`curate`, `train`, `eval` or `report`."""
    stage: str
    """Kind of curation stage, or the kind again."""
    variant: str | None
    state: str
    """`done`, `not done`, or `changed`: done with other settings than the plan's."""
    num_rows: int = 0
    seconds: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    refused: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rows in quarantine, by reason."""

    @property
    def is_there(self) -> bool:
        """Whether its output can be read."""
        return self.state != "not done"


@dataclass(frozen=True)
class Target:
    """The distribution a selection aimed at."""

    edges: list[float]
    """Edges of its perplexity bins."""
    counts: list[int]
    """Rows aimed at, per bin."""


@dataclass(frozen=True)
class Selection:
    """Rows that one selection took, and those it could choose from."""

    name: str
    role: str
    """`demo` or `negative`."""
    variants: tuple[str, ...]
    """Variants trained on it."""
    rows: pl.DataFrame
    """Columns ppl and num_tokens."""
    pool: str
    """Stage it selected from; empty if unknown."""
    candidates: pl.DataFrame
    """Rows of the pool, same columns."""
    target: Target | None


@dataclass(frozen=True)
class Measurement:
    """One model's answers to one set of problems."""

    problem_set: str
    model: str
    """A variant, or `base`."""
    summary: EvalSummary
    card: EvalCard | None
    folder: Path
    answers: pl.DataFrame
    """Columns problem_id, sample_index, status, score, num_tokens: what fits in any memory."""
    num_trainings: int = 1
    """Trainings whose means `summary` has; folder, card and answers are those of the first."""

    def whole(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Whole rows of the generations table, texts included.

        Args:
            keys: columns problem_id and sample_index of the wanted rows.
        """
        generations = pl.scan_parquet(table_path(self.folder, Kind.GENERATIONS))
        return generations.join(
            keys.lazy(), on=["problem_id", "sample_index"], how="semi", maintain_order="left"
        ).collect()


@dataclass(frozen=True)
class Average:
    """One model's mean over several benchmarks."""

    problem_set: str
    """Names the benchmarks."""
    model: str
    summary: EvalSummary
    num_trainings: int = 1
    """Trainings that `summary` is about."""


@dataclass(frozen=True)
class RunData:
    """All of a run that the report shows."""

    folder: Path
    stages: list[StageRecord]
    models: list[str]
    """`base` and the variants, in the plan's order."""
    selections: list[Selection]
    training: dict[str, pl.DataFrame]
    """Metrics by variant, one row per update."""
    measurements: list[Measurement]
    settings: Mapping[str, Any]
    """The resolved configuration as it was written."""
    troubles: list[str]
    """What could not be read, and why."""
    averages: list[Average] = field(default_factory=list["Average"])
    """Of models that were measured on several benchmarks."""
    num_runs: int = 1
    """Runs that stand side by side in it."""
    seeds: Mapping[str, int] = field(default_factory=dict[str, int])
    """Trainings of each model that was trained with several seeds."""
    differences: Differences | None = None
    """Settings that tell the runs apart, where there are several."""

    @property
    def problem_sets(self) -> list[str]:
        """What the models were measured on, in order."""
        return list(dict.fromkeys(m.problem_set for m in self.measurements))

    def on(self, problem_set: str) -> list[Measurement]:
        """Measurements on one set of problems."""
        return [m for m in self.measurements if m.problem_set == problem_set]

    def incomparable(self) -> list[str]:
        """Why numbers of two models must not be compared, in sentences."""
        reasons: list[str] = []
        for problem_set in self.problem_sets:
            cards = [(m.model, m.card) for m in self.on(problem_set) if m.card is not None]
            for model, card in cards[1:]:
                reference, expected = cards[0]
                if differing := comparable(expected, card):
                    reasons.append(
                        f"{reference} and {model} on {problem_set}: {'; '.join(differing)}"
                    )
        return reasons


def read_run(folder: Path) -> RunData:
    """Read the run in `folder`, finished or not.

    Raises:
        DataError: this is no run folder.
    """
    if not (folder / PLAN).is_file():
        raise DataError(
            str(folder),
            f"there is no {PLAN} here, so this is no run folder.",
            "Give a folder that `mreason run` made, such as runs/oxa-quickstart.",
        )
    return _Reader(folder).run()


class _Reader:
    """Reads one run; collects what went wrong instead of stopping."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._troubles: dict[str, None] = {}
        settings = self._read(folder / CONFIG, lambda path: yaml.safe_load(path.read_text("utf-8")))
        self._settings: dict[str, Any] = settings if isinstance(settings, dict) else {}
        self._curate = {row.get("name"): row for row in self._settings.get("curate") or []}

    def run(self) -> RunData:
        """Everything."""
        stages = [self._stage(row) for row in read_json(self._folder / PLAN)]
        by_name = {stage.name: stage for stage in stages if stage.is_there}
        models = dict.fromkeys(stage.variant for stage in stages if stage.variant)
        measured = {s.folder: [*self._measurements(s)] for s in stages if s.kind == "eval"}
        return RunData(
            folder=self._folder,
            stages=stages,
            models=[*models],
            selections=[
                selection
                for stage in by_name.values()
                if stage.stage == "select" and (selection := self._selection(stage, by_name))
            ],
            training={
                stage.variant: metrics
                for stage in stages
                if stage.kind == "train"
                and stage.variant
                and (metrics := self._metrics(stage.folder / METRICS)) is not None
            },
            measurements=[m for found in measured.values() for m in found],
            averages=[
                Average(average_name(benchmarks), found[0].model, average(benchmarks))
                for folder, found in measured.items()
                if len(benchmarks := _benchmarks(folder, found)) > 1
            ],
            settings=self._settings,
            troubles=[*self._troubles],
        )

    def _read(self, path: Path, read: Callable[[Path], T]) -> T | None:
        """What `read` makes of `path`; None where there is nothing or nothing legible."""
        if not path.exists():
            return None
        try:
            return read(path)
        except ReasonError as error:
            self._troubles[f"{error.where}: {error.what}"] = None
        except _UNREADABLE as error:
            self._troubles[f"{path}: {type(error).__name__}: {error}"] = None
        return None

    def _stage(self, row: Mapping[str, Any]) -> StageRecord:
        folder = self._folder / row["folder"]
        manifest = self._read(folder / STAGE_MANIFEST, _read_object)
        described = StageRecord(
            folder=folder,
            name=row["name"],
            kind=row["kind"],
            stage=row.get("stage") or row["kind"],
            variant=row.get("variant"),
            state="not done",
        )
        if manifest is None:
            return described
        is_current = manifest.get("hash") == row.get("hash")
        return replace(
            described,
            state="done" if is_current else "changed",
            num_rows=manifest.get("num_rows", 0),
            seconds=manifest.get("seconds", 0.0),
            counts=manifest.get("counts", {}),
            refused=self._read(folder / QUARANTINE, _counts_by_reason) or {},
        )

    def _selection(
        self, stage: StageRecord, by_name: Mapping[str, StageRecord]
    ) -> Selection | None:
        rows = self._perplexities(stage)
        if rows is None:
            return None
        details = self._read(stage.folder / SELECTION, _read_object) or {}
        edges, counts = details.get("edges") or [], details.get("target") or []
        pool = self._curate.get(stage.name, {}).get("table", "")
        candidates = self._perplexities(by_name[pool]) if pool in by_name else None
        return Selection(
            name=stage.name,
            role=details.get("role", "demo"),
            variants=tuple(self._variants_on(stage.name)),
            rows=rows,
            pool=pool,
            candidates=rows.clear() if candidates is None else candidates,
            target=Target(edges, counts) if len(edges) == len(counts) + 1 > 1 else None,
        )

    def _perplexities(self, stage: StageRecord) -> pl.DataFrame | None:
        """Perplexity and length of a stage's samples, without those that have none."""
        frame = self._read(
            table_path(stage.folder, Kind.SAMPLES),
            lambda path: pl.read_parquet(path, columns=["ppl", "num_tokens"]),
        )
        if frame is None:
            return None
        return frame.drop_nulls().filter(pl.col("ppl").is_finite())

    def _variants_on(self, selection: str) -> Iterator[str]:
        for variant, settings in (self._settings.get("variants") or {}).items():
            tables = self._curate.get(settings.get("table"), {}).get("tables") or []
            if selection in [part.get("table") for part in tables]:
                yield variant

    def _metrics(self, path: Path) -> pl.DataFrame | None:
        rows = self._read(path, read_metrics)
        return pl.DataFrame(rows, infer_schema_length=None) if rows else None

    def _measurements(self, stage: StageRecord) -> Iterator[Measurement]:
        """One per set of problems: the run's own in the stage's folder, benchmarks in folders."""
        table = (self._settings.get("eval") or {}).get("table")
        own_set = f"{table} (held out)" if table else "held out"
        for path in (stage.folder / SUMMARY, *sorted(stage.folder.glob(f"*/{SUMMARY}"))):
            folder = path.parent
            if is_aside(folder.relative_to(stage.folder)):
                continue
            summary = self._read(path, lambda at: read_summary(at.parent))
            answers = self._read(table_path(folder, Kind.GENERATIONS), _answers)
            if summary is None or answers is None or stage.variant is None:
                continue
            yield Measurement(
                problem_set=own_set if folder == stage.folder else folder.name,
                model=stage.variant,
                summary=summary,
                card=self._read(folder / CARD, lambda at: read_card(at.parent)),
                folder=folder,
                answers=answers,
            )


def _benchmarks(stage: Path, found: Sequence[Measurement]) -> dict[str, EvalSummary]:
    """Summaries of the benchmarks among what a stage measured."""
    return {one.problem_set: one.summary for one in found if one.folder != stage}


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise DataError(str(path), "this is no JSON object.", "Run the stage again.")
    return value


def _answers(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path, columns=_ANSWER_COLUMNS)


def _counts_by_reason(path: Path) -> dict[str, int]:
    return dict(pl.read_parquet(path)["reason"].value_counts(sort=True).iter_rows())
