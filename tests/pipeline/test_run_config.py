import sys

import pytest
import yaml

from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError
from megatron_reason.pipeline.run_config import RunConfig

WHOLE = """
run: {name: tiny}
model: {path: smollm2-135m}
engine: {max_model_len: 256}
launch: {processes: 2}
curate:
  - {stage: ingest, name: teacher, source: "reasoning_gym:gsm_symbolic", size: 20}
  - {stage: grade, name: graded, table: teacher}
  - {stage: select, name: demos, table: graded, role: demo, where: correct, count: 4,
     rule: {name: random}}
  - {stage: mix, name: mixed, tables: [{table: demos}]}
train:
  updates: 4
  optim: {lr: 1.0e-4}
variants:
  sft: {table: mixed, method: {name: sft, demos_per_update: 4}}
  fast:
    table: mixed
    method: {name: oxa, negatives_per_update: 0}
    train: {optim: {lr: 1.0e-2}}
eval: {table: teacher, sampling: {max_tokens: 64}}
"""


@pytest.fixture
def load(tmp_path):
    def load(*overrides, text=WHOLE):
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return load_config(path, overrides, RunConfig)

    return load


def refusal(load, *overrides, **text):
    with pytest.raises(ConfigError) as caught:
        load(*overrides, **text)
    return str(caught.value)


def test_plugins_get_their_own_configuration(load):
    config = load()
    assert [stage.stage for stage in config.curate] == ["ingest", "grade", "select", "mix"]
    assert config.curate[2].rule.name == "random"
    assert config.variants["sft"].method.demos_per_update == 4
    assert config.variants["fast"].method.suppress_weight == 1e-4


def test_variant_lays_its_training_settings_over_the_common_ones(load):
    config = load("train.optim.weight_decay=0.5")
    assert config.train_of("sft") == config.train
    fast = config.train_of("fast")
    assert (fast.optim.lr, fast.optim.weight_decay, fast.updates) == (1e-2, 0.5, 4)


def test_a_preset_is_replaced_by_its_values(load):
    config = load("variants.fast.method.preset=paper", "variants.sft.method.preset=srft")
    assert config.variants["fast"].method.clamp == "exact"
    assert config.variants["fast"].method.negatives_per_update == 0  # given in the file
    sft = config.variants["sft"].method
    assert (sft.mean, sft.demos_per_update) == ("token_mean", 4)
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert "preset" not in written
    assert load(text=written) == config


def test_what_is_written_out_reads_back_the_same(load):
    config = load()
    written = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    assert load(text=written) == config


@pytest.mark.parametrize(
    ("override", "key", "words"),
    [
        ("curate.demos.table=gradde", "curate.2", ["'gradde'", "Did you mean 'graded'?"]),
        ("curate.graded.name=teacher", "curate.1.name", ["too"]),
        ("curate.graded.name=report", "curate.1.name", ["'report'"]),
        ("curate.graded.stage=greed", "curate.1.stage", ["Did you mean 'grade'?"]),
        ("curate.demos.rule.name=radnom", "curate.2.rule", ["Did you mean 'random'?"]),
        ("variants.sft.table=mixt", "variants.sft.table", ["Did you mean 'mixed'?"]),
        ("variants.sft.method.name=stf", "variants.sft.method.name", ["Did you mean 'sft'?"]),
        ("variants.sft.method.preset=srtf", "variants.sft.method.preset",
         ["no preset 'srtf'", "Did you mean 'srft'?"]),
        ("variants.sft.method.presets=srft", "variants.sft.method.presets", ["'preset'"]),
        ("variants.sft.method.demos_per_updates=4", "variants.sft.method.demos_per_updates",
         ["Did you mean 'demos_per_update'?"]),
        ("variants.fast.method.negatives_per_update=4", "variants.fast.table",
         ["role negative", "'mixed' has demo"]),
        ("variants.fast.train.optim.min_rl=1", "variants.fast.train.optim.min_rl", ["'min_lr'"]),
        ("variants.base={table: mixed, method: {name: sft}}", "variants.base", ["before training"]),
        ("train.parallel.tensor_model_parallel_size=3", "train.parallel", ["2 processes", "TP 3"]),
        ("eval.table=teachers", "eval.table", ["Did you mean 'teacher'?"]),
        ("eval.sampling.max_tokens=256", "eval.sampling.max_tokens", ["max_model_len 256"]),
        ("eval.benchmarks=[aime24, aime52]", "eval.benchmarks.1", ["'aime52'", "'aime25'"]),
        ("eval.benchmark_reward=srf", "eval.benchmark_reward", ["'srf'", "'srft'"]),
        ("eval.reward_of.minerva=qwen_maths", "eval.reward_of.minerva", ["'qwen_math'"]),
        ("eval.reward_of.minrva=oat", "eval.reward_of.minrva", ["'minerva'"]),
        ("eval.samples_of.minrva=4", "eval.samples_of.minrva", ["'minerva'"]),
        ("eval.reward=mathverify", "eval.reward", ["Did you mean 'math_verify'?"]),
        ("curate.graded.reward=numerics", "curate.1.reward", ["Did you mean 'numeric'?"]),
        ("plugins=[nowhere_to_be_found]", "plugins.0", ["nowhere_to_be_found"]),
    ],
)  # fmt: skip
def test_contradictions_name_the_key(load, override, key, words):
    message = refusal(load, override)
    assert f"  {key}\n" in message
    for word in words:
        assert word in message


def test_generation_longer_than_the_engine_is_refused(load):
    text = WHOLE.replace(
        "train:\n  updates",
        "  - {stage: generate, name: self, table: teacher, sampling: {max_tokens: 300}}\n"
        "train:\n  updates",
    )
    assert "curate.4.sampling.max_tokens" in refusal(load, text=text)


def test_variants_without_training_settings_are_refused(load):
    text = WHOLE.replace("train:\n  updates: 4\n  optim: {lr: 1.0e-4}\n", "")
    message = refusal(load, "variants.fast.train.updates=4", text=text)
    assert "  variants.sft\n" in message
    assert "no training settings" in message


def test_unknown_common_key_is_reported_once_where_it_stands(load):
    message = refusal(load, text=WHOLE.replace("  updates: 4", "  updates: 4\n  epoch: 3"))
    assert message.count("epoch'") == 1
    assert "  train.epoch\n" in message


def test_plugin_modules_are_imported_before_methods_are_looked_up(load, tmp_path, monkeypatch):
    (tmp_path / "my_method_plugin.py").write_text(
        "from typing import Literal\n"
        "from megatron_reason.methods.sft import SFT, SFTConfig\n"
        "from megatron_reason.schema.method import method\n"
        "class MyConfig(SFTConfig):\n"
        "    name: Literal['my_method'] = 'my_method'\n"
        "@method\n"
        "class MyMethod(SFT):\n"
        "    config_class = MyConfig\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        config = load("plugins=[my_method_plugin]", "variants.sft.method.name=my_method")
        assert type(config.variants["sft"].method).__name__ == "MyConfig"
    finally:
        from megatron_reason.schema.method import METHODS

        METHODS._entries.pop("my_method", None)
        sys.modules.pop("my_method_plugin", None)


LIVE = (
    "variants.grpo={method: {name: grpo}, rollout: {max_tokens: 99}, start: sft}",
    "rollout={problems: teacher, max_tokens: 100, reward: numeric}",
)


def test_rollout_settings_are_laid_over_the_common_ones(load):
    config = load(*LIVE)
    rollout = config.rollout_of("grpo")
    assert (rollout.problems, rollout.max_tokens, rollout.reward) == ("teacher", 99, "numeric")
    assert config.rollout_of("sft") is None
    assert config.learns_online("grpo")
    assert not config.learns_online("sft")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.problems=teachr", "Did you mean 'teacher'"),
        ("rollout.reward=numerc", "Did you mean 'numeric'"),
        ("rollout.max_tokens=256", "do not fit into engine.max_model_len 256"),
        ("rollout.top_p=0.9", "rollouts are drawn from the whole distribution"),
        ("rollout.min_p=0.1", "Leave it out"),
        ("variants.grpo.rollout={top_k: 20}", "rollouts are drawn from the whole distribution"),
        ("rollout.temperature=0.7", "method.temperature"),
        ("rollout.monitor={table: nowhere}", "no stage of 'curate' is called 'nowhere'"),
        ("variants.grpo.start=sfd", "Did you mean 'sft'"),
        ("variants.grpo.start=grpo", "no earlier variant is called 'grpo'"),
        ("variants.grpo.method.name=srft", "needs role demo, and there is no table"),
        (
            "variants.grpo={method: {name: grpo, tis: none}, rollout: {steps_ahead: 1}}",
            "does not correct for it",
        ),
        ("train={epochs: 1, optim: {lr: 1.0e-4}}", "a method with rollouts has no epochs"),
        ("train.batch.max_tokens_per_microbatch=200", "would not fit into a micro-batch of 200"),
        (
            "train={updates: 2, optim: {lr: 1.0e-4}, parallel: {context_parallel_size: 2}, "
            "batch: {max_tokens_per_microbatch: 255}}",
            "would not fit into a micro-batch of 255",
        ),
    ],
)
def test_rollouts_that_cannot_be_meant_are_refused(load, override, message):
    assert message in refusal(load, *LIVE, override)


def test_rollouts_need_to_know_what_is_answered(load):
    assert "nothing says which problems are answered" in refusal(
        load, "variants.grpo={method: {name: grpo}}"
    )


def test_one_step_ahead_with_a_correction_is_accepted(load):
    config = load(*LIVE, "variants.grpo.rollout.steps_ahead=1",
                  "variants.grpo.method={name: grpo, tis: token}")  # fmt: skip
    assert config.rollout_of("grpo").steps_ahead == 1
