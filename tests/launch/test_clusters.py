import subprocess
from pathlib import Path

import pytest

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import ConfigError, LaunchError
from megatron_reason.launch.clusters import cluster_names, job_settings, load_cluster

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "slurm/clusters").glob("*.yaml")])
def test_job_scripts_read_the_same_activation_as_the_launcher(name):
    told = f'source slurm/job.sh; eval() {{ printf %s "$*"; }}; python() {{ :; }}; activate {name}'
    shell = subprocess.run(
        ["bash", "-c", told.replace(name, f"slurm/clusters/{name}.yaml")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout == load_cluster(name).activate


def test_a_cluster_is_a_name_or_a_file(tmp_path):
    assert "h100" in cluster_names()
    assert load_cluster("a100").gpu == "A100-80"
    (tmp_path / "mine.yaml").write_text("partition: long\n")
    assert load_cluster(str(tmp_path / "mine.yaml")).partition == "long"
    with pytest.raises(ConfigError, match="Did you mean 'h100'"):
        load_cluster("h10")
    (tmp_path / "bad.yaml").write_text("partitoin: long\n")
    with pytest.raises(ConfigError, match=r"bad.yaml:1  partitoin[^$]*'partition'"):
        load_cluster(str(tmp_path / "bad.yaml"))


def test_a_job_learns_its_variables_unless_it_is_elsewhere(monkeypatch):
    cluster = ClusterConfig(
        partition="long", host_partition="cpu", environment={"CACHE": "/a b"}, max_requeues=3,
        gpus_per_node=4,
    )  # fmt: skip
    expected = "export CACHE='/a b'\nmax_requeues=3\ngpus_per_node=4\n"
    for found in ("long", "cpu"):
        monkeypatch.setenv("SLURM_JOB_PARTITION", found)
        assert job_settings("x", cluster) == expected
    monkeypatch.setenv("SLURM_JOB_PARTITION", "short")
    with pytest.raises(LaunchError, match=r"partition 'short'; the file says cpu or long"):
        job_settings("x", cluster)
    monkeypatch.setenv("SLURM_JOB_PARTITION", "long")
    monkeypatch.setenv("SLURM_JOB_ACCOUNT", "other")
    with pytest.raises(LaunchError, match="sbatch --account=mine"):
        job_settings("x", ClusterConfig(partition="long", account="mine"))
