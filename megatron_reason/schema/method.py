"""The contract of a training method: declared needs and terms, and one pure function.

A method sees `TokenStats` and a `PackedBatch` and returns one unreduced value per token and term.
What a term is averaged over is *declared*, so that `engine/aggregation.py` can turn it into
per-token weights from integer counts known before the forward pass. Methods never see ranks,
devices, files or clocks. Not here: any method.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from megatron_reason.config.base import PluginConfig
from megatron_reason.config.load import refuse
from megatron_reason.errors import ConfigError
from megatron_reason.registry import Registry, suggest
from megatron_reason.schema.batch import (
    ROLE_INDEX,
    GlobalTokens,
    PackedBatch,
    Role,
    Stat,
    TokenStats,
)
from megatron_reason.schema.credit import Credit, GroupOutcome

Mean = Literal[
    "token_mean",
    "seq_mean_token_mean",
    "seq_mean_token_sum",
    "seq_mean_token_sum_norm",
    "sum_over_constant",
    "group_mean_token_mean",
]
"""How a term is averaged, always over the global batch (`Term.constant` is L):
token_mean               sum over tokens / number of tokens (DAPO)
seq_mean_token_mean      mean over sequences of their token means (GRPO as first published, GSPO)
seq_mean_token_sum       mean over sequences of their token sums
seq_mean_token_sum_norm  mean over sequences of their token sums / L (Dr.GRPO)
sum_over_constant        sum over tokens / L, not divided by sequences (LUFFY's code and its kin)
group_mean_token_mean    mean over prompts of the token mean within a prompt (LESE)
"""
ChunkMean = Literal[Mean, "chunk_mean_token_mean"]
"""Those, and what released code does to its micro-batches, without depending on the layout:
chunk_mean_token_mean    mean over sequences of the token mean of the chunk that each is in; a chunk
                         is `Term.chunk` neighbours in the order of the global batch
"""


class MethodConfig(PluginConfig):
    """Base of a method's configuration; the method owns its fields."""

    preset: str | None = Field(default=None, exclude=True)
    """Published values to begin with, by name; keys given beside it win. The values are recorded,
    the name is not."""

    @model_validator(mode="before")
    @classmethod
    def _begin_with_preset(cls, raw: object) -> object:
        """Replace the name of a preset by its values, below those that were given."""
        if not isinstance(raw, Mapping) or raw.get("preset") is None:
            return raw
        given = {key: value for key, value in raw.items() if key != "preset"}
        try:
            chosen = preset_of(METHODS.get(_name_of(cls)), raw["preset"])
        except ConfigError as error:
            refuse([(("preset",), error.what, error.way_out)])
        return {**chosen.given(), **given}


class Frozen(StrEnum):
    """Constants per token that must be known before the forward pass of an update."""

    OLD_LOGPROB = "old_logprob"
    """Log-probs under the policy that made the rollouts, by the trainer."""
    ROLLOUT_LOGPROB = "rollout_logprob"
    """Log-probs as the generation engine reported them."""
    REF_LOGPROB = "ref_logprob"
    """Log-probs under a reference model."""
    REF_HIDDEN = "ref_hidden"
    """The reference model's distributions."""
    COEFFICIENTS = "coefficients"
    """What `Method.coefficients` makes of the current policy on the whole global batch."""


@dataclass(frozen=True)
class Needs:
    """What must be there before a method can run; checked before anything starts."""

    roles: frozenset[Role]
    """Roles its data must hold."""
    stats: frozenset[Stat] = frozenset({Stat.LOGPROB})
    """Statistics it uses."""
    frozen: frozenset[Frozen] = frozenset()
    """Constants per token it uses."""
    whole_sequences: bool = False
    """Whether a token's values depend on other tokens of its sequence. Without, the engine may ask
    for the values of any few tokens, and has their gradient before it goes on to the next."""
    optimizer_states: int = 1
    """Sets of moments that its updates step with, of which each says which it takes."""


@dataclass(frozen=True)
class TrainState:
    """What a method may know of the run's progress."""

    update: int
    """Index of the update about to be made, from 0."""
    total_updates: int
    """Updates planned."""
    num_hard: int = 0
    """Prompts that wait in the pool of those that nobody solved."""
    seed: int = 0
    """The run's seed, for methods that draw at random."""


@dataclass(frozen=True)
class UpdatePlan:
    """What one optimizer update consumes: stored sequences, fresh rollouts, or both."""

    counts: Mapping[Role, int] = field(default_factory=dict[Role, int])
    """Sequences of each role, from the table."""
    prompts: int = 0
    """Prompts to answer with fresh rollouts."""
    rollouts_per_prompt: int = 0
    """Rollouts of each of those prompts."""
    hard_demos: int = 0
    """Demonstrations of prompts that nobody solved, newest first."""
    refills: bool = False
    """Whether prompts that contribute nothing are replaced by further ones."""
    optimizer_state: int = 0
    """Which of the method's sets of moments (`Needs.optimizer_states`) steps with the gradient."""
    clip_grad: float | None = None
    """Largest global gradient norm; None takes that of `train.optim`."""
    temperature: float | None = None
    """What the logits are divided by; None takes the method's, that of its rollouts."""


@dataclass(frozen=True)
class Where:
    """Sequences that are not a whole role."""

    name: str
    """What they are called in messages."""
    holds: Callable[[PackedBatch], Tensor]
    """Bool [S]: which sequences of a micro-batch belong; depends on data, not on the model."""


EVERYTHING = Where("all", lambda batch: torch.ones_like(batch.role_S, dtype=torch.bool))
"""Every sequence, whatever its role."""


@dataclass(frozen=True)
class Term:
    """One summand of the loss: coef x mean over some sequences' tokens of the method's values."""

    name: str
    """Key in `token_losses`, and the metric `train/<name>`, or `<name>` if it has a slash."""
    over: Role | Where
    """Sequences whose supervised tokens it covers."""
    mean: ChunkMean
    """Aggregation over the global batch."""
    coef: float = 1.0
    """Factor of the mean; depends on config and step, never on the model's output. A term with
    factor 0 is measured and not trained on."""
    constant: float = 1.0
    """The L of the aggregations that divide by a constant."""
    chunk: int = 1
    """Sequences of a chunk, of the aggregation by chunks."""

    def members_S(self, batch: PackedBatch) -> Tensor:
        """Bool [S]: sequences of `batch` that the term covers."""
        if isinstance(self.over, Where):
            return self.over.holds(batch)
        return batch.role_S == ROLE_INDEX[self.over]

    @property
    def metric(self) -> str:
        """Name under which its mean is logged."""
        return self.name if "/" in self.name else f"train/{self.name}"


@dataclass(frozen=True)
class Preset:
    """Values of a method's settings that somebody published or released."""

    name: str
    """By which `method: {name: ..., preset: ...}` asks for it."""
    values: MethodConfig
    """The settings the source gives, and only those: what is not set keeps its default."""
    source: str
    """Where they stand, in one line."""
    over: MethodConfig | None = None
    """Settings it shares with other presets; its own win."""

    def given(self) -> dict[str, Any]:
        """Settings by name, without those the source does not give."""
        shared = self.over.model_dump(exclude_unset=True) if self.over else {}
        return shared | self.values.model_dump(exclude_unset=True)


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Method(ABC, Generic[C]):
    """Base of all methods; one file in `methods/` each."""

    config: C
    config_class: ClassVar[type[MethodConfig]]
    needs: ClassVar[Needs]
    presets: ClassVar[tuple[Preset, ...]] = ()

    def required(self) -> Needs:
        """Needs under this configuration; override when a setting drops or adds one."""
        return self.needs

    @property
    def temperature(self) -> float:
        """What logits are divided by, as when the rollouts were sampled; 1 without rollouts."""
        return 1.0

    @abstractmethod
    def plan(self, state: TrainState) -> UpdatePlan:
        """Sequences of each role that the coming update takes."""

    @abstractmethod
    def terms(self, state: TrainState) -> Sequence[Term]:
        """Summands of the loss of the coming update."""

    @abstractmethod
    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Unreduced, unmasked values [T] of each term; keys equal the names in `terms`."""

    def credit(self, group: GroupOutcome) -> Credit:
        """What one graded group contributes; a method without rollouts takes its demonstration."""
        return Credit((0.0,) * len(group.rewards), keep_rollouts=False, keep_demo=True)

    def coefficients(self, whole: GlobalTokens, state: TrainState) -> Tensor:
        """[N] constants per token from the whole global batch, for `Frozen.COEFFICIENTS`.

        Args:
            whole: every supervised token of the global batch, in an order that depends on neither
                layout nor packing.
            state: progress of the run.
        """
        del whole, state
        raise NotImplementedError(
            f"{type(self).__name__} asks for {Frozen.COEFFICIENTS} and does not compute them"
        )


METHODS: Registry[type[Method[Any]]] = Registry("method", "megatron_reason.methods")


def method(cls: type[Method[Any]]) -> type[Method[Any]]:
    """Class decorator: register a method under the name its config class defaults to."""
    return METHODS.register(_name_of(cls.config_class))(cls)


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return METHODS.names()


def create_method(name: str, **config: Any) -> Method[Any]:  # noqa: ANN401
    """Method `name` with the given configuration values.

    Raises:
        ConfigError: no such method, or it has no such preset.
    """
    cls = METHODS.get(name)
    if config.get("preset") is not None:
        preset_of(cls, config["preset"])
    return build_method(cls.config_class(name=name, **config))


def preset_of(cls: type[Method[Any]], name: object) -> Preset:
    """The method's preset called `name`.

    Raises:
        ConfigError: it has none of that name; the message offers the nearest names.
    """
    presets = {preset.name: preset for preset in cls.presets}
    if not isinstance(name, str) or name not in presets:
        method_name = _name_of(cls.config_class)
        raise ConfigError(
            "preset",
            f"method '{method_name}' has no preset {name!r}.",
            suggest(str(name), [*presets]) if presets else "It has none: leave the key out.",
        )
    return presets[name]


def build_method(config: MethodConfig) -> Method[Any]:
    """Method for an already validated configuration."""
    return METHODS.get(config.name)(config)


def _name_of(config_class: type[MethodConfig]) -> str:
    name = config_class.model_fields["name"].default
    if not isinstance(name, str):
        raise ConfigError(
            config_class.__name__,
            "a plug-in's configuration must give its own name as the default of 'name'.",
            'Write: name: Literal["my_method"] = "my_method"',
        )
    return name
