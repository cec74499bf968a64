"""Training through real worker processes: resume after kill -9, and what the loop refuses."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.config.train import BatchConfig, OptimConfig, TrainConfig
from megatron_reason.schema.method import METHODS
from megatron_reason.schema.tables import Kind, write_table
from tests.training.tiny_run import UPDATES, kill_after, losses, run, start, write_job


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
    printed = run(write_job(tmp_path, output), processes=1)
    assert "Warning" not in printed, "a training that goes well warns of nothing"
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
    report, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "made with another method" in report


@pytest.mark.parametrize(("roles", "message"), [({"demo"}, "needs sequences of role 'negative'")])
def test_a_missing_role_is_refused(tmp_path: Path, roles: set[str], message: str) -> None:

    job = write_job(tmp_path, tmp_path / "run")
    frame = pl.read_parquet(tmp_path / "table/tokens.parquet")
    write_table(tmp_path / "table", Kind.TOKENS, frame.filter(pl.col("role").is_in(roles)))
    process = start(job, 1)
    report, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert message in report


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
    rows = [json.loads(line) for line in lines]
    penalties = [row["policy/kl_ref"] for row in rows]
    # Warm-up starts below the full rate, but above 0.
    assert penalties[0] == pytest.approx(0.0, abs=1e-6)
    assert penalties[2] > 1e-4
    assert all(0 < row["time/prepass"] < row["time/step"] for row in rows), "the reference's pass"
    # A log file gets a line every ten seconds, and one at the end, with loss and seconds.
    steps = re.findall(r"(\d)/3 updates .* loss ([\d.]+)  grad_norm [\d.]+  ([\d.]+) s", report)
    assert [step for step, _, _ in steps][-1] == "3"
