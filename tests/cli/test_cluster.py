import json
import os
from pathlib import Path

import pytest

from megatron_reason.errors import ConfigError, LaunchError
from tests.cli.test_app import mreason

ROOT = Path(__file__).parent.parent.parent
RECIPE = "examples/oxa/full_7b.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_plan_shows_the_jobs_and_their_files_and_submits_nothing():
    shown = mreason("plan", RECIPE, "--on", "h100", "--set", "train.epochs=9").stdout
    assert "7 jobs on h100" in shown
    assert shown.count("#!/usr/bin/env bash") == 7
    assert "mreason_job h100 run examples/oxa/full_7b.yaml --set train.epochs=9 --only" in shown
    assert "#SBATCH --partition=h100" in shown


def test_run_submits_each_job_after_those_it_waits_for(tmp_path, monkeypatch):
    # Writes down what it is told and numbers the jobs; SLURM itself is in tests/slurm.
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/told\nwc -l < {tmp_path}/told\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    words = ["run", RECIPE, "--on", "h100", "--set", f"run.dir={tmp_path}/runs", "--json"]
    found = json.loads(mreason(*words, "--from", "eval-base").stdout)
    assert list(found["jobs"].values()) == ["1", "2", "3", "4"]
    told = (tmp_path / "told").read_text().splitlines()
    assert "--dependency=afterok:2 " in told[2]
    assert "--dependency=afterok:1:3 " in told[3]
    assert len(list((tmp_path / "runs" / "oxa-full-7b" / "slurm").glob("*.sh"))) == 4


def test_a_cluster_nobody_knows_and_a_machine_without_slurm(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="'moon'"):
        mreason("run", RECIPE, "--on", "moon")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="not on this machine"):
        mreason("run", RECIPE, "--on", "h100", "--set", f"run.dir={tmp_path}/runs")
