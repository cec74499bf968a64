import os
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError
from megatron_reason.launch.batch import BatchJob, render, submit
from megatron_reason.launch.clusters import cluster_names, load_cluster

ROOT = Path(__file__).parent.parent.parent
JOB = BatchJob("run.a", ("run", "a b.yaml", "--only", "a"), nodes=2)


def options(script):
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [line.removeprefix("#SBATCH ") for line in lines]


def test_a_script_says_what_the_cluster_wants():
    cluster = ClusterConfig(
        partition="long", host_partition="cpu", account="us", gpus_per_node=4, time="2-00:00:00",
        save_before_s=60, container="image", mounts=("/a:/b", "/c:/d"),
        sbatch_options=("--mem=0",),
    )  # fmt: skip
    script = render(JOB, cluster, "mine", Path("runs/run"))
    assert {
        "--partition=long", "--account=us", "--nodes=2", "--gpus-per-node=4", "--requeue",
        "--time=2-00:00:00", "--signal=B:USR1@60", "--exclusive", "--mem=0",
        "--container-image=image", "--container-mounts=/a:/b,/c:/d",
    } <= set(options(script))  # fmt: skip
    last = script.splitlines()[-1]
    assert shlex.split(last) == ["mreason_job", "mine", "run", "a b.yaml", "--only", "a"]
    on_host = BatchJob("run.b", ("run",), nodes=1, on_host=True)
    found = options(render(on_host, cluster, "mine", Path("runs/run")))
    assert "--partition=cpu" in found
    assert not [line for line in found if "gpus" in line or "exclusive" in line]


def test_bash_accepts_a_script_of_every_cluster(monkeypatch):
    monkeypatch.chdir(ROOT)
    for name in cluster_names():
        script = render(JOB, load_cluster(name), name, Path("runs/run"))
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_jobs_wait_for_each_other_and_are_withdrawn_together(tmp_path, monkeypatch):
    # sbatch and scancel that only write down what they are told: the queue itself is SLURM's.
    for name, body in {
        "sbatch": 'case $* in *bad*) echo "invalid partition" >&2; exit 1;; esac; echo "$#;here"',
        "scancel": "",
    }.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/told\n{body}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = [BatchJob("one", ("run",), 1), BatchJob("two", ("run",), 1, after=("one",))]
    assert submit(jobs, ClusterConfig(), "mine", tmp_path / "run") == {"one": "2", "two": "4"}
    told = (tmp_path / "told").read_text().splitlines()
    assert "--dependency=afterok:2 --kill-on-invalid-dep=yes" in told[1]
    assert (tmp_path / "run/logs/jobs").is_dir()
    with pytest.raises(LaunchError, match="invalid partition"):
        submit([*jobs, BatchJob("bad", ("run",), 1)], ClusterConfig(), "mine", tmp_path / "run")
    assert (tmp_path / "told").read_text().splitlines()[-1] == "scancel 2 4"


def test_a_machine_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="not on this machine"):
        submit([JOB], ClusterConfig(), "mine", tmp_path)
