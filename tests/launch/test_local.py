import os
import re
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
    quoted = "DataError  table.parquet\n    17 rows are bad.\n    Mend the 17 rows.\n  rank"
    assert caught.value.what.startswith(quoted)
    assert str(tmp_path / "logs" / "test.log") in caught.value.way_out


def test_the_report_says_whose_error_it_is_and_on_which_samples(tmp_path):
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("refuse_second", tmp_path))
    assert caught.value.what.splitlines()[0] == "DataError  table.parquet"
    assert caught.value.what.splitlines()[-1] == "  rank 1"
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("refuse_a_sample", tmp_path))
    *message, note = caught.value.what.splitlines()
    assert message == ["DataError  update 3", "    a sequence is too long.", "    Shorten it."]
    assert re.fullmatch(r"  rank [01], update 3, sequences a, b", note)


def test_a_killed_worker_is_named(tmp_path):
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("kill_second", tmp_path))
    assert caught.value.what.startswith("rank 1 was killed (SIGKILL), as the kernel does")


def test_a_crashing_worker_leaves_the_end_of_its_own_log(tmp_path):
    log = tmp_path / "logs" / "test.log"
    log.parent.mkdir()
    log.write_text("megatron_reason.errors.DataError: DataError  old\n  from an earlier run\n  -\n")
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().run(job("crash", tmp_path))
    assert caught.value.what.startswith("Traceback")
    assert caught.value.what.splitlines()[-2] == "  IndexError: an unforeseen accident"
    assert caught.value.what.splitlines()[-1] == "  rank 0"
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
    accident = ['  File "y.py", line 2, in <module>', "IndexError: an accident"]
    assert shown[1:] == [*accident, "rank 1"]
    # Of what precedes torch's own words the node's torchrun knows the rank.
    later = mixed.replace("[rank0]: ", "").replace("[rank1]: ", "")
    failed = "  rank      : 9 (local_rank: 1)\n  exitcode  : 1 (pid: 7)\n"
    assert _cause((later + failed).encode())[-2:] == [accident[-1], "rank 9"]
    assert not says_peer_lost("\n".join(shown))
    alone = "".join(line + "\n" for line in mixed.splitlines() if "default0" in line)
    assert _cause(alone.encode())[-2:] == [lost, "rank 0"]
    assert says_peer_lost(lost)
    report = "Traceback (most recent call last):\n  File\nChildFailedError: see above\n"
    assert _cause((report + alone + report).encode())[-2:] == [lost, "rank 0"]
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
