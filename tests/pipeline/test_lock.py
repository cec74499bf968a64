import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_reason.errors import LaunchError
from megatron_reason.pipeline.lock import LOCKS, stage_locks

ROOT = Path(__file__).parent.parent.parent
HOLDER = """
import sys, time
from pathlib import Path
from megatron_reason.pipeline.lock import stage_locks
with stage_locks(Path(sys.argv[1]), ["a", "b"]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_folder_are_refused_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with stage_locks(tmp_path / "run", ["c"]):
        refused = pytest.raises(LaunchError, match=f"stage 'b' of this run: process {holder.pid} ")
        with refused, stage_locks(tmp_path / "run", ["d", "b"]):
            pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with stage_locks(tmp_path / "run", ["b"]):
        assert f"process {os.getpid()} " in (tmp_path / "run" / LOCKS / "b").read_text()


def test_a_lock_is_given_back(tmp_path):
    for _ in range(2):
        with stage_locks(tmp_path, ["a", "b"]):
            pass


def test_a_file_left_by_a_dead_process_does_not_matter(tmp_path):
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / "a").write_text("process 999999 on nowhere\n")
    with stage_locks(tmp_path, ["a"]):
        pass
