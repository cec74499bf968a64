"""A sweep of four small runs through NeMo-Run, from the environment that CI makes for it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
_MREASON = ROOT / ".venv-nemo" / "bin" / "mreason"

in_nemo_environment = pytest.mark.skipif(
    not _MREASON.is_file(),
    reason="no .venv-nemo: docs/cluster.md, 'Sweeps', has the two lines that make it",
)


def swept(folder: Path, *words: str, environment: Mapping[str, str] = os.environ) -> None:
    """Do the rehearsal's sweep into `folder`, with two updates a run, and look at what it left."""
    grid = folder / "grid.yaml"
    grid.write_text(
        f"name: swept\nrecipe: {ROOT}/examples/rehearsal/sweep.yaml\ndir: {folder}/runs\n"
        "grid: {train.updates: [2], train.optim.lr: [1.0e-4, 1.0e-3], run.seed: [1, 2]}\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [_MREASON, "sweep", grid, "--python", sys.executable, *words], cwd=ROOT, check=False,
        env={**environment, "NEMORUN_HOME": str(folder / "nemo"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((folder / "runs" / "swept.json").read_text(encoding="utf-8"))
    assert [row["state"] for row in rows] == ["finished"] * 4, done.stdout + done.stderr
    losses = [row["measured"]["oxa_full loss"] for row in rows]
    assert len(set(losses)) == 4, "rates and seeds make a difference"
    page = (folder / "runs" / "swept" / "index.html").read_text(encoding="utf-8")
    assert all(f"swept-{index}" in page for index in range(4))
    assert all(f'data-label="{key}"' in page for key in ("train.optim.lr", "run.seed"))
    assert 'data-label="train.updates"' not in page, "the same in all runs"
