"""What the estimates need to know of a run: its model, its layout, the tokens of an update.

Not here: the estimates (`estimate.py`).
"""

from dataclasses import dataclass
from math import ceil, inf
from typing import Any

from megatron_reason.config.gpus import GPUS, GpuName
from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.train import TrainConfig
from megatron_reason.curation.mix import MixConfig
from megatron_reason.curation.select import SelectConfig
from megatron_reason.errors import ConfigError
from megatron_reason.launch.clusters import load_cluster
from megatron_reason.pipeline._sizes import Sizes, sizes_of
from megatron_reason.pipeline.engine_share import EngineShare, objection
from megatron_reason.pipeline.estimate import Extras, Layout, Machine, Workload
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.schema.method import TrainState, build_method

_MEAN_SHARE = 0.5
"""Mean length of a sequence as a share of the longest, where no data has been seen; assumed."""


@dataclass(frozen=True)
class Training:
    """One variant's training, as the estimates see it."""

    variant: str
    sizes: Sizes
    layout: Layout
    work: Workload
    extras: Extras
    updates: int | None
    """None where only the data can tell."""


def machine_of(text: str) -> Machine:
    """The GPUs that a text such as `32xH100-80` means.

    Raises:
        ConfigError: it means none.
    """
    count, times, name = text.partition("x")
    by_name: dict[str, GpuName] = {known: known for known in GPUS}
    gpu = by_name.get(name)
    if not times or not count.isdecimal() or int(count) < 1 or gpu is None:
        raise ConfigError(
            "--gpus", f"'{text}' is no number of GPUs.",
            f"Write for example 8xH100-80; known are {', '.join(GPUS)}.",
        )  # fmt: skip
    return Machine(gpu, int(count), min(8, int(count)))


def gpu_on(launch: LaunchConfig) -> GpuName | None:
    """The GPU that `launch` names by its cluster, if that says which."""
    return None if launch.cluster == "local" else load_cluster(launch.cluster).gpu


def usable_on(launch: LaunchConfig) -> float:
    """Bytes of a GPU that tensors can take, where `launch` says which GPU; else infinite."""
    gpu = gpu_on(launch)
    return inf if gpu is None else Machine(gpu, 1).usable


def trainings(config: RunConfig, *, ranks: int, machine: Machine | None) -> list[Training]:
    """All trainings of a run, on `ranks` ranks; one data-parallel copy where these are too few.

    Raises:
        ConfigError: a model whose sizes are not known.
    """
    sizes = sizes_of(config.model.path, config.run.model_cache)
    return [_training(config, variant, sizes, ranks, machine) for variant in config.variants]


def engine_objection(config: RunConfig, machine: Machine) -> str | None:
    """Why the run's engine cannot hold its model on such GPUs; None if it can, or has none.

    Raises:
        ConfigError: a model whose sizes are not known.
    """
    is_shared = any(map(config.learns_online, config.variants))
    curates = any(stage.draws_text for stage in config.curate)
    if not (is_shared or curates or config.eval):
        return None
    if (shards := config.engine.tensor_parallel_size) > machine.per_node:
        return (
            f"engine: tensor_parallel_size: {shards} is more than the {machine.per_node} GPUs of "
            "a node, and an engine lives on one; make it smaller"
        )
    sizes = sizes_of(config.model.path, config.run.model_cache)
    engine = config.engine.beside_a_trainer() if is_shared else config.engine
    return objection(engine, sizes, GPUS[machine.gpu], config.model.dtype)


def layout_of(train: TrainConfig, ranks: int) -> Layout:
    """The layout that `train` asks for, over `ranks` ranks."""
    parallel = train.parallel
    tp, pp = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    return Layout(
        tp, pp, max(1, ranks // parallel.sample_size), train.batch.max_tokens_per_microbatch,
        parallel.recompute, parallel.sequence_parallel, parallel.context_parallel_size,
    )  # fmt: skip


def _training(
    config: RunConfig, variant: str, sizes: Sizes, ranks: int, machine: Machine | None
) -> Training:
    train = config.train_of(variant)
    method = build_method(config.variants[variant].method)
    plan = method.plan(TrainState(0, 1))
    longest = min(_longest(config, variant), train.batch.max_tokens_per_microbatch)
    sequences = sum(plan.counts.values()) + plan.prompts * plan.rollouts_per_prompt
    mean = longest * _MEAN_SHARE
    engine = None
    if config.learns_online(variant) and machine is not None:
        shared = config.engine.beside_a_trainer()
        engine = EngineShare.of(shared, sizes, GPUS[machine.gpu], config.model.dtype)
    return Training(
        variant,
        sizes,
        layout_of(train, ranks),
        Workload(sequences * mean, longest, mean),
        Extras.of(config.model.dtype, method.required(), engine),
        train.updates or _updates(config, variant, train, plan.counts),
    )


def _longest(config: RunConfig, variant: str) -> int:
    """Tokens of the longest sequence that the variant can meet."""
    rollout = config.rollout_of(variant)
    if rollout is not None:
        return config.engine.max_model_len
    table = config.variants[variant].table
    for stage in config.curate:
        if stage.name == table and isinstance(stage, MixConfig):
            return stage.max_tokens
    return config.train_of(variant).batch.max_tokens_per_microbatch


def _updates(
    config: RunConfig,
    variant: str,
    train: TrainConfig,
    counts: Any,  # noqa: ANN401 - by role
) -> int | None:
    """Updates of so many epochs, where selections of fixed sizes say how many rows there are."""
    table = config.variants[variant].table
    mixed = next((s for s in config.curate if s.name == table and isinstance(s, MixConfig)), None)
    if train.epochs is None or mixed is None:
        return None
    selected = {
        s.name: (str(s.role), s.count) for s in config.curate if isinstance(s, SelectConfig)
    }
    if any(part.table not in selected for part in mixed.tables):
        return None
    rows: dict[str, int] = {}
    for part in mixed.tables:
        role, count = selected[part.table]
        rows[part.as_role or role] = rows.get(part.as_role or role, 0) + count
    passes = [rows[str(role)] / count for role, count in counts.items() if str(role) in rows]
    return ceil(train.epochs * min(passes)) if passes else None
