"""The job scripts on a real SLURM: two nodes on this machine, started once for this file."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
        "SLURM_CONF": "/tmp/local-slurm/etc/slurm.conf",
        "PATH": f"{python}:{os.environ['PATH']}",
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
