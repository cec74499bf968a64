from contextlib import closing

import pytest

from megatron_reason.config.evaluate import EvalConfig
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.errors import ConfigError, DataError
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.pipeline.measure import Subject, measure, problem_sets
from megatron_reason.schema.records import Message, Problem
from megatron_reason.schema.tables import Kind, read_table, write_table
from tools.make_tiny_model import make_tiny_model


@pytest.fixture
def table(tmp_path):
    problems = [
        Problem((Message("user", f"{i}+{i}?"),), str(2 * i), "sums", split=split)
        for i, split in enumerate(["train", "heldout", "heldout"])
    ]
    write_table(tmp_path / "table", Kind.PROBLEMS, problems)
    return tmp_path / "table"


def test_a_set_is_the_heldout_part_of_its_table(table):
    (problem_set,) = problem_sets(EvalConfig(table="sums"), table)
    assert problem_set.name == "sums"
    assert problem_set.problems["answer"].to_list() == ["2", "4"]


def test_a_table_without_heldout_problems_is_refused(tmp_path):
    write_table(tmp_path, Kind.PROBLEMS, [Problem((Message("user", "1+1?"),), "2", "sums")])
    with pytest.raises(DataError, match="heldout_fraction"):
        problem_sets(EvalConfig(table="sums"), tmp_path)


def test_benchmarks_come_from_their_folder_with_their_own_reward(tmp_path):
    lines = [f'{{"problem": "What is {i} + 0?", "answer": "{i}"}}' for i in range(30)]
    (tmp_path / "aime24.jsonl").write_text("\n".join(lines))
    config = EvalConfig(benchmarks=("aime24",), benchmark_folder=tmp_path)
    (problem_set,) = problem_sets(config, None)
    assert (problem_set.name, len(problem_set.problems)) == ("aime24", 30)
    assert (problem_set.reward, str(problem_set.folder)) == ("math_verify", "aime24")
    with pytest.raises(ConfigError, match="Did you mean"):
        problem_sets(EvalConfig(benchmarks=("aime42",)), None)
    rewards = {"aime24": "oat"}
    other = config.model_copy(update={"reward_of": rewards, "benchmark_reward": "plain"})
    assert problem_sets(other, None)[0].reward == "oat"
    for wrong, key in (({"aime24": "oatt"}, "reward_of.aime24"), ({"aime42": "oat"}, "reward_of")):
        with pytest.raises(ConfigError, match=rf"eval\.{key}"):
            problem_sets(config.model_copy(update={"reward_of": wrong}), None)
    with pytest.raises(ConfigError, match=r"eval\.benchmark_reward"):
        problem_sets(config.model_copy(update={"benchmark_reward": "oatt"}), None)


@pytest.mark.parametrize("num_entropy_responses", [0, 3])
def test_entropy_is_asked_of_the_workers_and_entered(table, tmp_path, num_entropy_responses):
    model = make_tiny_model("LlamaForCausalLM", tmp_path / "model")
    config = EvalConfig(
        table="sums", num_entropy_responses=num_entropy_responses,
        sampling=SamplingConfig(samples_per_prompt=2, max_tokens=4),
    )  # fmt: skip
    subject = Subject(
        model, ModelConfig(path=str(model)), TemplateConfig(), ParallelConfig(), seed=3
    )
    jobs = []

    def answer(job):
        jobs.append(job)
        rows = read_table(job.generations, Kind.GENERATIONS).head(job.num_responses)
        rows.select("problem_id", "sample_index").with_columns(mean_entropy=0.5).write_parquet(
            job.output / "entropy.parquet"
        )

    engine_config = EngineConfig(name="transformers", max_model_len=256)
    with closing(HFEngine(model, engine_config, dtype="float32")) as engine:
        summary = measure(
            subject, problem_sets(config, table)[0], config=config, engine=engine,
            output=tmp_path / "out", run_job=answer,
        )  # fmt: skip
    assert summary.num_samples == 4
    assert len(jobs) == (1 if num_entropy_responses else 0)
    generations = read_table(tmp_path / "out", Kind.GENERATIONS)
    assert generations["mean_entropy"].count() == num_entropy_responses
    assert ("mean_entropy" in summary.metrics) == bool(num_entropy_responses)
    for job in jobs:
        assert (job.model_folder, job.seed, job.num_responses) == (model, 3, 3)
        assert len(read_table(job.problems, Kind.PROBLEMS)) == 2
