import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_reason.errors import LaunchError
from megatron_reason.pipeline.lock import LOCK, run_lock

ROOT = Path(__file__).parent.parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from megatron_reason.pipeline.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_folder_are_refused_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(LaunchError, match=f"process {holder.pid} "), run_lock(tmp_path / "run"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / LOCK).read_text()


def test_a_lock_is_given_back(tmp_path):
    for _ in range(2):
        with run_lock(tmp_path):
            pass


def test_a_file_left_by_a_dead_process_does_not_matter(tmp_path):
    (tmp_path / LOCK).write_text("process 999999 on nowhere\n")
    with run_lock(tmp_path):
        pass
