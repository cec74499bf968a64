"""The contract of a training method: declared needs and terms, and one pure function.

A method sees `TokenStats` and a `PackedBatch` and returns one unreduced value per token and term.
What a term is averaged over is *declared*, so that `engine/aggregation.py` can turn it into
per-token weights from integer counts known before the forward pass. Methods never see ranks,
devices, files or clocks. Not here: any method.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

from torch import Tensor

from megatron_reason.config.base import PluginConfig
from megatron_reason.errors import ConfigError
from megatron_reason.registry import Registry
from megatron_reason.schema.batch import PackedBatch, Role, Stat, TokenStats

Mean = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum"]
"""How a term is averaged (METHODS section 1), always over the global batch:
token_mean           sum over tokens / number of tokens
seq_mean_token_mean  mean over sequences of their token means
seq_mean_token_sum   mean over sequences of their token sums
"""


class MethodConfig(PluginConfig):
    """Base of a method's configuration; the method owns its fields."""


@dataclass(frozen=True)
class Needs:
    """What must be there before a method can run; checked before anything starts."""

    roles: frozenset[Role]
    """Roles its table must hold."""
    stats: frozenset[Stat] = frozenset({Stat.LOGPROB})
    """Statistics it differentiates."""


@dataclass(frozen=True)
class TrainState:
    """What a method may know of the run's progress."""

    update: int
    """Index of the update about to be made, from 0."""
    total_updates: int
    """Updates planned."""


@dataclass(frozen=True)
class UpdatePlan:
    """What one optimizer update consumes."""

    counts: Mapping[Role, int]
    """Sequences of each role."""


@dataclass(frozen=True)
class Term:
    """One summand of the loss: coef x mean over a role's tokens of the method's values."""

    name: str
    """Key in `token_losses`, and the metric `train/<name>`."""
    over: Role
    """Role whose supervised tokens it covers."""
    mean: Mean
    """Aggregation over the global batch."""
    coef: float = 1.0
    """Factor of the mean; depends on config and step, never on the model's output."""


C = TypeVar("C", bound=MethodConfig)


@dataclass(frozen=True)
class Method(ABC, Generic[C]):
    """Base of all methods; one file in `methods/` each."""

    config: C
    config_class: ClassVar[type[MethodConfig]]
    needs: ClassVar[Needs]

    def required(self) -> Needs:
        """Needs under this configuration; override when a setting drops one."""
        return self.needs

    @abstractmethod
    def plan(self, state: TrainState) -> UpdatePlan:
        """Sequences of each role that the coming update takes."""

    @abstractmethod
    def terms(self, state: TrainState) -> Sequence[Term]:
        """Summands of the loss of the coming update."""

    @abstractmethod
    def token_losses(self, stats: TokenStats, batch: PackedBatch) -> Mapping[str, Tensor]:
        """Unreduced, unmasked values [T] of each term; keys equal the names in `terms`."""


METHODS: Registry[type[Method[Any]]] = Registry("method", "megatron_reason.methods")


def method(cls: type[Method[Any]]) -> type[Method[Any]]:
    """Class decorator: register a method under the name its config class defaults to."""
    return METHODS.register(_name_of(cls.config_class))(cls)


def method_names() -> list[str]:
    """Names of all methods, sorted."""
    return METHODS.names()


def create_method(name: str, **config: Any) -> Method[Any]:  # noqa: ANN401
    """Method `name` with the given configuration values."""
    return build_method(METHODS.get(name).config_class(name=name, **config))


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
