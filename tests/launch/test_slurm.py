import signal
import socket
import subprocess

import pytest

from megatron_reason.config.cluster import ClusterConfig
from megatron_reason.errors import LaunchError, NodeLostError
from megatron_reason.files import write_text
from megatron_reason.launch import slurm
from megatron_reason.launch.node import error_file, node_log
from megatron_reason.launch.slurm import Allocation, SlurmLauncher, failure, free_port
from tests.launch.workers import job

NODES = ("node1", "node2")
STARTED = "0: mreason-node started 1.0 0.1.0 node1\n1: mreason-node started 1.0 0.1.0 node2\n"


def of(text, folder):
    return failure(job("x", folder), text, NODES)


def test_a_workers_own_error_gives_up_whatever_the_others_say(tmp_path):
    log = node_log(job("x", tmp_path).log_file, 1)
    write_text(error_file(log), "Traceback\nIndexError: an accident")
    found = of(STARTED + "0: mreason-node lost\n1: mreason-node failed\n", tmp_path)
    assert not isinstance(found, NodeLostError)
    assert found.exit_code == 1
    assert found.what == "node 1 (node2): Traceback\n  IndexError: an accident"


def test_a_node_that_goes_silent_is_worth_another_attempt(tmp_path):
    found = of(STARTED + "0: mreason-node lost\n", tmp_path)
    assert isinstance(found, NodeLostError)
    assert found.exit_code == 75
    assert found.what.startswith("node2 went silent")
    both = of(STARTED + "0: mreason-node lost\n1: mreason-node lost\n", tmp_path)
    assert isinstance(both, NodeLostError)
    assert both.what.startswith("the nodes lost sight of each other")


def test_a_step_that_did_not_start_is_judged_by_what_srun_says(tmp_path):
    lost = of("srun: error: Task launch for StepId=7.0 failed on node node2: Zero Bytes", tmp_path)
    assert isinstance(lost, NodeLostError)
    wrong = of("srun: unrecognized option '--sparkle'", tmp_path)
    assert not isinstance(wrong, NodeLostError)
    assert "--sparkle" in wrong.what
    assert "srun_options" in wrong.way_out


def test_outside_a_job_nothing_starts(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(LaunchError, match=r"SLURM_JOB_ID and .* are not set"):
        SlurmLauncher(ClusterConfig()).run(job("x", tmp_path))


def test_too_few_nodes_are_refused_before_anything_starts():
    allocation = Allocation("7", 0, NODES, 4)
    allocation.require(2)
    with pytest.raises(LaunchError, match="3 nodes are asked for; job 7 has 2"):
        allocation.require(3)


def test_a_port_that_is_taken_is_left_alone():
    first = free_port("123", 0)
    assert free_port("123", 0) == first
    assert free_port("123", 1) != first
    with socket.socket() as taken:
        taken.bind(("", first))
        assert free_port("123", 0) == first + 1


def test_a_step_is_ended_some_time_after_a_node_has_failed(tmp_path, monkeypatch):
    """The verdict comes in pieces; the other node would hang for ever."""
    monkeypatch.setattr(slurm, "_GRACE_S", 0.5)
    pieces = "printf '0: mreason-no'; sleep 0.3; printf 'de failed\\n1: works\\n'; exec sleep 600"
    one = job("x", tmp_path)
    write_text(one.log_file, "of an earlier attempt\n")
    with subprocess.Popen(["sh", "-c", pieces], stdout=subprocess.PIPE) as process:
        output = slurm._follow(process, one)
    assert output == b"0: mreason-node failed\n1: works\n"
    assert process.returncode == -signal.SIGTERM
