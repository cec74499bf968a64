import json

import pytest

from megatron_reason.errors import ConfigError
from megatron_reason.schema.method import METHODS
from tests.cli.test_app import mreason


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("methods", "oxa"), ("models", "Qwen2ForCausalLM"), ("rewards", "math_verify"),
        ("stages", "select"), ("benchmarks", "aime24"), ("templates", "qwen_no_system"),
    ],
)  # fmt: skip
def test_plug_ins_are_listed_and_each_can_be_shown(kind, name):
    assert name in mreason("list", kind).output
    names = json.loads(mreason("list", kind, "--json").output)
    for each in names:
        assert mreason("show", kind.removesuffix("s"), each).output.strip()


def test_methods_are_listed_with_formula_source_and_needs():
    listed = mreason("list", "methods").output
    names = json.loads(mreason("list", "methods", "--json").output)
    for what in ("Loss. ", "Source: ", "Needs: "):
        assert listed.count(f"    {what}") == len(names)
    assert "L = mean -log p(x_t) over truths + alpha mean" in listed
    assert "Source: SRFT (arXiv 2506.19767)" in listed
    assert "Needs: demo, negative." in listed
    assert "Data." not in listed


def test_show_prints_needs_and_documented_settings():
    shown = mreason("show", "method", "oxa").output
    assert "arXiv 2603.16206" in shown
    assert "needs roles: demo, negative" in shown
    assert "suppress_weight: float = 0.0001" in shown
    assert "Weight of the unlikelihood term" in shown
    as_json = json.loads(mreason("show", "method", "oxa", "--json").output)
    assert as_json["needs"]["roles"] == ["demo", "negative"]


def test_a_reward_is_shown_with_what_it_grades_by():
    assert "harness released with Qwen2.5-Math" in mreason("show", "reward", "qwen_math").output
    listed = json.loads(mreason("list", "rewards", "--json").output)
    # Other tests may have registered rewards of their own.
    assert "harness" in listed["qwen_math"]
    assert "math-verify" in listed["math_verify"]


def test_show_prints_presets_with_their_sources():
    shown = mreason("show", "method", "oxa").output
    assert "  released: OXA's released code" in shown
    assert 'suppress_weight: 0.0001, clamp: "official"' in shown
    presets = json.loads(mreason("show", "method", "oxa", "--json").output)["presets"]
    assert presets[0]["name"] == "paper"
    assert presets[0]["values"]["clamp"] == "exact"
    assert json.loads(mreason("show", "stage", "select", "--json").output)["presets"] == []


@pytest.mark.parametrize("kind", ["method", "stage"])
def test_every_setting_has_a_meaning(kind):
    for name in json.loads(mreason("list", f"{kind}s", "--json").output):
        for setting in json.loads(mreason("show", kind, name, "--json").output)["settings"]:
            assert setting["meaning"], f"{kind} {name}: {setting['name']} has no docstring"


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'methods'"):
        mreason("list", "metods")
    with pytest.raises(ConfigError, match="Did you mean 'oxa'"):
        mreason("show", "method", "oxaa")
    assert "sft" in METHODS.names()


def test_doctor_finds_what_this_environment_has():
    findings = {f["what"]: f for f in json.loads(mreason("doctor", "--json").output)}
    assert findings["torch"]["verdict"] == "ok"
    assert findings["megatron-core"]["found"].startswith("megatron-core 0.")
    assert findings["device"]["found"]
    for finding in findings.values():
        assert finding["verdict"] == "ok" or finding["way_out"]
