"""What a training run survives: other layouts, damage, signals, deaths, numbers that are none."""

import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.schema.method import METHODS
from megatron_reason.schema.tables import Kind, read_table
from tests.engine import invariance
from tests.models import tiny
from tests.training.tiny_run import (
    UPDATES,
    launch,
    leave_room_for,
    losses,
    run,
    short,
    start,
    wait_for_updates,
    write_job,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float32 run of 12 updates on two data-parallel ranks, checkpoints at 6 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    report = run(write_job(folder, folder / "run", dtype="float32", train=short()))
    assert "learning rate, cosine: first (update 1) 0.001" in report
    assert "batch: 6 sequences x 12 updates" in report
    assert "common state dict differs" not in report
    return folder


def go_on(whole: Path, name: str, processes: int, **layout: int) -> tuple[str, float]:
    """Resume a copy of the run in another layout; its report, and the largest difference."""
    output = whole / name
    if not output.is_dir():
        shutil.copytree(whole / "run", output)
    shutil.rmtree(output / "huggingface")
    report = run(write_job(whole, output, dtype="float32", train=short(**layout)), processes)
    pairs = zip(losses(whole / "run"), losses(output), strict=True)
    worst = max(
        abs(a - b) / abs(a) for left, right in pairs for a, b in zip(left, right, strict=True)
    )
    assert (output / "huggingface/model.safetensors").is_file()
    return report, worst


def test_a_run_goes_on_under_pipeline_and_tensor_parallelism(whole: Path) -> None:
    shutil.copytree(whole / "run", whole / "tp2pp2")
    shutil.rmtree(whole / "tp2pp2/checkpoints/iter_0000012")
    report, worst = go_on(
        whole, "tp2pp2", 4, tensor_model_parallel_size=2, pipeline_model_parallel_size=2
    )
    assert "resumed from iter_0000006 after update 6" in report
    assert 0 < worst < 1e-5


def test_a_run_goes_on_with_ranks_that_share_sequences(whole: Path) -> None:
    shutil.copytree(whole / "run", whole / "cp2")
    shutil.rmtree(whole / "cp2/checkpoints/iter_0000012")
    report, worst = go_on(whole, "cp2", 2, context_parallel_size=2)
    assert "resumed from iter_0000006 after update 6" in report
    assert "CP 2" in report
    assert 0 < worst < 1e-5


def test_experts_go_on_with_other_ranks(tmp_path: Path) -> None:
    tiny.make("qwen3moe-unnormalised", tmp_path / "model")
    train = short(updates=6, every=3, expert_model_parallel_size=2)
    run(write_job(tmp_path, tmp_path / "run", dtype="float32", train=train))
    shutil.copytree(tmp_path / "run", tmp_path / "tp2")
    shutil.rmtree(tmp_path / "tp2/checkpoints/iter_0000006")
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
    report, worst = go_on(tmp_path, "tp2", 2, **layout, updates=6, every=3)
    assert "resumed from iter_0000003 after update 3" in report
    assert 0 < worst < 1e-5


def test_a_truncated_shard_is_named_and_the_checkpoint_before_it_is_used(whole: Path) -> None:
    shutil.copytree(whole / "run", whole / "truncated")
    shard = next((whole / "truncated/checkpoints/iter_0000012").glob("__*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    report, worst = go_on(whole, "truncated", 1)
    assert f"iter_0000012 is damaged and is passed over: {shard.name} has" in report
    assert "resumed from iter_0000006 after update 6" in report
    assert worst < 1e-5
    names = sorted(path.name for path in (whole / "truncated/checkpoints").glob("*iter_*"))
    assert names[:3] == ["damaged_iter_0000012", "iter_0000006", "iter_0000012"]


@pytest.mark.parametrize("content", [None, '{"common.pt": ['])
def test_without_readable_sums_the_checkpoint_before_is_used(
    whole: Path, content: str | None
) -> None:
    output = whole / f"unsummed-{content is None}"
    shutil.copytree(whole / "run", output)
    sums = output / "checkpoints/iter_0000012" / files.SUMS
    sums.unlink()
    if content is not None:
        sums.write_text(content, encoding="utf-8")
    report, _ = go_on(whole, output.name, 1)
    assert "iter_0000012 is damaged and is passed over: files.json is missing or cannot" in report
    assert "resumed from iter_0000006 after update 6" in report


def test_only_damaged_checkpoints_stop_the_run(whole: Path) -> None:
    shutil.copytree(whole / "run", whole / "ruined")
    for shard in (whole / "ruined/checkpoints").glob("iter_*/common.pt"):
        shard.unlink()
    process = start(write_job(whole, whole / "ruined", dtype="float32", train=short()))
    report, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "all 2 checkpoints are damaged" in report


def test_a_signal_saves_and_leaves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = launch(write_job(tmp_path, output), output)
    wait_for_updates(output, process, 7)
    process.send_signal(signal.SIGUSR1)
    report, _ = process.communicate(timeout=400)
    assert process.returncode == 75, report
    stopped = len(losses(output))
    assert 7 <= stopped < UPDATES
    assert f"stopped by SIGUSR1 after update {stopped} of {UPDATES}, which is saved" in report
    assert not (output / "huggingface").exists()

    process = start(write_job(tmp_path, output))
    wait_for_updates(output, process, stopped + 5)
    for worker in psutil.Process(process.pid).children():
        # One rank alone: the others learn of it after the update.
        worker.send_signal(signal.SIGTERM)
        break
    report, _ = process.communicate(timeout=400)
    assert f"resumed from iter_{stopped:07d} after update {stopped}" in report
    assert "stopped by SIGTERM after update" in report
    assert process.returncode != 0
    kept = files.complete(output / "checkpoints")[-1]
    assert json.loads((kept / files.STATE).read_text())["update"] == len(losses(output))


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    output = tmp_path / "run"
    job = write_job(tmp_path, output, train=short(updates=2))
    (output / "metrics.jsonl").mkdir()
    process = launch(job, output)
    text, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    report = text[text.rindex("LaunchError") :]
    assert f"PlatformError  {output / 'metrics.jsonl'}" in report
    assert "same command goes on from the last checkpoint" in report
    assert "Traceback" not in report


def test_the_death_of_one_rank_ends_the_others_with_one_report(tmp_path: Path) -> None:
    output = tmp_path / "run"
    # No checkpoint on the way: its writers would be children, too.
    job = write_job(tmp_path, output, train=short(updates=UPDATES, every=UPDATES))
    process = launch(job, output, processes=4)
    wait_for_updates(output, process, 3)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "megatron_reason.training.worker" in child.cmdline() and child.children() == []
    ]
    begun = time.monotonic()
    next(w for w in workers if w.environ().get("RANK") == "2").kill()
    report, _ = process.communicate(timeout=400)
    assert time.monotonic() - begun < 150
    assert process.returncode == 1
    assert "LaunchError  train" in report
    assert "rank 2 was killed (SIGKILL)" in report
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_a_poisoned_sample_is_skipped_and_kept_for_replay(tmp_path: Path) -> None:
    output = tmp_path / "run"
    sft = METHODS.get("sft").config_class(demos_per_update=1)
    write_job(tmp_path, output, tied=False)
    demos = read_table(tmp_path / "table", Kind.TOKENS).filter(role="demo")
    once_each = short(demos.height, demos.height)
    job = write_job(tmp_path, output, dtype="float32", method=sft, train=once_each)
    counts = {id: sum(id in row for row in demos["ids"]) for id in range(61)}
    poison = next(id for id, count in counts.items() if count == 1)
    victims = [r["sample_id"] for r in demos.iter_rows(named=True) if poison in r["ids"][:-1]]
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.embed_tokens.weight"][poison] = math.nan
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    report = run(job, 1)
    kept = sorted((output / "crash_report").glob("nonfinite_update_*"))
    names = [read_table(path, Kind.TOKENS)["sample_id"].to_list() for path in kept]
    assert names == [victims]
    assert "gradient norm nan" in report
    trained = load_file(output / "huggingface/model.safetensors")
    assert all(
        torch.isfinite(tensor).all() for name, tensor in trained.items() if "embed" not in name
    )


def test_a_full_disk_keeps_what_was_saved_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    output = small_disk / "run"
    job = write_job(tmp_path, output, dtype="float32", train=short(updates=18))
    process = start(job, 1)
    report, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "CheckpointError" in report
    assert "GB are free" in report
    assert not [*(output / "checkpoints").glob(".iter*")]
    (kept,) = files.complete(output / "checkpoints")
    assert kept.name == "iter_0000006"
    assert files.damage(kept, 0, 1) is None
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    assert "resumed from iter_0000006 after update 6" in run(job, 1)
    assert [step for step, _, _ in losses(output)] == list(range(1, 19))


@pytest.mark.parametrize(("more_files", "processes"), [(1, 1), (4, 2)])
def test_a_disk_that_fills_during_a_save_keeps_what_was_saved(
    tmp_path: Path, small_disk: Path, more_files: int, processes: int
) -> None:
    """Bytes are free, so the save begins; there is room for its folder alone, or not for its index.

    The index is rank 0's to write, while the other rank waits for it.
    """
    output = tmp_path / "run"
    output.mkdir()
    (output / "checkpoints").symlink_to(small_disk)
    leave_room_for(1000, small_disk)
    train = short(updates=18)
    job = write_job(tmp_path, output, dtype="float32", train=train, stop_after=6)
    run(job, processes)
    (first,) = files.complete(output / "checkpoints")
    leave_room_for(more_files, small_disk)
    job = write_job(tmp_path, output, dtype="float32", train=train)
    process = start(job, processes)
    report, _ = process.communicate(timeout=400)
    assert process.returncode != 0
    assert "the checkpoint could not be written" in report
    assert "No space left on device" in report
    assert "more files (inodes)" in report
    assert files.complete(output / "checkpoints") == [first]
    assert not [*(output / "checkpoints").glob(".iter*")]
    assert files.damage(first, 0, 1) is None
    leave_room_for(1000, small_disk)
    assert "resumed from iter_0000006 after update 6" in run(job, processes)
    assert [step for step, _, _ in losses(output)] == list(range(1, 19))
    assert len(files.complete(output / "checkpoints")) > 1


def save_until_killed(folder: Path) -> None:
    """One checkpoint after the other, in a process that waits for its end."""
    from megatron_reason.config.model import ModelConfig
    from megatron_reason.config.parallel import ParallelConfig
    from megatron_reason.config.train import CheckpointConfig, OptimConfig
    from megatron_reason.engine.checkpoint import Progress, load_latest
    from megatron_reason.engine.checkpoint_saver import CheckpointSaver
    from megatron_reason.engine.startup import load_model, make_trainable, parallel_world

    with parallel_world(ParallelConfig(), seed=1) as topology:
        model = ModelConfig(path="tiny", dtype="float32")
        stage = load_model(model, folder / "model", ParallelConfig(), topology)
        trainable = make_trainable(stage, OptimConfig(lr=1e-3), topology)
        state = load_latest(trainable, folder / "checkpoints", {}) or Progress(0, {}, {})
        saver = CheckpointSaver(trainable, folder / "checkpoints", CheckpointConfig(), "{}")
        first = state.update + 1
        while True:
            state = Progress(state.update + 1, {}, state.fingerprint)
            saver.begin(state)
            if state.update > first:
                (folder / "ready").touch()


def kill_savers(folder: Path, kills: int) -> None:
    """Fork savers, so that Megatron is imported once, and kill each at some moment."""
    from megatron_reason import platform

    draw, reached = random.Random(3), 0
    with platform.cpu():
        import megatron_reason.engine.checkpoint
        import megatron_reason.engine.startup  # noqa: F401

        for _ in range(kills):
            (folder / "ready").unlink(missing_ok=True)
            victim = os.fork()
            if not victim:
                save_until_killed(folder)
            deadline = time.monotonic() + 300
            while not (folder / "ready").is_file():
                assert time.monotonic() < deadline, "no checkpoint was written"
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.3))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            newest = files.complete(folder / "checkpoints")[-1]
            assert files.damage(newest, 0, 1) is None
            update = json.loads((newest / files.STATE).read_text())["update"]
            assert update > reached
            reached = update


def test_killed_during_a_save_at_ten_random_moments(tmp_path: Path) -> None:
    invariance.make_model(tmp_path / "model", tied=True)
    process = multiprocessing.get_context("spawn").Process(target=kill_savers, args=(tmp_path, 10))
    process.start()
    process.join(300)
    assert process.exitcode == 0
