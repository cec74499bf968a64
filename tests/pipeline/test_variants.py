import pytest
import yaml

from megatron_reason.errors import ConfigError
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from tests.pipeline.runs import settings, variants


@pytest.fixture
def raw(tmp_path, smollm2):
    return variants(settings(tmp_path, smollm2)).model_dump(mode="json", exclude_none=True)


def given(raw: dict, text: str, **run) -> RunConfig:
    more = yaml.safe_load(text)
    return RunConfig.model_validate(raw | {"run": raw["run"] | run, "variants": more})


WITH_START = """
    school: {table: b, method: {name: sft}, seeds: []}
    one: {table: b, start: school, method: {name: sft}}
    two: {table: c, start: one, method: {name: dft}}
"""


def test_each_variant_is_trained_once_with_each_seed(raw):
    config = given(raw, WITH_START, seeds=[3, 5])
    assert [*config.variants] == ["school", "one_seed3", "two_seed3", "one_seed5", "two_seed5"]
    assert [config.seed_of(name) for name in config.variants] == [42, 3, 3, 5, 5]
    assert [v.repeats for v in config.variants.values()] == [None, "one", "two", "one", "two"]
    starts = [v.start for v in config.variants.values()]
    assert starts == [None, "school", "one_seed3", "school", "one_seed5"]
    hashes = {stage.name: stage.hash for stage in make_plan(config)}
    assert hashes["train-one_seed3"] != hashes["train-one_seed5"]
    assert hashes["train-school"] == {s.name: s.hash for s in make_plan(
        given(raw, WITH_START)
    )}["train-school"]  # fmt: skip


def test_what_was_repeated_is_not_repeated_again(raw):
    config = given(raw, WITH_START, seeds=[3, 5])
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_without_seeds_nothing_changes(raw):
    assert [*given(raw, WITH_START).variants] == ["school", "one", "two"]


@pytest.mark.parametrize(
    ("seeds", "text", "words"),
    [
        ([3, 3], WITH_START, "a seed stands twice"),
        ([3], WITH_START + "    one_seed3: {table: b, method: {name: sft}, seeds: []}\n",
         "'one_seed3' is what one with seed 3 would be called"),
        ([3], WITH_START.replace("name: dft}", "name: dft}, seeds: [4]"),
         "'two' starts from 'one', which has no seed 4"),
    ],
)  # fmt: skip
def test_seeds_that_cannot_be_meant_are_refused(raw, seeds, text, words):
    with pytest.raises(ValueError, match=words):
        given(raw, text, seeds=seeds)


def test_a_mistake_is_told_once_and_of_the_variant_in_the_file(raw, tmp_path):
    from megatron_reason.config.load import load_config

    file = tmp_path / "run.yaml"
    wrong = yaml.safe_load(WITH_START.replace("table: c", "table: nowhere"))
    run = raw["run"] | {"seeds": [3, 5]}
    file.write_text(yaml.safe_dump(raw | {"variants": wrong, "run": run}))
    with pytest.raises(ConfigError) as caught:
        load_config(file, [], RunConfig)
    assert str(caught.value).count("'nowhere'") == 1
    assert "variants.two.table" in str(caught.value)


SCORED = """
    - {stage: count_for_tests, name: a}
    - {stage: mix, name: b, tables: [{table: a, as_role: demo}]}
    - {stage: score, name: scored, table: a, weights: one}
"""


def scored(raw: dict, curate: str, table: str = "b") -> RunConfig:
    one = {"one": {"table": table, "method": {"name": "sft"}}}
    return RunConfig.model_validate(raw | {"curate": yaml.safe_load(curate), "variants": one})


def test_a_stage_that_a_variant_scores_for_comes_after_its_training(raw):
    plan = make_plan(scored(raw, SCORED))
    names = [stage.name for stage in plan]
    assert names == ["a", "b", "train-one", "scored", "eval-base", "eval-one", "report"]
    assert plan[3].inputs == ("a", "train-one")


@pytest.mark.parametrize(
    ("curate", "table", "words"),
    [
        (SCORED.replace("weights: one", "weights: ones"), "b", "no variant is called 'ones'"),
        (SCORED + "    - {stage: mix, name: late, tables: [{table: a, as_role: demo}]}\n", "late",
         "trained on 'late', which no stage before 'scored' writes"),
        (SCORED.replace("as_role: demo}]}", "as_role: demo}], weights: one}"), "a",
         "a stage 'mix' uses no weights"),
        (SCORED + "    - {stage: generate, name: drawn, table: a, weights: one, model: there}\n",
         "b", "'drawn' is given both weights, of 'one', and a model, 'there'"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_had_are_refused(raw, curate, table, words):
    with pytest.raises(ValueError, match=words):
        scored(raw, curate, table)
