import pytest

from megatron_reason.pipeline.execute import execute
from megatron_reason.pipeline.outline import outline
from megatron_reason.pipeline.plan import make_plan
from megatron_reason.pipeline.run_config import RunConfig
from tests.pipeline.runs import settings, variants


@pytest.fixture
def config(tmp_path, smollm2):
    return settings(tmp_path, smollm2)


def lines(config):
    plan = make_plan(config)
    return {s.name: line for s, line in zip(plan, outline(config, plan), strict=True)}


def test_amount_of_work_and_layouts(config):
    raw = variants(config).model_dump()
    raw["launch"] = {"processes": 6}
    raw["train"]["parallel"] = {"tensor_model_parallel_size": 3}
    raw["variants"]["two"]["train"] = {"updates": None, "epochs": 1.5}
    raw["variants"]["two"]["method"] = {"name": "oxa", "preset": "paper"}
    raw["eval"] |= {"max_problems": 7, "benchmarks": ["aime24"]}
    found = lines(RunConfig.model_validate(raw))
    assert found["train-one"].work == "3 updates of 128 demo (sft)"
    assert found["train-one"].method["mean"] == "seq_mean_token_mean"
    assert found["train-two"].method == {
        "name": "oxa", "demos_per_update": 128, "negatives_per_update": 128,
        "suppress_weight": 1e-4, "clamp": "exact",
    }  # fmt: skip
    assert found["train-one"].processes == "TP 3 x PP 1 x DP 2"
    raw["train"]["parallel"] |= {"context_parallel_size": 2}
    shared = lines(RunConfig.model_validate(raw))
    assert shared["train-one"].processes == "TP 3 x PP 1 x CP 2 x DP 1"
    assert found["train-two"].work == "1.5 epochs of 128 demo + 128 negative (oxa)"
    assert found["eval-base"].work == "a, aime24: at most 7 problems x 1 answers"
    assert found["a"].work == found["a"].processes == ""
    assert found["a"].method == {}


def test_states_follow_manifests(config):
    execute(config, to="b")
    raw = config.model_dump()
    raw["curate"] = [raw["curate"][0], {**raw["curate"][1], "text": "new"}, raw["curate"][2]]
    found = lines(RunConfig.model_validate(raw))
    assert [found[name].state for name in "abc"] == ["done", "changed", "to do"]
