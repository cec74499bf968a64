import json

import pytest

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.curation.score import ScoreConfig
from megatron_reason.errors import LaunchError
from megatron_reason.pipeline.workers import launcher_for, run_on_ranks
from megatron_reason.training.jobs import StageJob


def test_a_cluster_that_nobody_knows_is_refused():
    with pytest.raises(LaunchError, match="'moon'"):
        launcher_for(LaunchConfig(cluster="moon"))


def test_a_worker_that_cannot_go_on_says_why(tmp_path):
    job = StageJob(
        model=ModelConfig(path="none"),
        model_folder=tmp_path / "none",
        output=tmp_path / "out",
        seed=0,
        stage=ScoreConfig(name="scored", table="graded"),
        inputs={"graded": tmp_path / "graded"},
        template=TemplateConfig(),
    )
    with pytest.raises(LaunchError) as caught:
        run_on_ranks(job, "scored", LaunchConfig(), tmp_path)
    assert "stage 'scored'" in caught.value.where
    assert caught.value.what.startswith("SchemaError")
    assert "there is no table of samples here" in caught.value.what
    assert json.loads((tmp_path / "jobs" / "scored.json").read_text())["kind"] == "stage"
    assert str(tmp_path / "logs" / "scored.log") in caught.value.way_out
