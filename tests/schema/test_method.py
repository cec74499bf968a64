from typing import Any

import pytest
from pydantic import ValidationError

from megatron_reason.errors import ConfigError
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import (
    METHODS,
    TrainState,
    create_method,
    method_names,
    preset_of,
)


def test_methods_are_discovered_and_built_by_name() -> None:
    assert {"oxa", "sft"} <= set(method_names())
    assert create_method("sft", demos_per_update=3).config.demos_per_update == 3
    with pytest.raises(ConfigError, match="Did you mean 'oxa'"):
        create_method("oxaa")


PRESETS = [(name, preset.name) for name, cls in METHODS for preset in cls.presets]


@pytest.mark.parametrize(("name", "preset"), [*((name, None) for name in method_names()), *PRESETS])
def test_a_method_keeps_its_contract(name: str, preset: str | None) -> None:
    method = create_method(name, preset=preset)
    state = TrainState(0, 10)
    plan, roles = method.plan(state), method.required().roles
    assert set(plan.counts) <= roles
    assert (Role.ROLLOUT in roles) == bool(plan.prompts) == bool(plan.rollouts_per_prompt)
    assert {term.over for term in method.terms(state) if isinstance(term.over, Role)} <= roles
    assert len({term.name for term in method.terms(state)}) == len(method.terms(state))
    source = __import__(METHODS.get(name).__module__, fromlist=["_"]).__doc__ or ""
    assert "Source:" in source
    assert "eq." in source or "eqs." in source or "algorithm" in source
    fields = METHODS.get(name).config_class.model_fields
    assert all(field.description for field in fields.values())


def resolved(name: str, **config: Any) -> dict[str, Any]:
    return create_method(name, **config).config.model_dump()


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_is_what_its_source_gives_and_defaults_beside(name: str, preset: str) -> None:
    cls = METHODS.get(name)
    chosen = preset_of(cls, preset)
    assert isinstance(chosen.values, cls.config_class)
    given, defaults = chosen.given(), resolved(name)
    assert given
    assert given.keys() <= defaults.keys() - {"name"}
    assert resolved(name, preset=preset) == defaults | given
    assert chosen.source.strip()
    assert "\n" not in chosen.source


@pytest.mark.parametrize("name", method_names())
def test_every_method_has_presets_and_no_two_are_the_same(name: str) -> None:
    presets = METHODS.get(name).presets
    assert presets
    found = [resolved(name, preset=preset.name) for preset in presets]
    assert all(values not in found[:index] for index, values in enumerate(found))
    assert len({preset.name for preset in presets}) == len(presets)


def test_values_given_beside_a_preset_win_and_only_values_are_recorded() -> None:
    method = create_method("oxa", preset="paper", suppress_weight=0.5)
    assert (method.config.clamp, method.config.suppress_weight) == ("exact", 0.5)
    assert method.config.preset is None
    dumped = method.config.model_dump(mode="json")
    assert "preset" not in dumped
    assert dumped == resolved("oxa", clamp="exact", suppress_weight=0.5)
    assert method.config == create_method("oxa", clamp="exact", suppress_weight=0.5).config


@pytest.mark.parametrize("wrong", ["papper", 3])
def test_an_unknown_preset_is_refused_with_the_valid_ones(wrong: object) -> None:
    near = "Did you mean 'paper'" if wrong == "papper" else "Valid names: mle, mle_150k, paper"
    with pytest.raises(ConfigError, match=near):
        create_method("oxa", preset=wrong)
    with pytest.raises(ValidationError, match="method 'oxa' has no preset"):
        METHODS.get("oxa").config_class.model_validate({"name": "oxa", "preset": wrong})
