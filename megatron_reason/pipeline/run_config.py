"""RunConfig: the root of every YAML, and the checks that concern several sections at once.

Plug-ins are validated by their own classes: a method by its name, a curation stage by its kind.
Not here: order and hashes of the stages (`plan.py`).
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, SerializeAsAny, model_validator

from megatron_reason.config.base import Strict
from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.load import PickedBy, refuse
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.config.train import TrainConfig
from megatron_reason.curation.base import STAGES, StageConfig, build_stage
from megatron_reason.errors import ConfigError, TopologyError
from megatron_reason.evaluation.base import BENCHMARKS
from megatron_reason.registry import Registry, suggest
from megatron_reason.rewards.base import REWARDS
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import METHODS, Frozen, MethodConfig, TrainState, build_method

KeyPath = tuple[str | int, ...]
Objection = tuple[KeyPath, str, str]
"""Key below the root, what is wrong with it, way out."""


def _method_class(name: str) -> type[BaseModel]:
    return METHODS.get(name).config_class


def _stage_class(kind: str) -> type[BaseModel]:
    return STAGES.get(kind).config_class


AnyMethod = Annotated[SerializeAsAny[MethodConfig], PickedBy("name", _method_class)]
AnyStage = Annotated[SerializeAsAny[StageConfig], PickedBy("stage", _stage_class)]


class RunSection(Strict):
    """Section `run`: what the run is called and where it lives."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run and of its folder."""
    seed: int = 42
    """Seed of everything random."""
    dir: Path = Path("runs")
    """Folder that holds the runs' folders."""
    cache: Path | None = None
    """Where unpacked models are kept; None takes `models` beside `dir`."""

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.dir / self.name

    @property
    def model_cache(self) -> Path:
        """Where unpacked models are kept."""
        return self.cache or self.dir.parent / "models"


class VariantConfig(Strict):
    """One trained model of the run: a method on a table, on rollouts, or on both."""

    table: str | None = None
    """Stage whose tokens are trained on; None where all that is learnt from is rollouts."""
    start: str | None = None
    """Earlier variant whose weights it begins with; None begins with the base model."""
    method: AnyMethod
    """What to learn."""
    train: TrainConfig | None = None
    """Training settings that differ from the section `train`; only those need to be given."""
    rollout: RolloutSection | None = None
    """Rollout settings that differ from the section `rollout`; only those need to be given."""


VariantName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class RunConfig(Strict):
    """A whole run: curation, training of every variant, evaluation, report."""

    run: RunSection
    """Name, seed and folders."""
    plugins: tuple[str, ...] = ()
    """Python modules with further methods, stages, rewards..., imported first."""
    model: ModelConfig
    """The base model."""
    template: TemplateConfig = TemplateConfig()
    """How messages become tokens."""
    engine: EngineConfig = EngineConfig()
    """The process that generates text."""
    launch: LaunchConfig = LaunchConfig()
    """Where worker processes start, and how many."""
    curate: tuple[AnyStage, ...] = ()
    """Curation stages, in order."""
    train: TrainConfig | None = None
    """Training settings common to all variants."""
    rollout: RolloutSection | None = None
    """How rollouts are made, for all variants whose method learns from its own."""
    variants: dict[VariantName, VariantConfig] = Field(default_factory=dict[str, VariantConfig])
    """Models to train, by name."""
    eval: EvalConfig | None = None
    """What the base model and the variants are measured on; None measures nothing."""
    track: TrackingConfig = TrackingConfig()
    """Where metrics go."""

    def train_of(self, variant: str) -> TrainConfig:
        """Training settings of a variant."""
        settings = self.variants[variant].train or self.train
        assert settings is not None, "a variant without settings was refused at load"
        return settings

    def rollout_of(self, variant: str) -> RolloutSection | None:
        """Rollout settings of a variant; None for a method that learns from stored data."""
        if not self.learns_online(variant):
            return None
        return self.variants[variant].rollout or self.rollout

    def learns_online(self, variant: str) -> bool:
        """Whether a variant needs an engine: for fresh rollouts, or to rewrite demonstrations."""
        method = build_method(self.variants[variant].method)
        section = self.variants[variant].rollout or self.rollout
        rewrites = section is not None and section.rewrite is not None
        has_demos = Role.DEMO in method.required().roles
        return method.plan(TrainState(0, 1)).prompts > 0 or (rewrites and has_demos)

    @model_validator(mode="before")
    @classmethod
    def _import_plugins(cls, raw: object) -> object:
        plugins = raw.get("plugins") if isinstance(raw, Mapping) else None
        for index, module in enumerate(plugins if isinstance(plugins, list | tuple) else ()):
            try:
                importlib.import_module(str(module))
            except ImportError as error:
                refuse(
                    [(("plugins", index), f"this module cannot be imported: {error}.",
                      "Install it, or put its folder on PYTHONPATH.")]
                )  # fmt: skip
        return raw

    @model_validator(mode="before")
    @classmethod
    def _fill_partial(cls, raw: object) -> object:
        """Lay each variant's own training and rollout settings over the common ones."""
        if not isinstance(raw, Mapping):
            return raw
        filled = dict(raw)
        for section in ("train", "rollout"):
            common, variants = filled.get(section), filled.get("variants")
            if isinstance(common, Mapping) and isinstance(variants, Mapping):
                filled["variants"] = {
                    name: _filled(variant, section, common) for name, variant in variants.items()
                }
        return filled

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        objections = [
            *self._check_names(),
            *self._check_tables(),
            *self._check_graders(),
            *self._check_variants(),
            *self._check_starts(),
            *self._check_rollouts(),
            *self._check_layouts(),
            *self._check_lengths(),
        ]
        if objections:
            refuse(objections)
        return self

    def _check_names(self) -> Iterator[Objection]:
        seen: dict[str, int] = {}
        for index, stage in enumerate(self.curate):
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
        if "base" in self.variants:
            yield (
                ("variants", "base"),
                "'base' is the model before training.",
                "Give the variant another name.",
            )

    def _check_tables(self) -> Iterator[Objection]:
        earlier: list[str] = []
        for index, stage in enumerate(self.curate):
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
            for name, variant in self.variants.items()
            if variant.table is not None
        ]
        for path, rollout in self._rollouts():
            wanted.append(((*path, "problems"), rollout.problems))
            if rollout.monitor is not None:
                wanted.append(((*path, "monitor", "table"), rollout.monitor.table))
        if self.eval is not None and self.eval.table is not None:
            wanted.append((("eval", "table"), self.eval.table))
        for path, table in wanted:
            if table not in earlier:
                yield path, f"no stage of 'curate' is called '{table}'.", suggest(table, earlier)

    def _check_graders(self) -> Iterator[Objection]:
        from megatron_reason.curation.grade import GradeConfig

        named: list[tuple[KeyPath, Registry[Any], str]] = [
            (("curate", index, "reward"), REWARDS, stage.reward)
            for index, stage in enumerate(self.curate)
            if isinstance(stage, GradeConfig)
        ]
        if self.eval is not None:
            named.append((("eval", "reward"), REWARDS, self.eval.reward))
            named += [
                (("eval", "benchmarks", index), BENCHMARKS, name)
                for index, name in enumerate(self.eval.benchmarks)
            ]
        for path, rollout in self._rollouts():
            named.append(((*path, "reward"), REWARDS, rollout.reward))
            if rollout.monitor is not None:
                named.append(((*path, "monitor", "reward"), REWARDS, rollout.monitor.reward))
        for path, registry, name in named:
            try:
                registry.get(name)
            except ConfigError as error:
                yield path, error.what, error.way_out

    def _check_variants(self) -> Iterator[Objection]:
        roles_of = _roles_by_stage(self.curate)
        for name, variant in self.variants.items():
            if self.train is None and variant.train is None:
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

    def _check_starts(self) -> Iterator[Objection]:
        earlier: list[str] = []
        for name, variant in self.variants.items():
            if variant.start is not None and variant.start not in earlier:
                yield (
                    ("variants", name, "start"),
                    f"no earlier variant is called '{variant.start}'.",
                    suggest(variant.start, earlier) if earlier else "Put that variant before it.",
                )
            earlier.append(name)

    def _rollouts(self) -> Iterator[tuple[KeyPath, RolloutSection]]:
        """Rollout settings of the run, and where they stand."""
        if self.rollout is not None:
            yield ("rollout",), self.rollout
        for name, variant in self.variants.items():
            if variant.rollout is not None:
                yield ("variants", name, "rollout"), variant.rollout

    def _check_rollouts(self) -> Iterator[Objection]:
        for name in filter(self.learns_online, self.variants):
            method = build_method(self.variants[name].method)
            rollout = self.rollout_of(name)
            if rollout is None:
                yield (
                    ("variants", name, "method"),
                    f"method '{method.config.name}' learns from fresh rollouts, and nothing says "
                    "which problems are answered.",
                    "Add a section 'rollout' with 'problems': the stage that has them.",
                )
                continue
            yield from self._check_length_of(name)
            corrected = method.required().frozen & {Frozen.ROLLOUT_LOGPROB}
            if rollout.steps_ahead and not corrected:
                yield (
                    ("variants", name, "method"),
                    f"with steps_ahead {rollout.steps_ahead} rollouts are one step old, and "
                    f"'{method.config.name}' with these settings does not correct for it.",
                    "Set the method's 'tis: token', or rollout.steps_ahead: 0.",
                )

    def _check_length_of(self, variant: str) -> Iterator[Objection]:
        train = self.variants[variant].train or self.train
        if train is None:
            return
        if train.updates is None:
            yield (
                ("variants", variant),
                "a method with rollouts has no epochs: prompts may be refilled or skipped.",
                "Set train.updates.",
            )
        if self.engine.max_model_len - 1 > train.batch.max_tokens_per_microbatch:
            yield (
                ("engine", "max_model_len"),
                f"a rollout of {self.engine.max_model_len} tokens would not fit into a micro-batch "
                f"of {train.batch.max_tokens_per_microbatch}.",
                "Raise train.batch.max_tokens_per_microbatch, or lower engine.max_model_len.",
            )

    def _check_layouts(self) -> Iterator[Objection]:
        layouts: list[tuple[KeyPath, ParallelConfig]] = [
            (("curate", index, "parallel"), stage.parallel())
            for index, stage in enumerate(map(build_stage, self.curate))
            if stage.runs_on == "ranks"
        ]
        if self.train is not None:
            layouts.append((("train", "parallel"), self.train.parallel))
        layouts += [
            (("variants", name, "train", "parallel"), variant.train.parallel)
            for name, variant in self.variants.items()
            if variant.train is not None
            and (self.train is None or variant.train.parallel != self.train.parallel)
        ]
        for path, parallel in layouts:
            try:
                parallel.data_parallel_size(self.launch.world_size)
            except TopologyError as error:
                yield (
                    path,
                    error.what,
                    f"{error.way_out} launch.nodes and launch.processes set their number.",
                )

    def _check_lengths(self) -> Iterator[Objection]:
        from megatron_reason.curation.generate import GenerateConfig

        requests: list[tuple[KeyPath, int]] = [
            (("curate", index, "sampling", "max_tokens"), stage.sampling.max_tokens)
            for index, stage in enumerate(self.curate)
            if isinstance(stage, GenerateConfig)
        ]
        if self.eval is not None:
            requests.append((("eval", "sampling", "max_tokens"), self.eval.sampling.max_tokens))
        for path, found in self._rollouts():
            requests.append(((*path, "max_tokens"), found.max_tokens))
            if found.rewrite is not None:
                tokens = found.rewrite.sampling.max_tokens
                requests.append(((*path, "rewrite", "sampling", "max_tokens"), tokens))
        longest = self.engine.max_model_len
        for path, tokens in requests:
            if tokens >= longest:
                yield (
                    path,
                    f"a response of {tokens} tokens and its prompt do not fit into "
                    f"engine.max_model_len {longest}.",
                    f"Lower it, or raise engine.max_model_len above {tokens} by the "
                    "longest prompt.",
                )


def _filled(variant: object, section: str, common: Mapping[str, object]) -> object:
    own = variant.get(section) if isinstance(variant, Mapping) else None
    if not isinstance(own, Mapping) or not isinstance(variant, Mapping):
        return variant
    return {**variant, section: _laid_over(common, own)}


def _laid_over(common: object, own: object) -> object:
    if not isinstance(common, Mapping) or not isinstance(own, Mapping):
        return own
    merged = dict(common)
    for key, value in own.items():
        merged[key] = _laid_over(common.get(key), value)
    return merged


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
