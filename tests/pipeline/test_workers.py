import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_reason.config.launch import LaunchConfig
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.template import TemplateConfig
from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
from megatron_reason.curation.score import ScoreConfig
from megatron_reason.errors import ConfigError, LaunchError
from megatron_reason.methods.sft import SFTConfig
from megatron_reason.pipeline.workers import advice, launcher_for, run_on_ranks
from megatron_reason.training.jobs import StageJob, TrainJob

ROOT = Path(__file__).parent.parent.parent


def test_a_cluster_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="'moon'"):
        launcher_for(LaunchConfig(cluster="moon"))


def test_several_nodes_need_a_cluster():
    with pytest.raises(ConfigError, match="this machine is one"):
        launcher_for(LaunchConfig(nodes=2))


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


def test_a_training_that_ran_out_of_memory_is_told_what_would_fit(smollm2):
    job = TrainJob(
        model=ModelConfig(path=str(smollm2)), model_folder=smollm2, output=Path("out"), seed=0,
        method=SFTConfig(), table=Path("table"),
        train=TrainConfig(
            updates=1, optim=OptimConfig(lr=1e-4), batch=BatchConfig(max_tokens_per_microbatch=8192)
        ),
    )  # fmt: skip
    said = advice(job, LaunchConfig(processes=6)).splitlines()
    assert "were predicted (TP 1, PP 1, DP 6, 8192 tokens)" in said[0]
    assert len(said) == 4
    assert "max_tokens_per_microbatch: 4096" in said[1]
    assert "recompute: selective" in said[2]


def test_workers_import_the_plug_ins_of_a_run(tmp_path):
    (tmp_path / "my_stage_plugin.py").write_text(
        "from typing import Literal\n"
        "from megatron_reason.curation.base import Stage, StageConfig, stage\n"
        "class MineConfig(StageConfig):\n"
        "    stage: Literal['mine'] = 'mine'\n"
        "    size: int = 0\n"
        "@stage\n"
        "class Mine(Stage[MineConfig]):\n"
        "    config_class = MineConfig\n"
    )
    job = {
        "kind": "stage", "plugins": ["my_stage_plugin"], "model": {"path": "none"},
        "model_folder": "none", "output": "out", "seed": 0, "inputs": {}, "template": {},
        "stage": {"stage": "mine", "name": "x", "size": 3},
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    reading = (
        "import sys; from pathlib import Path\n"
        "from megatron_reason.training.jobs import read_job\n"
        "print(read_job(Path(sys.argv[1])).stage.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", reading, str(tmp_path / "job.json")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "3"
