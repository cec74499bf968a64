import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_reason.errors import LaunchError
from megatron_reason.launch.local import LocalLauncher, _cause, says_peer_lost
from tests.launch.workers import ROOT, job


def test_every_rank_runs_with_its_threads_and_is_heard(tmp_path, capfd):
    LocalLauncher().run(job("environment", tmp_path))
    shown = capfd.readouterr().err
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == "3 threads, 2 ranks"
        assert f"hello from rank {rank}" in (tmp_path / "logs" / "test.log").read_text()
        assert f"hello from rank {rank}" in shown


def test_a_refusing_worker_is_quoted(tmp_path):
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("refuse", tmp_path))
    assert "stage 'test'" in caught.value.where
    assert (
        caught.value.what == "DataError  table.parquet\n    17 rows are bad.\n    Mend the 17 rows."
    )
    assert str(tmp_path / "logs" / "test.log") in caught.value.way_out


def test_a_crashing_worker_leaves_the_end_of_its_own_log(tmp_path):
    log = tmp_path / "logs" / "test.log"
    log.parent.mkdir()
    log.write_text("megatron_reason.errors.DataError: DataError  old\n  from an earlier run\n  -\n")
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("crash", tmp_path))
    assert caught.value.what.startswith("Traceback")
    assert caught.value.what.endswith("IndexError: an unforeseen accident")
    assert "earlier run" not in caught.value.what
    assert "earlier run" in log.read_text()


def test_of_several_ranks_the_one_with_an_error_of_its_own_is_quoted():
    lost = "RuntimeError: Connection closed by peer [10.0.0.2]:1"
    mixed = (
        "[default0]:[rank0]: Traceback (most recent call last):\n"
        "[default1]:[rank1]: Traceback (most recent call last):\n"
        '[default0]:[rank0]:   File "x.py", line 1, in <module>\n'
        '[default1]:[rank1]:   File "y.py", line 2, in <module>\n'
        f"[default0]:[rank0]: {lost}\n"
        "[default1]:[rank1]: IndexError: an accident\n"
    )
    shown = _cause(mixed.encode())
    assert shown[1:] == ['  File "y.py", line 2, in <module>', "IndexError: an accident"]
    assert not says_peer_lost("\n".join(shown))
    alone = "".join(line + "\n" for line in mixed.splitlines() if "default0" in line)
    assert _cause(alone.encode())[-1] == lost
    assert says_peer_lost(lost)
    report = "Traceback (most recent call last):\n  File\nChildFailedError: see above\n"
    assert _cause((report + alone + report).encode())[-1] == lost
    killed = "  traceback : Signal 9 (SIGKILL) received by PID 7\n"
    assert "memory runs out" in _cause((alone + report + killed).encode())[0]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_do_not_outlive_the_launcher(tmp_path, signal_number):
    launcher = subprocess.Popen(
        [sys.executable, "-m", "tests.launch.workers", "launch", str(tmp_path)], cwd=ROOT
    )
    files = [tmp_path / f"pid{rank}" for rank in range(2)]
    wait_until(lambda: all(file.is_file() and file.read_text() for file in files), 120)
    workers = [int(file.read_text()) for file in files]
    assert all(is_running(pid) for pid in workers)
    os.kill(launcher.pid, signal_number)
    launcher.wait(60)
    wait_until(lambda: not any(is_running(pid) for pid in workers), 60)


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)
