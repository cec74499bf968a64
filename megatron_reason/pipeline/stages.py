"""What each kind of planned stage does: curate, train, evaluate, report.

Not here: whether a stage is due, and its manifest (`execute.py`).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from megatron_reason import platform
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.curation.base import StageContext, StageResult, build_stage
from megatron_reason.evaluation.aside import set_aside
from megatron_reason.evaluation.regrade import evaluation_folders
from megatron_reason.evaluation.summary import EvalSummary
from megatron_reason.files import read_json
from megatron_reason.logs import get_logger
from megatron_reason.pipeline.keeper import EngineKeeper
from megatron_reason.pipeline.measure import Subject, measure, problem_sets
from megatron_reason.pipeline.plan import BASE, PlannedStage, train_name
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.pipeline.workers import run_on_ranks
from megatron_reason.training.jobs import EntropyJob, RolloutJob, StageJob, TrainJob

_LOG = get_logger(__name__)
HUGGINGFACE = "huggingface"
STAGE_RESULT = "result.json"
_LATEST_CHECKPOINT = Path("checkpoints", "latest_checkpointed_iteration.txt")


@dataclass(frozen=True)
class Setting:
    """What all stages of a run share."""

    config: RunConfig
    """The run's configuration."""
    run_folder: Path
    """Folder of the run."""
    model_folder: Path
    """Hugging Face folder of the base model."""
    plan: list[PlannedStage]
    """All stages, in order."""
    keeper: EngineKeeper
    """The run's one generation engine."""

    def stage(self, name: str) -> PlannedStage:
        """The stage called `name`."""
        return next(stage for stage in self.plan if stage.name == name)

    def folder_of(self, stage: PlannedStage) -> Path:
        """Where a stage writes."""
        return self.run_folder / stage.folder

    def output_of(self, name: str) -> Path:
        """Where the stage called `name` writes."""
        return self.folder_of(self.stage(name))

    def weights_of(self, variant: str) -> Path:
        """Hugging Face folder of a trained variant, or of the base model."""
        if variant == BASE:
            return self.model_folder
        return self.output_of(train_name(variant)) / HUGGINGFACE


def run_stage(stage: PlannedStage, setting: Setting) -> StageResult:
    """Do what `stage` says, into its folder.

    Raises:
        ReasonError: the stage cannot go on.
    """
    match stage.kind:
        case "curate":
            return _curate(stage, setting)
        case "train":
            return _train(stage, setting)
        case "eval":
            return _evaluate(stage, setting)
        case "report":
            return _report(setting)


def _curate(planned: PlannedStage, setting: Setting) -> StageResult:
    config = setting.config
    settings = next(stage for stage in config.curate if stage.name == planned.name)
    stage = build_stage(settings)
    output = setting.folder_of(planned)
    inputs = {name: setting.output_of(name) for name in settings.inputs()}
    model, model_folder = config.model, setting.model_folder
    if settings.weights is not None:
        model_folder = setting.weights_of(settings.weights)
        model = model.model_copy(update={"path": str(model_folder), "random_weights": False})
    if stage.runs_on == "host":
        return stage.run(
            StageContext(
                output=output,
                inputs=inputs,
                model=model,
                model_folder=model_folder,
                template=config.template,
                seed=config.run.seed,
                open_engine=setting.keeper.open,
            )
        )
    job = StageJob(
        model=model,
        model_folder=model_folder,
        output=output,
        seed=config.run.seed,
        plugins=config.plugins,
        stage=settings,
        inputs=inputs,
        template=config.template,
    )
    _on_ranks(job, planned.name, setting)
    return StageResult(**read_json(output / STAGE_RESULT))


def _train(planned: PlannedStage, setting: Setting) -> StageResult:
    assert planned.variant is not None, "training is always of a variant"
    config = setting.config
    variant = config.variants[planned.variant]
    output = setting.folder_of(planned)
    job = TrainJob(
        model=config.model,
        model_folder=setting.weights_of(variant.start or BASE),
        output=output,
        seed=config.seed_of(planned.variant),
        plugins=config.plugins,
        method=variant.method,
        train=config.train_of(planned.variant),
        table=None if variant.table is None else setting.output_of(variant.table),
        rollout=_rollout(planned.variant, setting),
        template=config.template,
        track=config.track,
    )
    _on_ranks(job, planned.name, setting)
    updates = int((output / _LATEST_CHECKPOINT).read_text(encoding="utf-8"))
    return StageResult(updates, {"updates": updates})


def _rollout(variant: str, setting: Setting) -> RolloutJob | None:
    settings = setting.config.rollout_of(variant)
    if settings is None:
        return None
    monitor = settings.monitor
    return RolloutJob(
        settings=settings,
        problems=setting.output_of(settings.problems),
        monitored=None if monitor is None else setting.output_of(monitor.table),
        engine=setting.config.engine,
    )


def _on_ranks(job: TrainJob | StageJob | EntropyJob, name: str, setting: Setting) -> None:
    if platform.distributed_backend() == "nccl":
        # The engine's share of GPU memory is what the workers need now.
        setting.keeper.close()
    run_on_ranks(job, name, setting.config.launch, setting.run_folder)


def _evaluate(planned: PlannedStage, setting: Setting) -> StageResult:
    config = setting.config
    assert planned.variant is not None, "evaluation is always of a model"
    assert config.eval is not None, "planned only where there is a section 'eval'"
    weights = setting.weights_of(planned.variant)
    subject = Subject(
        weights=weights,
        model=config.model,
        template=config.template,
        parallel=_layout(planned.variant, config),
        seed=config.run.seed,
    )
    table = None if config.eval.table is None else setting.output_of(config.eval.table)
    output = setting.folder_of(planned)
    asked = problem_sets(config.eval, table)
    counts: Counter[str] = Counter()
    for problem_set in asked:
        summary = measure(
            subject,
            problem_set,
            config=config.eval,
            engine=setting.keeper.open(weights),
            output=output,
            run_job=lambda job, name=problem_set.name: _on_ranks(
                job, f"{planned.name}-{name}-entropy", setting
            ),
        )
        _LOG.info("%s on %s: %s", planned.variant, problem_set.name, _in_short(summary))
        counts.update(summary.statuses)
    places = {output / problem_set.folder for problem_set in asked}
    for place in evaluation_folders(output).values():
        if place not in places:
            _LOG.info("answers to what is not asked any more lie in %s now", set_aside(place))
    return StageResult(counts.total(), counts)


def _layout(variant: str, config: RunConfig) -> ParallelConfig:
    """Layout in which a model's entropy is measured: that of its training."""
    if variant != BASE:
        return config.train_of(variant).parallel
    return config.train.parallel if config.train is not None else ParallelConfig()


def _in_short(summary: EvalSummary) -> str:
    shown = [
        f"{name} {estimate.value:.3f}"
        for name, estimate in summary.metrics.items()
        if name.startswith("pass@") or name in ("mean_entropy", "mean_length")
    ]
    return ", ".join([*shown, f"{summary.num_samples} samples"])


def _report(setting: Setting) -> StageResult:
    # Figures need matplotlib, which takes seconds to import and which no other stage needs.
    from megatron_reason.report.page import build_report

    page = build_report(setting.run_folder)
    _LOG.info("the report is %s", page)
    return StageResult(len(setting.config.variants))
