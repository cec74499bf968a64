"""What the sections of a run must agree on: names, tables, weights, graders, layouts, lengths.

Each check reads a `RunConfig` whose sections are valid by themselves, and says where two of them
contradict each other. Not here: what one section demands of itself (its own class), and the
settings as they stand in the file (`run_config.py`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import SamplingConfig
from megatron_reason.curation.base import StageConfig, build_stage
from megatron_reason.errors import ConfigError, TopologyError
from megatron_reason.evaluation.base import BENCHMARKS, FILES
from megatron_reason.pipeline.variants import VariantConfig, with_starts
from megatron_reason.registry import Registry, suggest
from megatron_reason.rewards.base import REWARDS
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import Frozen, build_method
from megatron_reason.schema.topology import Topology

if TYPE_CHECKING:
    from megatron_reason.pipeline.run_config import RunConfig

KeyPath = tuple[str | int, ...]
Objection = tuple[KeyPath, str, str]
"""Key below the root, what is wrong with it, way out."""


def objections_to(config: "RunConfig") -> list[Objection]:
    """All contradictions between sections, each once, about the variants as they were written."""
    found = [
        *_check_names(config),
        *_check_tables(config),
        *_check_weights(config),
        *_check_graders(config),
        *_check_variants(config),
        *_check_starts(config),
        *_check_rollouts(config),
        *_check_layouts(config),
        *_check_lengths(config),
    ]
    return [*dict.fromkeys(_as_written(config, objection) for objection in found)]


def _as_written(config: "RunConfig", objection: Objection) -> Objection:
    """The same about the variant that stands in the file, of one that repeats it."""
    (section, *rest), what, way_out = objection
    name = rest[0] if section == "variants" and rest else None
    written = config.variants[name].repeats if isinstance(name, str) else None
    if written is None:
        return objection
    return (section, written, *rest[1:]), what, way_out


def _check_names(config: "RunConfig") -> Iterator[Objection]:
    seen: dict[str, int] = {}
    for index, stage in enumerate(config.curate):
        if stage.name in seen:
            yield (
                ("curate", index, "name"),
                f"stage {seen[stage.name]} of 'curate' is called '{stage.name}', too.",
                "Give each stage a name of its own.",
            )
        if stage.name == "report":
            yield (
                ("curate", index, "name"),
                "'report' is the last stage of every run.",
                "Give the stage another name.",
            )
        seen.setdefault(stage.name, index)
    if "base" in config.variants:
        yield (
            ("variants", "base"),
            "'base' is the model before training.",
            "Give the variant another name.",
        )


def _check_tables(config: "RunConfig") -> Iterator[Objection]:
    earlier: list[str] = []
    for index, stage in enumerate(config.curate):
        for name in stage.inputs():
            if name not in earlier:
                yield (
                    ("curate", index),
                    f"stage '{stage.name}' reads '{name}', which no earlier stage writes.",
                    suggest(name, earlier) if earlier else "Begin with a stage 'ingest'.",
                )
        earlier.append(stage.name)
    wanted: list[tuple[KeyPath, str]] = [
        (("variants", name, "table"), variant.table)
        for name, variant in config.variants.items()
        if variant.table is not None
    ]
    for path, rollout in _rollouts(config):
        wanted.append(((*path, "problems"), rollout.problems))
        if rollout.monitor is not None:
            wanted.append(((*path, "monitor", "table"), rollout.monitor.table))
    if config.eval is not None and config.eval.table is not None:
        wanted.append((("eval", "table"), config.eval.table))
    for path, table in wanted:
        if table not in earlier:
            yield path, f"no stage of 'curate' is called '{table}'.", suggest(table, earlier)


def _check_weights(config: "RunConfig") -> Iterator[Objection]:
    """Stages that a trained variant's weights answer or score for."""
    earlier: set[str] = set()
    for index, stage in enumerate(config.curate):
        if stage.weights is not None:
            path: KeyPath = ("curate", index, "weights")
            tables = {
                table
                for variant in with_starts(stage.weights, config.variants)
                for table in (variant.table, *_answered_by(config, variant))
                if table is not None
            }
            draws_text = any(isinstance(value, SamplingConfig) for _, value in stage)
            if stage.weights not in config.variants:
                yield (
                    path,
                    f"no variant is called '{stage.weights}'.",
                    suggest(stage.weights, [*config.variants]),
                )
            elif late := sorted(tables - earlier):
                yield (
                    path,
                    f"variant '{stage.weights}' is trained on '{late[0]}', which no stage "
                    f"before '{stage.name}' writes.",
                    "Put that stage first.",
                )
            elif not draws_text and build_stage(stage).runs_on != "ranks":
                yield (
                    path,
                    f"a stage '{stage.stage}' uses no weights.",
                    "Leave 'weights' out.",
                )
            elif (model := dict(stage).get("model")) is not None:
                yield (
                    path,
                    f"stage '{stage.name}' is given both weights, of '{stage.weights}', and a "
                    f"model, {model!r}.",
                    "Leave one of them out.",
                )
        earlier.add(stage.name)


def _answered_by(config: "RunConfig", variant: VariantConfig) -> Iterator[str]:
    """Stages whose problems a variant answers while it learns."""
    section = variant.rollout or config.rollout
    if section is not None and Role.ROLLOUT in build_method(variant.method).required().roles:
        yield section.problems
        if section.monitor is not None:
            yield section.monitor.table


def _check_graders(config: "RunConfig") -> Iterator[Objection]:
    from megatron_reason.curation.grade import GradeConfig

    named: list[tuple[KeyPath, Registry[Any], str]] = [
        (("curate", index, "reward"), REWARDS, stage.reward)
        for index, stage in enumerate(config.curate)
        if isinstance(stage, GradeConfig)
    ]
    if config.eval is not None:
        named.append((("eval", "reward"), REWARDS, config.eval.reward))
        if config.eval.benchmark_reward is not None:
            named.append((("eval", "benchmark_reward"), REWARDS, config.eval.benchmark_reward))
        for benchmark, reward in config.eval.reward_of.items():
            named.append((("eval", "reward_of", benchmark), REWARDS, reward))
        for field in ("reward_of", "samples_of"):
            named += [
                (("eval", field, name), BENCHMARKS, name)
                for name in getattr(config.eval, field)
                if not name.endswith(FILES)
            ]
        named += [
            (("eval", "benchmarks", index), BENCHMARKS, name)
            for index, name in enumerate(config.eval.benchmarks)
            if not name.endswith(FILES)
        ]
    for path, rollout in _rollouts(config):
        named.append(((*path, "reward"), REWARDS, rollout.reward))
        if rollout.monitor is not None:
            named.append(((*path, "monitor", "reward"), REWARDS, rollout.monitor.reward))
    for path, registry, name in named:
        try:
            registry.get(name)
        except ConfigError as error:
            yield path, error.what, error.way_out


def _check_variants(config: "RunConfig") -> Iterator[Objection]:
    roles_of = _roles_by_stage(config.curate)
    for name, variant in config.variants.items():
        if config.train is None and variant.train is None:
            yield (
                ("variants", name),
                "there are no training settings.",
                "Add a section 'train' with 'updates' or 'epochs', and 'optim: {lr: ...}'.",
            )
        needed = {str(role) for role in build_method(variant.method).required().roles}
        needed.discard(Role.ROLLOUT)
        if variant.table is None:
            if needed:
                yield (
                    ("variants", name),
                    f"method '{variant.method.name}' needs role "
                    f"{' and '.join(sorted(needed))}, and there is no table.",
                    "Give it a 'table': a stage 'mix' that has such rows.",
                )
            continue
        roles = roles_of.get(variant.table)
        if roles is not None and (missing := sorted(needed - roles)):
            yield (
                ("variants", name, "table"),
                f"method '{variant.method.name}' needs role {' and '.join(missing)}; "
                f"'{variant.table}' has {' and '.join(sorted(roles))}.",
                f"Add a selection with role {missing[0]} to the stage that mixes it.",
            )


def _check_starts(config: "RunConfig") -> Iterator[Objection]:
    earlier: list[str] = []
    for name, variant in config.variants.items():
        if variant.start is not None and variant.start not in earlier:
            yield (
                ("variants", name, "start"),
                f"no earlier variant is called '{variant.start}'.",
                suggest(variant.start, earlier) if earlier else "Put that variant before it.",
            )
        earlier.append(name)


def _rollouts(config: "RunConfig") -> Iterator[tuple[KeyPath, RolloutSection]]:
    """Rollout settings of the run, and where they stand."""
    if config.rollout is not None:
        yield ("rollout",), config.rollout
    for name, variant in config.variants.items():
        if variant.rollout is not None:
            yield ("variants", name, "rollout"), variant.rollout


def _check_rollouts(config: "RunConfig") -> Iterator[Objection]:
    for name in filter(config.learns_online, config.variants):
        method = build_method(config.variants[name].method)
        rollout = config.rollout_of(name)
        if rollout is None:
            yield (
                ("variants", name, "method"),
                f"method '{method.config.name}' learns from fresh rollouts, and nothing says "
                "which problems are answered.",
                "Add a section 'rollout' with 'problems': the stage that has them.",
            )
            continue
        yield from _check_length_of(config, name)
        corrected = method.required().frozen & {Frozen.ROLLOUT_LOGPROB}
        if rollout.steps_ahead and not corrected:
            yield (
                ("variants", name, "method"),
                f"with steps_ahead {rollout.steps_ahead} rollouts are one step old, and "
                f"'{method.config.name}' with these settings does not correct for it.",
                "Set the method's 'tis: token', or rollout.steps_ahead: 0.",
            )


def _check_length_of(config: "RunConfig", variant: str) -> Iterator[Objection]:
    train = config.variants[variant].train or config.train
    if train is None:
        return
    if train.updates is None:
        yield (
            ("variants", variant),
            "a method with rollouts has no epochs: prompts may be refilled or skipped.",
            "Set train.updates.",
        )
    shared = Topology(cp_size=train.parallel.context_parallel_size)
    room = shared.rounding.of_sequence(config.engine.max_model_len - 1)
    if room > train.batch.max_tokens_per_microbatch:
        yield (
            ("engine", "max_model_len"),
            f"a rollout of {config.engine.max_model_len} tokens would not fit into a micro-batch "
            f"of {train.batch.max_tokens_per_microbatch}.",
            "Raise train.batch.max_tokens_per_microbatch, or lower engine.max_model_len.",
        )


def _check_layouts(config: "RunConfig") -> Iterator[Objection]:
    layouts: list[tuple[KeyPath, ParallelConfig]] = [
        (("curate", index, "parallel"), stage.parallel())
        for index, stage in enumerate(map(build_stage, config.curate))
        if stage.runs_on == "ranks"
    ]
    if config.train is not None:
        layouts.append((("train", "parallel"), config.train.parallel))
    layouts += [
        (("variants", name, "train", "parallel"), variant.train.parallel)
        for name, variant in config.variants.items()
        if variant.train is not None
        and (config.train is None or variant.train.parallel != config.train.parallel)
    ]
    for path, parallel in layouts:
        try:
            parallel.data_parallel_size(config.launch.world_size)
        except TopologyError as error:
            yield (
                path,
                error.what,
                f"{error.way_out} launch.nodes and launch.processes set their number.",
            )


def _check_lengths(config: "RunConfig") -> Iterator[Objection]:
    from megatron_reason.curation.generate import GenerateConfig

    requests: list[tuple[KeyPath, int]] = [
        (("curate", index, "sampling", "max_tokens"), stage.sampling.max_tokens)
        for index, stage in enumerate(config.curate)
        if isinstance(stage, GenerateConfig)
    ]
    if config.eval is not None:
        requests.append((("eval", "sampling", "max_tokens"), config.eval.sampling.max_tokens))
    for path, found in _rollouts(config):
        requests.append(((*path, "max_tokens"), found.max_tokens))
        if found.rewrite is not None:
            tokens = found.rewrite.sampling.max_tokens
            requests.append(((*path, "rewrite", "sampling", "max_tokens"), tokens))
    longest = config.engine.max_model_len
    for path, tokens in requests:
        if tokens >= longest:
            yield (
                path,
                f"a response of {tokens} tokens and its prompt do not fit into "
                f"engine.max_model_len {longest}.",
                f"Lower it, or raise engine.max_model_len above {tokens} by the longest prompt.",
            )


def _roles_by_stage(stages: tuple[StageConfig, ...]) -> dict[str, set[str]]:
    """Roles of the rows each stage writes, for the kinds of stage where the config tells."""
    from megatron_reason.curation.mix import MixConfig
    from megatron_reason.curation.select import SelectConfig

    roles: dict[str, set[str]] = {}
    for stage in stages:
        if isinstance(stage, SelectConfig):
            roles[stage.name] = {stage.role}
        elif isinstance(stage, MixConfig):
            given = [
                {part.as_role} if part.as_role else roles.get(part.table) for part in stage.tables
            ]
            if all(given):
                roles[stage.name] = {role for part in given if part for role in part}
    return roles
