import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from megatron_reason.errors import DataError, LaunchError, StoppedError
from megatron_reason.launch.signals import interruptible
from megatron_reason.pipeline.side_by_side import run_side_by_side

# a and b meet; c needs both; d needs nothing.
GRAPH = {"a": (), "b": ("elsewhere",), "c": ("a", "b"), "d": ()}


def meet(name, folder):
    """Leave a mark; a and b each wait for the other's."""
    (folder / name).write_text(str(time.monotonic()))
    other = {"a": "b", "b": "a"}.get(name, name)
    for _ in range(200):
        if (folder / other).exists():
            return
        time.sleep(0.05)
    raise DataError(name, f"{other} never came.", "Run them side by side.")


def fail(name, folder):
    (folder / name).write_text("")
    if name == "a":
        raise DataError(name, "it was told to fail.", "Do not.")
    if name == "b":
        os.kill(os.getpid(), signal.SIGKILL)


def linger(name, folder):
    with interruptible(name):
        (folder / name).write_text(str(os.getpid()))
        time.sleep(60)


def test_stages_wait_for_their_inputs_and_for_nothing_else(tmp_path):
    run_side_by_side(GRAPH, partial(meet, folder=tmp_path), at_once=2)
    began = {path.name: float(path.read_text()) for path in tmp_path.iterdir()}
    assert began.keys() == GRAPH.keys()
    assert began["c"] > max(began["a"], began["b"])


def test_a_failure_is_told_and_nothing_new_begins(tmp_path):
    with pytest.raises(DataError, match="told to fail"):
        run_side_by_side({"a": (), "c": ("a",), "d": ()}, partial(fail, folder=tmp_path), at_once=1)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_killed_process_is_told(tmp_path):
    with pytest.raises(LaunchError, match=r"(?s)stage 'b'.*was killed"):
        run_side_by_side({"b": ()}, partial(fail, folder=tmp_path), at_once=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_stop(tmp_path, number):
    script = textwrap.dedent(f"""
        from functools import partial
        from pathlib import Path
        from megatron_reason.pipeline.side_by_side import run_side_by_side
        from tests.pipeline.test_side_by_side import linger
        if __name__ == "__main__":
            run_side_by_side({{"a": (), "b": (), "c": ()}},
                             partial(linger, folder=Path("{tmp_path}")), at_once=2)
    """)
    file = tmp_path / "script.py"
    file.write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(
        [sys.executable, str(file)], env=environment, stderr=subprocess.PIPE, text=True
    )
    marks = [tmp_path / "a", tmp_path / "b"]
    while not all(mark.exists() and mark.read_text() for mark in marks):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    workers = [psutil.Process(int(mark.read_text())) for mark in marks]
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert not (tmp_path / "c").exists()
    if number == signal.SIGTERM:
        assert StoppedError.__name__ in said
