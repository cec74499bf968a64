"""What goes wrong, with a program in srun's place; tests/slurm has the real one."""

import os
import time

import pytest

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError
from megatron_reason.launch.servers import Component, servers

COMPONENT = Component("7.0", nodes=2, tasks=2, cpus_per_task=4)
REGISTERS = """
while [ "$1" != --register ]; do shift; done
mkdir -p "$2"
trap 'echo told to leave; exit 75' USR1
for i in 1 2; do echo "http://node$i:1" >"$2/node$i.url"; done
while :; do sleep 0.05; done
"""


@pytest.fixture
def srun(tmp_path, monkeypatch):
    def install(body):
        program = tmp_path / "bin" / "srun"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/bash\necho "told: $*"\n{body}')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return install


def started(folder, cluster=None, patience_s=20.0):
    return servers(
        COMPONENT, cluster or ClusterConfig(), ["run.yaml"], run_folder=folder,
        patience_s=patience_s,
    )  # fmt: skip


def test_a_job_of_one_component_has_none(monkeypatch):
    monkeypatch.delenv("SLURM_HET_SIZE", raising=False)
    assert Component.read() is None
    for name, value in (
        ("SLURM_HET_SIZE", "2"), ("SLURM_JOB_ID", "41"), ("SLURM_RESTART_COUNT", "3"),
        ("SLURM_JOB_NUM_NODES_HET_GROUP_1", "2"), ("SLURM_NTASKS_HET_GROUP_1", "8"),
        ("SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1", "64(x2)"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    assert Component.read() == Component("41.3", nodes=2, tasks=8, cpus_per_task=16)


def test_a_task_has_its_share_of_the_node_s_gpus():
    assert COMPONENT.gpus_per_task(ClusterConfig()) == 0
    nodes = ClusterConfig(gpus_per_node=8)
    shares = {tasks: Component("7.0", 2, tasks, 4).gpus_per_task(nodes) for tasks in (2, 4, 16, 32)}
    assert shares == {2: 8, 4: 4, 16: 1, 32: 1}


def test_they_are_told_to_leave_and_leave_nothing(srun, tmp_path):
    srun(REGISTERS)
    cluster = ClusterConfig(gpus_per_node=8, container="image", srun_options=("--x",))
    with started(tmp_path / "run", cluster) as folder:
        assert folder == tmp_path / "run" / "servers" / "7.0"
        assert len(list(folder.iterdir())) == 2
    assert not folder.exists()
    told, last = (tmp_path / "run" / "logs" / "servers.log").read_text().splitlines()
    for words in (
        "--het-group=1 --nodes=2 --ntasks=2 --cpus-per-task=4 --gpus-per-task=8",
        "--container-image=image --x bash -c", "serve run.yaml --register",
        "--port 0 --gpus 8",
    ):  # fmt: skip
        assert words in told
    assert last == "told to leave"


def test_servers_on_cpus_shard_as_the_run_says(srun, tmp_path):
    srun(REGISTERS)
    with started(tmp_path / "run"):
        pass
    told = (tmp_path / "run" / "logs" / "servers.log").read_text().splitlines()[0]
    assert told.endswith("--port 0")


def test_servers_that_end_at_once_are_quoted(srun, tmp_path):
    srun("echo ConfigError: no such model >&2; exit 3")
    log = tmp_path / "logs" / "servers.log"
    log.parent.mkdir()
    log.write_text("of an earlier attempt\n")
    with pytest.raises(LaunchError, match="no such model") as caught, started(tmp_path):
        pass
    assert "exit code 3" in caught.value.what
    assert "earlier attempt" not in caught.value.what


def test_servers_that_do_not_answer_are_ended(srun, tmp_path):
    srun("exec sleep 60")
    began = time.monotonic()
    with pytest.raises(LaunchError, match="0 of 2 answered in 0 s"), started(tmp_path, None, 0.2):
        pass
    assert time.monotonic() - began < 30
