"""The models that a run trains: what one is made of, and the same with several seeds.

A variant of a run with `seeds` becomes one variant per seed, `grpo_seed1`, `grpo_seed2`, ..., so
that planning, locking and resuming know nothing of seeds; only the report puts them together again.
Not here: the checks that concern other sections (`run_config.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, Field, SerializeAsAny

from megatron_reason.config.base import Strict
from megatron_reason.config.load import PickedBy
from megatron_reason.config.rollout import RolloutSection
from megatron_reason.config.train import TrainConfig
from megatron_reason.schema.method import METHODS, MethodConfig


def _method_class(name: str) -> type[BaseModel]:
    return METHODS.get(name).config_class


AnyMethod = Annotated[SerializeAsAny[MethodConfig], PickedBy("name", _method_class)]
VariantName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


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
    seeds: tuple[int, ...] | None = None
    """Seeds in place of `run.seeds`; an empty list trains it once, with `run.seed`."""
    seed: int | None = None
    """Seed of its training alone; None takes the run's."""
    repeats: str | None = None
    """Name of the variant of which this is one training of several."""


def repeated(
    variants: Mapping[str, VariantConfig], seeds: Sequence[int]
) -> dict[str, VariantConfig]:
    """The variants, each with several seeds as so many variants, seed after seed.

    Args:
        variants: as they stand in the file; those with a seed of their own stay as they are.
        seeds: of those that name none.

    Raises:
        ValueError: a seed given twice, a name that is taken, or a start that has no such seed.
    """
    seeds_of = {name: _seeds(variant, seeds) for name, variant in variants.items()}
    found = {name: variant for name, variant in variants.items() if not seeds_of[name]}
    for seed in dict.fromkeys(seed for some in seeds_of.values() for seed in some):
        for name, variant in variants.items():
            if seed not in seeds_of[name]:
                continue
            if (own := _named(name, seed)) in variants:
                raise ValueError(f"'{own}' is what {name} with seed {seed} would be called")
            start = variant.start
            if start is not None and seeds_of.get(start):
                if seed not in seeds_of[start]:
                    raise ValueError(f"'{name}' starts from '{start}', which has no seed {seed}")
                start = _named(start, seed)
            changes = {"start": start, "seeds": None, "seed": seed, "repeats": name}
            found[own] = variant.model_copy(update=changes)
    return found


def _seeds(variant: VariantConfig, common: Sequence[int]) -> Sequence[int]:
    if variant.seed is not None:
        return ()
    seeds = common if variant.seeds is None else variant.seeds
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed stands twice among {list(seeds)}")
    return seeds


def _named(name: str, seed: int) -> str:
    return f"{name}_seed{seed}"


def with_starts(name: str, variants: Mapping[str, VariantConfig]) -> Iterator[VariantConfig]:
    """A variant, the one it starts from, and so on; ends at a name that is not there."""
    seen: set[str] = set()
    at: str | None = name
    while at is not None and at not in seen and at in variants:
        seen.add(at)
        yield variants[at]
        at = variants[at].start
