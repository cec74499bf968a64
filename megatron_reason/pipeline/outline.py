"""What each planned stage amounts to, in words a person can check before starting a run.

Not here: the plan (`plan.py`).
"""

from dataclasses import dataclass
from typing import Any

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import TrainConfig
from megatron_reason.curation.base import build_stage
from megatron_reason.pipeline.manifest import read_manifest
from megatron_reason.pipeline.plan import PlannedStage
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.schema.method import TrainState, build_method


@dataclass(frozen=True)
class Line:
    """One stage in words."""

    work: str
    """How much is done: updates, answers; empty where only the data can tell."""
    processes: str
    """Layout over the worker processes; empty for stages that run in the main process."""
    state: str
    """`done`, `changed` (done with other settings) or `to do`."""
    method: dict[str, Any]
    """All settings of the method, a preset's values and defaults included; empty elsewhere."""


def outline(config: RunConfig, plan: list[PlannedStage]) -> list[Line]:
    """One line per stage; reads manifests, changes nothing."""
    return [
        Line(_work(config, s), _processes(config, s), _state(config, s), _method(config, s))
        for s in plan
    ]


def _work(config: RunConfig, stage: PlannedStage) -> str:
    if stage.kind == "train" and stage.variant is not None:
        method = build_method(config.variants[stage.variant].method)
        plan = method.plan(TrainState(0, 1))
        parts = [f"{count} {role}" for role, count in plan.counts.items()]
        if plan.prompts:
            parts.insert(0, f"{plan.prompts} prompts x {plan.rollouts_per_prompt} rollouts")
        each = " + ".join(parts)
        return f"{_length(config.train_of(stage.variant))} of {each} ({method.config.name})"
    if stage.kind == "eval" and config.eval is not None:
        names = [config.eval.table] if config.eval.table else []
        most = f"at most {config.eval.max_problems} problems" if config.eval.max_problems else "all"
        each = config.eval.sampling.samples_per_prompt
        return f"{', '.join([*names, *config.eval.benchmarks])}: {most} x {each} answers"
    return ""


def _method(config: RunConfig, stage: PlannedStage) -> dict[str, Any]:
    if stage.kind != "train" or stage.variant is None:
        return {}
    return config.variants[stage.variant].method.model_dump(mode="json")


def _length(train: TrainConfig) -> str:
    return f"{train.epochs:g} epochs" if train.updates is None else f"{train.updates} updates"


def _processes(config: RunConfig, planned: PlannedStage) -> str:
    parallel: ParallelConfig | None = None
    if planned.kind == "train" and planned.variant is not None:
        parallel = config.train_of(planned.variant).parallel
    elif planned.kind == "curate":
        stage = build_stage(next(s for s in config.curate if s.name == planned.name))
        parallel = stage.parallel() if stage.runs_on == "ranks" else None
    if parallel is None:
        return ""
    copies = parallel.data_parallel_size(config.launch.world_size)
    experts, context = parallel.expert_model_parallel_size, parallel.context_parallel_size
    return (
        f"TP {parallel.tensor_model_parallel_size} x PP {parallel.pipeline_model_parallel_size} "
        + (f"x CP {context} " if context > 1 else "")
        + f"x DP {copies}"
        + (f" (EP {experts})" if experts > 1 else "")
    )


def _state(config: RunConfig, stage: PlannedStage) -> str:
    manifest = read_manifest(config.run.folder / stage.folder)
    if manifest is None:
        return "to do"
    return "done" if manifest.hash == stage.hash else "changed"
