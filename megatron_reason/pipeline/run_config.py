"""RunConfig: the root of every YAML.

Plug-ins are validated by their own classes: a method by its name, a curation stage by its kind.
Not here: what sections must agree on (`consistency.py`), order and hashes of the stages
(`plan.py`).
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

from megatron_reason.config.base import Strict
from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.load import PickedBy, refuse
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.tracking import TrackingConfig
from megatron_reason.config.train import TrainConfig
from megatron_reason.curation.base import STAGES, StageConfig
from megatron_reason.pipeline.consistency import objections_to
from megatron_reason.pipeline.variants import VariantConfig, VariantName, repeated
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import TrainState, build_method


def _stage_class(kind: str) -> type[BaseModel]:
    return STAGES.get(kind).config_class


AnyStage = Annotated[SerializeAsAny[StageConfig], PickedBy("stage", _stage_class)]


class RunSection(Strict):
    """Section `run`: what the run is called and where it lives."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run and of its folder."""
    seed: int = 42
    """Seed of everything random."""
    seeds: tuple[int, ...] = ()
    """Train each variant once with each of these seeds, as NAME_seed1, NAME_seed2, ...; the report
    has a row for NAME. Empty trains each once, with `seed`."""
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

    def seed_of(self, variant: str) -> int:
        """Seed of a variant's training."""
        own = self.variants[variant].seed
        return self.run.seed if own is None else own

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

    @field_validator("variants", mode="after")
    @classmethod
    def _once_per_seed(
        cls, variants: dict[str, VariantConfig], info: ValidationInfo
    ) -> dict[str, VariantConfig]:
        run = info.data.get("run")
        return variants if run is None else repeated(variants, run.seeds)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if objections := objections_to(self):
            refuse(objections)
        return self


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
