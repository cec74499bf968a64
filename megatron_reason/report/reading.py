"""What a run's folder holds, finished or not, as typed values.

Whatever is missing, outdated or unreadable becomes a note, never a failure: a report of half a run
is useful, and it says that it is half. Texts stay on disk but for the few responses shown. Not
here: numbers computed from these (`numbers.py`), pictures and pages.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl
import yaml

from megatron_reason.errors import DataError, ReasonError
from megatron_reason.evaluation.card import CARD, EvalCard, comparable, read_card
from megatron_reason.evaluation.summary import SUMMARY, EvalSummary, read_summary
from megatron_reason.files import QUARANTINE, STAGE_MANIFEST, read_json
from megatron_reason.schema.tables import Kind, table_path
from megatron_reason.tracking.jsonl import METRICS, read_metrics

State = Literal["done", "outdated", "unfinished", "to do"]

BASE = "base"
SELECTION = "selection.json"
_PLAN = "plan.json"
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, ReasonError, pl.exceptions.PolarsError)
_RESPONSES_PER_STATUS = 2


@dataclass(frozen=True)
class StageView:
    """One stage of the plan and what its folder says."""

    folder: Path
    name: str
    kind: str
    stage: str
    """Kind of curation stage, or the kind again."""
    variant: str | None
    state: State
    num_rows: int | None = None
    seconds: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    quarantined: Mapping[str, int] = field(default_factory=dict[str, int])
    """Rows set aside, by reason."""


@dataclass(frozen=True)
class Selection:
    """What a stage `select` took, beside what it could have taken."""

    name: str
    role: str
    rule: str
    variants: tuple[str, ...]
    """Variants that train on it."""
    pool: pl.DataFrame
    """Columns ppl, num_tokens: all the responses it chose from."""
    taken: pl.DataFrame
    """The same of those chosen."""
    edges: Sequence[float]
    """Edges of the perplexity bins that the rule had quotas for; empty without quotas."""
    target: Sequence[int]
    """Responses wanted, by bin."""


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of problems."""

    variant: str
    problem_set: str
    summary: EvalSummary
    card: EvalCard | None
    answers: pl.DataFrame
    """Columns status, num_tokens."""
    responses: pl.DataFrame
    """A few whole rows of the generations, of every status that occurs."""


@dataclass(frozen=True)
class RunView:
    """A run."""

    folder: Path
    config: Mapping[str, Any]
    """The resolved configuration; empty if there is none."""
    config_text: str
    environment: Mapping[str, Any]
    stages: Sequence[StageView]
    """In the order of the plan, the report left out."""
    selections: Sequence[Selection]
    metrics: Mapping[str, Sequence[Mapping[str, float]]]
    """Rows of metrics.jsonl by variant."""
    evaluations: Sequence[Evaluation]
    notes: Sequence[str]
    """What is missing, outdated or unreadable, one sentence each."""

    @property
    def variants(self) -> list[str]:
        """Models of the plan in its order, the base model first."""
        names = [stage.variant for stage in self.stages if stage.variant is not None]
        return sorted(dict.fromkeys(names), key=lambda name: name != BASE)

    @property
    def problem_sets(self) -> list[str]:
        """Names of the sets that models are measured on, found or asked for."""
        section = self.config.get("eval") or {}
        asked = [section.get("table"), *(section.get("benchmarks") or ())]
        found = [evaluation.problem_set for evaluation in self.evaluations]
        return list(dict.fromkeys([*(name for name in asked if name), *found]))


def read_run(folder: Path) -> RunView:
    """Everything a report needs of the run in `folder`.

    Raises:
        DataError: the folder is not that of a run.
    """
    if not (folder / _PLAN).is_file():
        raise DataError(
            str(folder),
            f"this is not a run's folder: it has no {_PLAN}.",
            "Give a folder that `mreason run` made, for example runs/my-run.",
        )
    return _Reader(folder).run()


class _Reader:
    """Reads once, collecting notes on what it could not read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes: list[str] = []

    def run(self) -> RunView:
        text, config = self._config()
        plan: list[dict[str, Any]] = read_json(self._folder / _PLAN)
        stages = [self._stage(entry) for entry in plan if entry["kind"] != "report"]
        evaluations = [found for stage in stages for found in self._evaluations(stage, config)]
        view = RunView(
            folder=self._folder,
            config=config,
            config_text=text,
            environment=self._try("environment.json", read_json) or {},
            stages=stages,
            selections=list(self._selections(stages, config)),
            metrics=dict(self._metrics(stages)),
            evaluations=evaluations,
            notes=self._notes,
        )
        self._notes[:0] = _states(stages)
        self._notes += _unlike(evaluations)
        return view

    def _try(self, name: str | Path, read: Any) -> Any:  # noqa: ANN401 - passes through
        """What `read` makes of a file of the run; None with a note if it is damaged."""
        path = self._folder / name
        if not path.exists():
            return None
        try:
            return read(path)
        except _UNREADABLE as error:
            reason = error.what if isinstance(error, ReasonError) else f"{error}".split("\n")[0]
            self._notes.append(f"{path.relative_to(self._folder)} could not be read: {reason}")
            return None

    def _config(self) -> tuple[str, dict[str, Any]]:
        text: str = self._try("config.yaml", Path.read_text) or ""
        try:
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            self._notes.append(f"config.yaml could not be read: {error}")
            config = None
        return text, config if isinstance(config, dict) else {}

    def _stage(self, entry: Mapping[str, Any]) -> StageView:
        folder = self._folder / entry["folder"]
        manifest = self._try(folder / STAGE_MANIFEST, read_json)
        if manifest is None:
            state: State = "unfinished" if folder.exists() else "to do"
        else:
            is_current = manifest.get("hash") == entry.get("hash")
            state = "done" if is_current else "outdated"
        manifest = manifest or {}
        return StageView(
            folder=folder,
            name=entry["name"],
            kind=entry["kind"],
            stage=entry["stage"],
            variant=entry.get("variant"),
            state=state,
            num_rows=manifest.get("num_rows"),
            seconds=manifest.get("seconds"),
            counts=manifest.get("counts") or {},
            quarantined=self._try(folder / QUARANTINE, _reasons) or {},
        )

    def _selections(
        self, stages: Sequence[StageView], config: Mapping[str, Any]
    ) -> Iterator[Selection]:
        folders = {stage.name: stage.folder for stage in stages}
        for stage in stages:
            facts = self._try(stage.folder / SELECTION, read_json)
            settings = _curation(config).get(stage.name)
            if stage.stage != "select" or facts is None or settings is None:
                continue
            pool, taken = self._sizes(folders[settings["table"]]), self._sizes(stage.folder)
            if pool is None or taken is None:
                continue
            yield Selection(
                name=stage.name,
                role=facts["role"],
                rule=facts["rule"]["name"],
                variants=tuple(_users(stage.name, config)),
                pool=pool,
                taken=taken,
                edges=facts["edges"],
                target=facts["target"],
            )

    def _sizes(self, folder: Path) -> pl.DataFrame | None:
        return self._try(
            table_path(folder, Kind.SAMPLES),
            lambda path: pl.read_parquet(path, columns=["ppl", "num_tokens"]),
        )

    def _metrics(
        self, stages: Sequence[StageView]
    ) -> Iterator[tuple[str, Sequence[Mapping[str, float]]]]:
        for stage in stages:
            if stage.kind == "train" and stage.variant is not None:
                rows = self._try(stage.folder / METRICS, read_metrics)
                if rows:
                    yield stage.variant, rows

    def _evaluations(self, stage: StageView, config: Mapping[str, Any]) -> Iterator[Evaluation]:
        """Evaluations in the stage's own folder (the run's table) and in those of benchmarks."""
        if stage.kind != "eval" or stage.variant is None or not stage.folder.is_dir():
            return
        own = (config.get("eval") or {}).get("table") or "held-out problems"
        below = sorted(path for path in stage.folder.iterdir() if path.is_dir())
        for name, folder in [(own, stage.folder), *((path.name, path) for path in below)]:
            summary = self._try(folder / SUMMARY, lambda path: read_summary(path.parent))
            if summary is None:
                continue
            table = table_path(folder, Kind.GENERATIONS)
            answers = self._try(table, _answers)
            responses = self._try(table, _responses)
            yield Evaluation(
                variant=stage.variant,
                problem_set=name,
                summary=summary,
                card=self._try(folder / CARD, lambda path: read_card(path.parent)),
                answers=pl.DataFrame() if answers is None else answers,
                responses=pl.DataFrame() if responses is None else responses,
            )


def _reasons(path: Path) -> dict[str, int]:
    counts = pl.read_parquet(path, columns=["reason"])["reason"].value_counts(sort=True)
    return dict(counts.iter_rows())


def _answers(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path, columns=["status", "num_tokens"])


def _responses(path: Path) -> pl.DataFrame:
    """First responses of every status, in the order of problems, so that models can be compared."""
    keys = pl.read_parquet(path, columns=["problem_id", "sample_index", "status"])
    rank = pl.int_range(pl.len()).over("status")
    chosen = keys.sort("sample_index", "problem_id").filter(rank < _RESPONSES_PER_STATUS)
    whole = pl.scan_parquet(path).join(chosen.lazy(), on=["problem_id", "sample_index"], how="semi")
    return whole.collect().sort("status", "problem_id", "sample_index")


def _curation(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Settings of curation stages by name."""
    return {settings["name"]: settings for settings in config.get("curate") or ()}


def _users(selection: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Variants whose table descends from `selection`."""
    curation = _curation(config)

    def descends(table: str) -> bool:
        settings = curation.get(table, {})
        tables = [entry["table"] for entry in settings.get("tables") or ()]
        above = [settings.get("table"), *tables]
        return table == selection or any(descends(name) for name in above if name)

    for variant, settings in (config.get("variants") or {}).items():
        if descends(settings["table"]):
            yield variant


def _states(stages: Sequence[StageView]) -> Iterator[str]:
    """Sentences on stages that are not what the plan asks for."""
    meaning = {
        "outdated": "made with other settings than the plan's; `mreason run` makes them anew",
        "unfinished": "begun and not finished",
        "to do": "not begun",
    }
    for state, words in meaning.items():
        names = [stage.name for stage in stages if stage.state == state]
        if names:
            verb = "stage is" if len(names) == 1 else "stages are"
            yield f"{len(names)} of {len(stages)} {verb} {words}: {', '.join(names)}."


def _unlike(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """Sentences on evaluations that were not made in the same way as the first of their set."""
    first: dict[str, Evaluation] = {}
    for evaluation in evaluations:
        reference = first.setdefault(evaluation.problem_set, evaluation)
        if reference.card is None or evaluation.card is None:
            continue
        if changes := comparable(reference.card, evaluation.card):
            yield (
                f"On {evaluation.problem_set}, {evaluation.variant} must not be compared with "
                f"{reference.variant}: {'; '.join(changes)}."
            )
