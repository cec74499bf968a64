"""Training runs of a tiny model through real worker processes, for the tests of this folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import polars as pl

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import (
    BatchConfig,
    CheckpointConfig,
    KeepConfig,
    OptimConfig,
    TrainConfig,
)
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import METHODS
from megatron_reason.schema.tables import Kind, write_table
from megatron_reason.training.jobs import TrainJob
from tests.engine import invariance

UPDATES = 120


def _role(sample: TokenizedSample) -> str:
    """Errors stay errors; everything else is a demonstration here."""
    return str(Role.NEGATIVE if sample.role == Role.NEGATIVE else Role.DEMO)


def write_job(
    folder: Path, output: Path, *, dtype: Literal["bfloat16", "float32"] = "bfloat16",
    tied: bool = True, **changes: Any,
) -> Path:  # fmt: skip
    """Job file for a tiny model, two roles, two data-parallel ranks."""
    model = folder / "model"
    if not model.is_dir():
        invariance.make_model(model, tied=tied)
    if not (folder / "table").is_dir():
        rows = [
            {"sample_id": s.sample_id, "role": _role(s), "ids": list(s.ids),
             "num_prompt_tokens": s.num_prompt_tokens, "template_hash": "x"}
            for s in invariance.samples()
        ]  # fmt: skip

        write_table(folder / "table", Kind.TOKENS, pl.DataFrame(rows))
    settings: dict[str, Any] = {
        "method": METHODS.get("oxa").config_class(demos_per_update=4, negatives_per_update=2),
        "train": TrainConfig(
            updates=UPDATES,
            batch=BatchConfig(max_tokens_per_microbatch=48),
            optim=OptimConfig(lr=1e-3),
            parallel=ParallelConfig(),
            checkpoint=CheckpointConfig(every=10, keep=KeepConfig(last=2)),
        ),
        "table": folder / "table",
    }
    job = TrainJob(
        model=ModelConfig(path="tiny", dtype=dtype), model_folder=model, output=output,
        seed=3, **(settings | changes),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    path = output / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    return path


def start(job: Path, processes: int = 2) -> subprocess.Popen[str]:
    """Start the worker under torchrun, in a process group of its own."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), "-m", "megatron_reason.training.worker", str(job),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def run(job: Path, processes: int = 2) -> str:
    process = start(job, processes)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def losses(output: Path) -> list[tuple[int, float, float]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows]


def kill_after(output: Path, process: subprocess.Popen[str], updates: int) -> None:
    """kill -9 the whole job once it has logged `updates` updates."""
    wait_for_updates(output, process, updates)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def short(updates: int = 12, every: int = 6, **layout: Any) -> TrainConfig:
    """A few updates in any layout, of which two checkpoints stay."""
    return TrainConfig(
        updates=updates,
        batch=BatchConfig(max_tokens_per_microbatch=48),
        optim=OptimConfig(lr=1e-3),
        parallel=ParallelConfig(**layout),
        checkpoint=CheckpointConfig(every=every, keep=KeepConfig(last=2)),
    )


def launch(job: Path, output: Path, processes: int = 2) -> subprocess.Popen[str]:
    """Start the job through our launcher, ended with the exit code a user would see."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from megatron_reason.errors import ReasonError\n"
        "from megatron_reason.launch.base import Job\n"
        "from megatron_reason.launch.local import LocalLauncher\n"
        f"job = Job(name='train', module='megatron_reason.training.worker', "
        f"arguments=({str(job)!r},), processes={processes}, threads_per_process=1, "
        f"log_file=Path({str(output / 'log')!r}))\n"
        "try:\n"
        "    LocalLauncher().run(job)\n"
        "except ReasonError as error:\n"
        "    sys.stderr.write(str(error))\n"
        "    sys.exit(error.exit_code)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_updates(output: Path, process: subprocess.Popen[str], updates: int) -> None:
    """Wait until `updates` updates have been logged."""
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= updates):
        assert time.monotonic() < deadline, "too slow"
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.005)


def leave_room_for(files: int, disk: Path) -> None:
    """Let a mounted tmpfs take so many more files."""
    now = os.statvfs(disk)
    options = f"remount,size=50m,nr_inodes={now.f_files - now.f_ffree + files}"
    subprocess.run(["mount", "-o", options, str(disk)], check=True)
