"""Training through real worker processes: resume after kill -9, and what the loop refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig, CheckpointConfig, OptimConfig, TrainConfig
from megatron_reason.errors import DataError
from megatron_reason.schema.batch import Role, TokenizedSample
from megatron_reason.schema.method import METHODS
from megatron_reason.schema.tables import Kind, write_table
from megatron_reason.training.jobs import TrainJob
from megatron_reason.training.offline import TrainingSet
from tests.engine import invariance

UPDATES = 120


def _role(sample: TokenizedSample) -> str:
    """Errors stay errors; everything else is a demonstration here."""
    return str(Role.NEGATIVE if sample.role == Role.NEGATIVE else Role.DEMO)


def write_job(folder: Path, output: Path, **changes: Any) -> Path:
    """Job file for a tiny model, two roles, two data-parallel ranks."""
    model = folder / "model"
    if not model.is_dir():
        invariance.make_model(model, tied=True)
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
            checkpoint=CheckpointConfig(every=10, keep=2),
        ),
        "table": folder / "table",
    }
    job = TrainJob(
        model=ModelConfig(path="tiny", dtype="bfloat16"), model_folder=model, output=output,
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
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(output: Path) -> list[tuple[int, float, float]]:
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["train/loss"], row["train/grad_norm"]) for row in rows]


def kill_after(output: Path, process: subprocess.Popen[str], updates: int) -> None:
    """kill -9 the whole job once it has logged `updates` updates."""
    metrics = output / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if metrics.is_file() and len(metrics.read_text().splitlines()) >= updates:
            break
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_killed_and_resumed_equals_never_interrupted_bitwise(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(write_job(tmp_path, whole))
    for updates in (31, 77):
        kill_after(broken, start(write_job(tmp_path, broken)), updates)
        assert not (broken / "huggingface").exists()
    report = run(write_job(tmp_path, broken))
    assert "resumed from" in report
    assert losses(broken) == losses(whole)
    assert [step for step, _, _ in losses(whole)] == list(range(1, UPDATES + 1))
    left = load_file(whole / "huggingface/model.safetensors")
    right = load_file(broken / "huggingface/model.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    source = load_file(tmp_path / "model/model.safetensors")
    assert any(not torch.equal(left[name].float(), source[name].float()) for name in left)


def test_a_half_written_checkpoint_is_never_loaded_and_other_settings_are_refused(
    tmp_path: Path,
) -> None:
    output = tmp_path / "run"
    run(write_job(tmp_path, output), processes=1)
    checkpoints = output / "checkpoints"
    newest = checkpoints / f"iter_{UPDATES:07d}"
    assert (checkpoints / "latest_checkpointed_iteration.txt").read_text() == f"{UPDATES}\n"
    assert sorted(p.name for p in checkpoints.glob("iter_*")) == ["iter_0000110", newest.name]
    (newest / "train_state.json").unlink()
    assert "resumed from iter_0000110 after update 110" in run(
        write_job(tmp_path, output), processes=1
    )
    changed = METHODS.get("oxa").config_class(demos_per_update=4, negatives_per_update=1)
    process = start(write_job(tmp_path, output, method=changed), 1)
    report, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "made with another method" in report


@pytest.mark.parametrize(("roles", "message"), [({"demo"}, "needs sequences of role 'negative'")])
def test_a_missing_role_is_refused(tmp_path: Path, roles: set[str], message: str) -> None:
    import polars as pl

    job = write_job(tmp_path, tmp_path / "run")
    frame = pl.read_parquet(tmp_path / "table/tokens.parquet")
    write_table(tmp_path / "table", Kind.TOKENS, frame.filter(pl.col("role").is_in(roles)))
    process = start(job, 1)
    report, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert message in report


def test_ids_beyond_the_vocabulary_are_refused_by_name() -> None:
    rows = {"sample_id": ["fine", "wrong"], "ids": [[0, 60], [3, 61]]}
    data = TrainingSet(pl.DataFrame(rows), {})
    data.check_ids(62)
    with pytest.raises(DataError, match="sequence wrong") as caught:
        data.check_ids(61)
    assert "0..60" in str(caught.value)


def test_a_method_with_a_reference_model_trains_and_leaves_it(tmp_path: Path) -> None:
    """The penalty is nothing while model and reference are one, and something afterwards."""
    settings = METHODS.get("sft_kl").config_class(demos_per_update=4)
    train = TrainConfig(
        updates=3, batch=BatchConfig(max_tokens_per_microbatch=48), optim=OptimConfig(lr=1e-2),
        parallel=ParallelConfig(pipeline_model_parallel_size=2),
    )  # fmt: skip
    output = tmp_path / "run"
    report = run(write_job(tmp_path, output, method=settings, train=train))
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    penalties = [json.loads(line)["train/kl"] for line in lines]
    # Warm-up starts below the full rate, but above 0.
    assert penalties[0] == pytest.approx(0.0, abs=1e-6)
    assert penalties[2] > 1e-4
    assert all(json.loads(line)["time/step"] > 0 for line in lines)
    # A log file gets a line every ten seconds, and one at the end, with loss and seconds.
    steps = re.findall(r"(\d)/3 updates .* loss ([\d.]+)  grad_norm [\d.]+  ([\d.]+) s", report)
    assert [step for step, _, _ in steps][-1] == "3"
