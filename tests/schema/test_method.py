import pytest

from megatron_reason.errors import ConfigError
from megatron_reason.schema.batch import Role
from megatron_reason.schema.method import METHODS, TrainState, create_method, method_names


def test_methods_are_discovered_and_built_by_name() -> None:
    assert {"oxa", "sft"} <= set(method_names())
    assert create_method("sft", demos_per_update=3).config.demos_per_update == 3
    with pytest.raises(ConfigError, match="Did you mean 'oxa'"):
        create_method("oxaa")


@pytest.mark.parametrize("name", method_names())
def test_a_method_keeps_its_contract(name: str) -> None:
    method = create_method(name)
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
