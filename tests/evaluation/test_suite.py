from pathlib import Path

import pytest

from megatron_reason.config.load import load_config
from megatron_reason.errors import ConfigError
from megatron_reason.evaluation.base import BENCHMARKS
from megatron_reason.evaluation.suite import SUITES, suite_settings
from megatron_reason.pipeline.alone import EvalSettings
from megatron_reason.pipeline.run_config import RunConfig
from megatron_reason.rewards.base import REWARDS

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def settings_of(*words: str, overrides: tuple[str, ...] = ()) -> EvalSettings:
    return load_config(None, ["model.path=m", *suite_settings(words), *overrides], EvalSettings)


@pytest.mark.parametrize("name", SUITES.names())
def test_every_suite_is_a_valid_evaluation(name: str):
    entry, settings = SUITES.get(name), settings_of(name)
    assert settings.eval.benchmarks == tuple(entry.samples)
    for benchmark, count in entry.samples.items():
        BENCHMARKS.get(benchmark)
        drawn = settings.eval.samples_of.get(benchmark, settings.eval.sampling.samples_per_prompt)
        assert drawn == count
    assert settings.eval.sampling.max_tokens <= settings.engine.max_model_len
    assert settings.template == entry.template
    for reward in (entry.reward, *entry.reward_of.values()):
        if reward is not None:
            REWARDS.get(reward)
    assert settings.eval.reward_of == entry.reward_of
    assert set(entry.reward_of) <= set(entry.samples)


@pytest.mark.parametrize(
    ("name", "benchmark", "samples", "temperature", "top_p", "max_tokens"),
    [
        ("oxa", "aime24", 128, 0.6, 0.95, 32768),
        ("oxa", "minerva", 64, 0.6, 0.95, 32768),
        ("srft", "amc83", 32, 0.6, 1.0, 8192),
        ("srft", "math500", 1, 0.6, 1.0, 8192),
        ("lese", "aime25", 32, 0.6, 1.0, 8192),
        ("dr", "amc23", 16, 1.0, 1.0, 4096),
    ],
)
def test_protocols_of_the_papers(name, benchmark, samples, temperature, top_p, max_tokens):
    config = settings_of(name).eval
    assert config.samples_of.get(benchmark, config.sampling.samples_per_prompt) == samples
    sampling = config.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (
        temperature, top_p, max_tokens,
    )  # fmt: skip


def test_a_suite_takes_further_benchmarks_and_overrides_win():
    settings = settings_of("oxa, gsm8k", "math500", overrides=("eval.sampling.temperature=1",))
    assert settings.eval.benchmarks[-2:] == ("gsm8k", "math500")
    assert settings.eval.sampling.temperature == 1
    assert settings_of("oxa", overrides=("eval.benchmarks=[aime24]",)).eval.benchmarks == (
        "aime24",
    )


def test_names_alone_keep_the_usual_sampling(tmp_path):
    config = settings_of("aime24,aime24", f"{tmp_path}/mine.jsonl").eval
    assert config.benchmarks == ("aime24", f"{tmp_path}/mine.jsonl")
    assert config.sampling.samples_per_prompt == 1


def test_wrong_words_are_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'aime25' or 'aime24'"):
        suite_settings(["aime26"])
    with pytest.raises(ConfigError, match="oxa and dr sample and grade in different ways"):
        suite_settings(["oxa,dr"])
    with pytest.raises(ConfigError, match="at least 1"):
        settings_of("aime24", overrides=("eval.samples_of={aime24: 0}",))


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("oxa/full_7b", "oxa"), ("lese/lese_1_5b", "lese"), ("srft/srft_7b", "srft"),
        ("baselines/luffy_7b", "srft"), ("dr/dr_dft_7b", "dr"),
        ("dr/dr_dft_llama_8b", "dr_llama"),
    ],
)  # fmt: skip
def test_recipes_measure_as_the_suite_of_their_paper_does(recipe: str, name: str):
    config = load_config(EXAMPLES / f"{recipe}.yaml", [], RunConfig)
    suite = settings_of(name)
    fields = ("benchmarks", "sampling", "samples_of", "benchmark_reward", "reward_of")
    assert all(getattr(config.eval, field) == getattr(suite.eval, field) for field in fields)
    # Data Rewriting trains in the tokenizer's own template and measures in another.
    assert config.template == suite.template or name.startswith("dr")
