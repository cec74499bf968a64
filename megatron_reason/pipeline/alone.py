"""One stage, one training or one evaluation by itself, outside a run folder.

Not here: runs (`execute.py`).
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_reason import __version__
from megatron_reason.config.base import Strict
from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.load import load_config
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.base import STAGES, StageContext, StageResult, build_stage
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.evaluation.average import average, average_name
from megatron_reason.evaluation.suite import suite_settings
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.files import hash_text, read_json
from megatron_reason.logs import get_logger
from megatron_reason.models.sources import resolve_model
from megatron_reason.pipeline.begun import begin, begun_as
from megatron_reason.pipeline.keeper import EngineKeeper
from megatron_reason.pipeline.lock import LOCKS, stage_locks
from megatron_reason.pipeline.manifest import (
    Manifest,
    fingerprints,
    installed_versions,
    now,
    read_manifest,
    write_manifest,
)
from megatron_reason.pipeline.measure import Subject, measure, problem_sets
from megatron_reason.pipeline.plan import files_named, train_name
from megatron_reason.pipeline.run_config import AnyStage, RunConfig
from megatron_reason.pipeline.stages import STAGE_RESULT
from megatron_reason.pipeline.workers import run_on_ranks
from megatron_reason.registry import suggest
from megatron_reason.schema.tables import Kind, table_path
from megatron_reason.training.jobs import EntropyJob, RolloutJob, StageJob, TrainJob

_LOG = get_logger(__name__)
MODEL_CACHE = Path("models")
_NO_MODEL = ModelConfig(path="(no model given: --set model.path=...)")


class StageSettings(Strict):
    """What `mreason stage` can be told: a stage, and the sections of a run that it may use."""

    stage: AnyStage
    """The stage's own settings."""
    model: ModelConfig | None = None
    """The model, for stages that need one."""
    template: TemplateConfig = TemplateConfig()
    """How messages become tokens."""
    engine: EngineConfig = EngineConfig()
    """The process that generates text."""
    launch: LaunchConfig = LaunchConfig()
    """How many worker processes."""
    seed: int = 42
    """Seed of everything random."""


class EvalSettings(Strict):
    """What `mreason eval` can be told: sections of a run that matter for an evaluation."""

    model: ModelConfig
    """The model measured."""
    eval: EvalConfig
    """What it is measured on."""
    template: TemplateConfig = TemplateConfig()
    """How problems become prompts."""
    engine: EngineConfig = EngineConfig()
    """The process that generates text."""
    launch: LaunchConfig = LaunchConfig()
    """Worker processes that measure entropy."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the model over them."""
    seed: int = 42
    """Seed of everything random."""


def run_stage_alone(
    kind: str, inputs: Sequence[str], output: Path, overrides: Sequence[str]
) -> StageResult:
    """Run one curation stage.

    Args:
        kind: kind of stage.
        inputs: folders it reads, each as `DIR` or `NAME=DIR`.
        output: folder to write to: not there yet, empty, or one in which the same command was
            interrupted, or has ended.
        overrides: `--set` texts on `StageSettings`.

    Raises:
        ConfigError: settings that cannot be used, or inputs that do not match them.
        DataError: an input that is no folder, or an output that holds something else.
        LaunchError: another process works on the same output.
        ReasonError: whatever the stage cannot go on with.
    """
    folders = _named_folders(inputs)
    presets = _presets(kind, [*folders], output)
    settings = load_config(None, [*presets, *overrides], StageSettings)
    if missing := [name for name in settings.stage.inputs() if name not in folders]:
        raise ConfigError(
            f"stage {kind}",
            f"it reads '{missing[0]}'; --in gives {', '.join(folders) or 'nothing'}.",
            suggest(missing[0], [*folders]) if folders else f"Add --in {missing[0]}=DIR",
        )
    read = {name: hash_text(json.dumps(fingerprints(path))) for name, path in folders.items()}
    digest = _digest(settings, read)
    if done := _done_before(output, digest):
        return done
    with stage_locks(output, [settings.stage.name]):
        begin(output, digest)
        started_s = time.monotonic()
        result = _run(settings, folders, output)
        manifest = Manifest(
            name=settings.stage.name,
            kind="curate",
            hash=digest,
            inputs=read,
            num_rows=result.num_rows,
            counts=dict(result.counts),
            seconds=round(time.monotonic() - started_s, 3),
            versions=installed_versions(),
            finished_at=now(),
            config=settings.stage.model_dump(mode="json"),
            outputs=fingerprints(output),
        )
        write_manifest(output, manifest)
    return result


def _digest(settings: StageSettings, read: Mapping[str, str]) -> str:
    """Hash of everything that the output depends on; processes and memory are none of it."""
    described = settings.model_dump(mode="json", exclude={"launch", "engine"})
    described["engine"] = settings.engine.name, settings.engine.max_model_len
    described["files"] = files_named(described)
    described["version"] = __version__
    return hash_text(json.dumps(described | {"read": dict(read)}, sort_keys=True))


def _done_before(output: Path, digest: str) -> StageResult | None:
    """What came out where this very stage has ended; None where it is to begin or to go on."""
    found = [] if not output.is_dir() else [p for p in output.iterdir() if p.name != LOCKS]
    begun = begun_as(output)
    if found and begun != digest:
        raise DataError(
            str(output),
            "the folder is not empty."
            if begun is None
            else "a stage was begun in the folder with other settings, or on other tables.",
            "Remove it, or give another with --out.",
        )
    if (manifest := read_manifest(output)) is None:
        return None
    _LOG.info("%s: done before", output)
    return StageResult(manifest.num_rows, manifest.counts)


def training_job(
    config: RunConfig, tables: Sequence[Path], *, variant: str | None, output: Path | None
) -> TrainJob:
    """Job that trains one variant of `config`, beginning with the run's model.

    Args:
        config: the run it is taken from.
        tables: folders of the tokens table and of the problems that rollouts answer, as the
            method needs them.
        variant: which variant; None takes the only one.
        output: folder to write to; None takes one in the run's folder.

    Raises:
        ConfigError: no such variant, or several and none named, or no problems for rollouts.
        DataError: a folder without either table.
    """
    for folder in tables:
        if _holding(Kind.TOKENS, [folder]) is None and _holding(Kind.PROBLEMS, [folder]) is None:
            raise DataError(
                f"--table {folder}",
                "there is neither tokens.parquet nor problems.parquet.",
                "Give the folder of a finished stage 'mix' or 'ingest'.",
            )
    names = [*config.variants]
    chosen = names[0] if variant is None and len(names) == 1 else variant
    if chosen not in config.variants:
        raise ConfigError(
            "--variant",
            f"this run has the variants {', '.join(names) or 'none'}, not '{variant}'."
            if variant
            else f"this run has {len(names)} variants.",
            suggest(variant or "", names) if names else "Add one to the section 'variants'.",
        )
    return TrainJob(
        model=config.model,
        model_folder=resolve_model(
            config.model.path, config.run.model_cache, random_weights=config.model.random_weights
        ),
        output=output or config.run.folder / train_name(chosen),
        seed=config.seed_of(chosen),
        plugins=config.plugins,
        method=config.variants[chosen].method,
        train=config.train_of(chosen),
        table=_holding(Kind.TOKENS, tables),
        rollout=_rollout(config, chosen, _holding(Kind.PROBLEMS, tables)),
        template=config.template,
        track=config.track,
    )


def _holding(kind: Kind, folders: Sequence[Path]) -> Path | None:
    return next((folder for folder in folders if table_path(folder, kind).is_file()), None)


def _rollout(config: RunConfig, variant: str, problems: Path | None) -> RolloutJob | None:
    settings = config.rollout_of(variant)
    if settings is None:
        return None
    if problems is None:
        raise ConfigError(
            "--table",
            f"variant '{variant}' learns from rollouts, and no folder with problems is given.",
            "Add --table DIR with the output of the stage that rollout.problems names.",
        )
    return RolloutJob(
        settings=settings, problems=problems, monitored=problems, engine=config.engine
    )


def measure_alone(
    model: str, *, table: Path | None, benchmarks: Sequence[str], output: Path,
    overrides: Sequence[str],
) -> Mapping[str, EvalSummary]:  # fmt: skip
    """Measure one model on a table's held-out problems, on benchmarks, or on both.

    Args:
        model: Hugging Face folder, hub id or built-in model.
        table: folder of a problems table.
        benchmarks: what `--suite` was given; see `suite_settings`.
        output: folder to write to; what it holds of the same measurement is not done again.
        overrides: `--set` texts on `EvalSettings`.

    Returns:
        Summaries by the name of the table or benchmark; behind several benchmarks their mean.

    Raises:
        ConfigError: settings that cannot be used, or nothing to measure on.
        ReasonError: whatever the evaluation cannot go on with.
    """
    presets = [f"model.path={model}", *suite_settings(benchmarks)]
    if table is not None:
        presets.append(f"eval.table={_name_of(table)}")
    settings = load_config(None, [*presets, *overrides], EvalSettings)
    weights = resolve_model(settings.model.path, MODEL_CACHE)
    subject = Subject(weights, settings.model, settings.template, settings.parallel, settings.seed)

    def run_job(job: EntropyJob) -> None:
        run_on_ranks(job, f"{job.output.name}-entropy", settings.launch, output)

    summaries: dict[str, EvalSummary] = {}
    with EngineKeeper(
        settings.engine, dtype=settings.model.dtype, log_folder=output / "logs"
    ) as keeper:
        sets = problem_sets(settings.eval, table)
        for problem_set in sets:
            summaries[problem_set.name] = measure(
                subject,
                problem_set,
                config=settings.eval,
                engine=keeper.open(weights),
                output=output,
                run_job=run_job,
            )
    measured = {one.name: summaries[one.name] for one in sets if one.folder != Path()}
    if len(measured) > 1:
        summaries[average_name(measured)] = average(measured)
    return summaries


def _run(settings: StageSettings, inputs: Mapping[str, Path], output: Path) -> StageResult:
    stage = build_stage(settings.stage)
    model = settings.model or _NO_MODEL
    folder = Path(model.path)
    if settings.model is not None:
        folder = resolve_model(model.path, MODEL_CACHE)
    if stage.runs_on == "ranks":
        job = StageJob(
            model=model,
            model_folder=folder,
            output=output,
            seed=settings.seed,
            stage=settings.stage,
            inputs=dict(inputs),
            template=settings.template,
        )
        run_on_ranks(job, settings.stage.name, settings.launch, output)
        return StageResult(**read_json(output / STAGE_RESULT))
    with EngineKeeper(settings.engine, dtype=model.dtype, log_folder=output / "logs") as keeper:
        return stage.run(
            StageContext(
                output=output,
                inputs=inputs,
                model=model,
                model_folder=folder,
                template=settings.template,
                seed=settings.seed,
                open_engine=keeper.open,
            )
        )


def _presets(kind: str, names: Sequence[str], output: Path) -> list[str]:
    """Settings that follow from the other arguments; `--set` comes later and wins."""
    fields = STAGES.get(kind, "mreason stage").config_class.model_fields
    presets = [f"stage.stage={kind}", f"stage.name={_name_of(output)}"]
    if "table" in fields and names:
        presets.append(f"stage.table={names[0]}")
    if "tables" in fields and names:
        presets.append(f"stage.tables=[{', '.join(f'{{table: {name}}}' for name in names)}]")
    return presets


def _named_folders(inputs: Sequence[str]) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for text in inputs:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        if not path.is_dir():
            raise DataError(
                f"--in {text}",
                f"there is no folder {path}.",
                "Give a finished stage's folder.",
            )
        folders[name if equals else _name_of(path)] = path
    return folders


def _name_of(folder: Path) -> str:
    """Name of a stage's folder without its number, in the letters that names may have."""
    name = re.sub(r"^\d+-", "", folder.resolve().name)
    return re.sub(r"[^a-z0-9_]", "_", name.lower()) or "stage"
