import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_reason.errors import EngineDiedError
from megatron_reason.generation.child import Child

ENTRIES = """
import os, subprocess, sys, time

def echo(connection):
    while True:
        try:
            connection.send((connection.recv(), dict(os.environ)))
        except EOFError:
            return

def crash(connection):
    connection.recv()
    raise ValueError("the reason of the crash")

def sleep_with_grandchild(connection):
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    connection.send((os.getpid(), grandchild.pid))
    time.sleep(600)
"""


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "child_entries.py").write_text(ENTRIES)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(pids: tuple[int, ...], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, f"{pids} live on"
        time.sleep(0.05)


def test_environment_is_cleaned_of_launchers(entries: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("KEPT", "7")
    child = Child("child_entries:echo", entries / "log", environment={"OMP_NUM_THREADS": "2"})
    child.send("hello", 60)
    message, environment = child.receive(60, "an echo")
    child.close(timeout_s=10)
    assert message == "hello"
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["KEPT"] == "7"
    assert not environment.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"}
    assert not is_alive(child.pid)


def test_crash_is_told_with_the_end_of_the_log(entries: Path):
    child = Child("child_entries:crash", entries / "log", environment={})
    child.send("go", 60)
    with pytest.raises(EngineDiedError, match="exit code 1") as caught:
        child.receive(60, "an answer")
    assert "the reason of the crash" in str(caught.value)
    assert str(entries / "log") in str(caught.value)


def test_hung_child_is_killed_with_its_grandchildren(entries: Path):
    child = Child("child_entries:sleep_with_grandchild", entries / "log", environment={})
    pids = child.receive(60, "the pids")
    with pytest.raises(EngineDiedError, match="waited 1 s for an answer"):
        child.receive(1, "an answer")
    wait_for_end(pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_asks_a_job_to_leave_is_not_the_childs(entries: Path, number: signal.Signals):
    child = Child("child_entries:echo", entries / "log", environment={})
    for word in ("before", "after"):
        child.send(word, timeout_s=60)
        assert child.receive(60, "an echo")[0] == word
        os.kill(child.pid, number)
        time.sleep(0.2)
    assert is_alive(child.pid)
    child.close()
    wait_for_end((child.pid,))


def test_child_that_does_not_read_is_killed(entries: Path):
    child = Child("child_entries:sleep_with_grandchild", entries / "log", environment={})
    pids = child.receive(60, "the pids")
    with pytest.raises(EngineDiedError, match="exit code -9"):
        child.send(b"x" * (1 << 24), timeout_s=1)
    wait_for_end(pids)


def test_killed_child_is_noticed_though_a_grandchild_holds_the_pipe(entries: Path):
    child = Child("child_entries:sleep_with_grandchild", entries / "log", environment={})
    pids = child.receive(60, "the pids")
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="exit code -9"):
        child.receive(60, "an answer")
    wait_for_end(pids)


def test_child_is_killed_when_forgotten(entries: Path):
    child = Child("child_entries:sleep_with_grandchild", entries / "log", environment={})
    pids = child.receive(60, "the pids")
    del child
    wait_for_end(pids)


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "sys.exit(0)"])
def test_child_ends_with_its_parent(entries: Path, ending: str):
    script = (
        "import os, sys\n"
        f"sys.path[:0] = [{str(entries)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "from pathlib import Path\n"
        "from megatron_reason.generation.child import Child\n"
        f"log = Path({str(entries / 'log')!r})\n"
        "child = Child('child_entries:sleep_with_grandchild', log, environment={})\n"
        "sys.stdout.write(repr(child.receive(60, 'the pids'))); sys.stdout.flush()\n"
        f"{ending}\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    first, second = parent.stdout.strip("()").split(",")
    wait_for_end((int(first), int(second)))
