"""The job scripts on a real SLURM: two nodes on this machine, started once for this file."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.sweeps import in_nemo_environment, swept

ROOT = Path(__file__).parent.parent.parent
LOCAL_SLURM = str(ROOT / "tools" / "local_slurm.sh")
_MISSING = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="tools/local_slurm.sh needs root"),
    pytest.mark.skipif(
        bool(_MISSING),
        reason=f"{', '.join(_MISSING)} missing: tools/local_slurm.sh install",
    ),
]


@pytest.fixture(scope="module")
def slurm():
    """Environment in which sbatch finds two idle nodes."""
    was_up = subprocess.run([LOCAL_SLURM, "status"], capture_output=True, check=False)
    subprocess.run([LOCAL_SLURM, "up", "2"], check=True, timeout=120)
    python = Path(sys.executable).parent
    yield {
        **os.environ,
        # As `tools/local_slurm.sh env` says: Debian's sacct finds no accounting here.
        "SLURM_CONF": "/tmp/local-slurm/etc/slurm.conf",
        "PATH": f"/tmp/local-slurm/bin:{python}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "CLUSTER": "laptop",
    }
    if was_up.returncode:
        subprocess.run([LOCAL_SLURM, "down"], check=True, timeout=60)


def sbatch(slurm, *words):
    done = subprocess.run(
        ["sbatch", "--parsable", "--gpus-per-node=0", *words], cwd=ROOT, env=slurm,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def wait(slurm, job, seconds):
    done = subprocess.run(
        [LOCAL_SLURM, "wait", job, str(seconds)], env=slurm, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    return done.stdout


def until(condition, seconds, shown):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s:\n{shown()}"
        time.sleep(0.2)


def test_a_job_told_to_stop_is_requeued_and_goes_on_on_both_nodes(slurm, tmp_path):
    out = tmp_path / "out"
    job = sbatch(
        slurm | {"RECIPE": "examples/rehearsal/oxa_7b.yaml"}, "--nodes=2", "--time=20",
        f"--output={out}", "slurm/oxa_7b.sh", "--to", "train-oxa_full",
        "--set", f"run.dir={tmp_path}/runs", "--set", "train.updates=12",
    )  # fmt: skip

    def said():
        return out.read_text(errors="replace") if out.is_file() else ""

    # As SLURM does some time before the limit: --signal=B:USR1@300.
    until(lambda: "/12 updates" in said(), 200, said)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True)
    assert "COMPLETED" in wait(slurm, job, 300), said()
    assert "attempt 1: told to stop" in said()
    assert "which is saved." in said()
    assert f"job {job}, attempt 2: done" in said()
    assert "resumed from iter_" in said()
    for node in range(2):
        assert f"{node}: mreason-node stopped" in said()
        assert f"{node}: mreason-node finished" in said()
    logs = tmp_path / "runs" / "rehearsal-oxa-7b" / "logs"
    assert len(list(logs.glob("train-oxa_full.node*/*/attempt_0/*/stderr.log"))) == 2 * 2 * 2


@pytest.mark.slow
def test_the_time_limit_stops_a_job_which_goes_on_where_it_was(slurm, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    # SLURM sends the signal up to a minute earlier than asked for: 15 to 75 s after the start.
    job = sbatch(
        slurm | {"RECIPE": "examples/rehearsal/oxa_7b.yaml"}, "--nodes=1", "--time=2",
        "--signal=B:USR1@45", f"--output={out}", "slurm/oxa_7b.sh", "--to", "train-oxa_full",
        "--set", f"run.dir={runs}", "--set", "train.updates=300",
    )  # fmt: skip

    def said():
        return out.read_text(errors="replace") if out.is_file() else ""

    until(lambda: "attempt 1: back into the queue" in said(), 150, said)
    longer = ["scontrol", "update", f"JobId={job}", "TimeLimit=20"]
    subprocess.run(longer, env=slurm, check=True)
    assert "COMPLETED" in wait(slurm, job, 400), said()
    assert "attempt 1: told to stop" in said()
    assert f"job {job}, attempt 2: done" in said()
    (metrics,) = (runs / "rehearsal-oxa-7b").glob("*-train-oxa_full/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 301)), "each update once"


@pytest.mark.slow
def test_a_job_that_loses_a_node_is_requeued_and_goes_on_when_there_are_enough(slurm, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    job = sbatch(
        slurm | {"RECIPE": "examples/rehearsal/oxa_7b.yaml"}, "--nodes=2", "--time=20",
        f"--output={out}", "slurm/oxa_7b.sh", "--to", "train-oxa_full",
        "--set", f"run.dir={runs}", "--set", "train.updates=60", "--set",
        "train.checkpoint.every=5",
    )  # fmt: skip

    def said():
        return out.read_text(errors="replace") if out.is_file() else ""

    def state():
        words = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
        return subprocess.run(words, env=slurm, capture_output=True, text=True).stdout.strip()

    saved = "rehearsal-oxa-7b/*-train-oxa_full/checkpoints/iter_0000005/files.json"
    until(lambda: list(runs.glob(saved)), 200, said)
    subprocess.run([LOCAL_SLURM, "crash", "node2"], env=slurm, check=True, timeout=60)
    try:
        until(lambda: state() == "PENDING", 120, said)
    finally:
        subprocess.run([LOCAL_SLURM, "boot", "node2"], env=slurm, check=True, timeout=60)
    assert "COMPLETED" in wait(slurm, job, 400), said()
    # The second attempt may begin before the node that came back answers, and is requeued, too.
    assert re.search(rf"job {job}, attempt [2-4]: done", said()), said()
    assert "resumed from iter_" in said()
    (metrics,) = runs.glob("rehearsal-oxa-7b/*-train-oxa_full/metrics.jsonl")
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 61)), "each update once"


def test_a_second_component_answers_what_the_first_asks(slurm, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    job = sbatch(
        slurm | {"RECIPE": "examples/rehearsal/srft_7b.yaml"}, "--nodes=1", "--time=20",
        f"--output={out}", ":", "--nodes=1", "--mem=8G", "--time=20", "slurm/srft_7b.sh",
        "--to", "train-srft", "--set", f"run.dir={runs}", "--set", "train.updates=2",
    )  # fmt: skip
    shown = wait(slurm, job, 300)
    said = out.read_text(errors="replace")
    assert "COMPLETED" in shown, said
    assert f"job {job}, attempt 1: done" in said
    folder = runs / "rehearsal-srft-7b"
    servers = (folder / "logs" / "servers.log").read_text(errors="replace")
    assert "at http://node2:" in servers, "the second component's node serves"
    (metrics,) = folder.glob("*-train-srft/metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    # float32 on both sides: it answers with the trainer's weights of that very update.
    assert all(row["mismatch/logprob_abs_diff"] < 1e-3 for row in rows)
    assert not list((folder / "servers").iterdir()), "none stays registered"


def test_shards_are_an_array_and_their_merge_waits_for_all(slurm, tmp_path):
    mreason = [sys.executable, "-m", "megatron_reason.cli.app"]
    subprocess.run(
        [*mreason, "stage", "chains", "--out", f"{tmp_path}/school", "--set", "stage.size=40"],
        cwd=ROOT, env=slurm, check=True, capture_output=True,
    )  # fmt: skip
    sbatch(
        slurm, "--array=0-1", "--time=20", f"--output={tmp_path}/%a.out", "slurm/curate_array.sh",
        "grade", f"{tmp_path}/school", f"{tmp_path}/graded", "--set", "stage.reward=numeric",
    )  # fmt: skip

    def said():
        return "".join(path.read_text() for path in sorted(tmp_path.glob("*.out")))

    until(lambda: "Submitted batch job" in said(), 30, said)
    merge = said().split("Submitted batch job ")[1].split()[0]
    shown = wait(slurm, merge, 150)
    log = ROOT / f"slurm-merge-{merge}.out"
    merged = log.read_text()
    log.unlink()
    assert "COMPLETED" in shown, said() + merged
    assert "merged 40 rows: {'from_graded_0': 20, 'from_graded_1': 20}" in merged
    assert (tmp_path / "graded" / "samples.parquet").is_file()


@in_nemo_environment
def test_a_sweep_submitted_by_nemo_run_ends_in_one_report(slurm, tmp_path):
    swept(tmp_path, "--on", "laptop", environment=slurm)
    logs = list(tmp_path.glob("nemo/**/sbatch_*.out"))
    assert len(logs) == 4, "each run was a job of its own"
