"""Live loops whose rollouts real vLLM makes, its death at several moments, and a wish to stop."""

import math
import os
import re
import signal
from collections.abc import Sequence
from logging import FileHandler
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_reason.config.sampling import EngineConfig
from megatron_reason.engine import checkpoint_folder as files
from megatron_reason.logs import get_logger
from megatron_reason.training.jobs import TrainJob
from tests.distributed import spawn
from tests.training.online_run import make_data, make_job, metrics, rollouts, run_all
from tests.training.tiny_run import launch, wait_for_updates

pytest.importorskip("vllm")

VLLM = EngineConfig(name="vllm", max_model_len=64, max_num_seqs=16, kv_cache_mb=64)
FEW = {"prompts_per_update": 3, "rollouts_per_prompt": 4}
UPDATES = 3
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 64 columns, as vLLM needs on a CPU."""
_LONG = {"max_tokens": 40}
RUNS = {
    "grpo": ("grpo", FEW, {}), "srft": ("srft", FEW | {"temperature": 0.7}, {}),
    "dies": ("grpo", FEW, {"steps_ahead": 1, **_LONG}), "dies_twice": ("grpo", FEW, _LONG),
    "sharded": ("grpo", FEW, _LONG),
}  # fmt: skip


def kill_once(actor: Any, run: str, version: int) -> None:
    """Kill the engine of the run called so, once at each version, and note it."""
    note = actor.source.folder.parent / f"killed_{version}"
    if actor.source.folder.parent.name == run and not note.exists():
        note.touch()
        os.killpg(actor.engine.pid, signal.SIGKILL)


def kill_a_worker(actor: Any) -> None:
    """Kill one of the processes among which the engine of the run `sharded` shards its model."""
    folder = actor.source.folder.parent
    if folder.name != "sharded" or (folder / "worker").exists():
        return
    children = psutil.Process(actor.engine.pid).children()
    workers = [child for child in children if "Worker" in child.name()]
    (folder / "worker").write_text(str(len(workers)), encoding="utf-8")
    workers[-1].kill()


def run_where_some_die(rank: int, world_size: int, jobs: Sequence[TrainJob]) -> None:
    """As `run_all`, but engines are killed: at work ahead, between two steps, amid answers."""
    from megatron_reason.rollout.collect import Collector
    from megatron_reason.training.actor import Actor

    go_ahead, batch, graded = Actor.go_ahead, Actor.batch, Collector._graded
    actors: list[Any] = []

    def killed_ahead(actor: Any, position: Any, *, version: int) -> None:
        go_ahead(actor, position, version=version)
        if version == 0:
            kill_once(actor, "dies", version)

    def killed_between(actor: Any, position: Any, *, version: int) -> Any:
        actors[:] = [actor]
        if version == 1:
            kill_once(actor, "dies_twice", version)
            kill_a_worker(actor)
        return batch(actor, position, version=version)

    def killed_amid(collector: Any, *what: Any) -> Any:
        # The first prompt of the third step is done, the others are not.
        if actors[0].engine.policy_version == 2:
            kill_once(actors[0], "dies_twice", 2)
        return graded(collector, *what)

    Actor.go_ahead, Actor.batch, Collector._graded = killed_ahead, killed_between, killed_amid
    get_logger("megatron_reason").addHandler(FileHandler(jobs[0].output.parent / "log"))
    try:
        run_all(rank, world_size, jobs)
    finally:
        Actor.go_ahead, Actor.batch, Collector._graded = go_ahead, batch, graded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs, made by one trainer process after the other's engine was closed."""
    folder = tmp_path_factory.mktemp("live")
    make_data(folder, WIDE)
    jobs: list[TrainJob] = []
    for name, (method, settings, rollout) in RUNS.items():
        job = make_job(folder, name, method, settings, updates=UPDATES, rollout=rollout)
        assert job.rollout is not None
        # A prompt's four at a time, so that others are left when it is done.
        places = 4 if name == "dies_twice" else VLLM.max_num_seqs
        shards = 2 if name == "sharded" else 1
        engine = VLLM.model_copy(update={"max_num_seqs": places, "tensor_parallel_size": shards})
        asked = job.rollout.model_copy(update={"engine": engine})
        jobs.append(job.model_copy(update={"rollout": asked}))
    spawn(run_where_some_die, 1, jobs)
    return folder


def log_of(folder: Path) -> str:
    return (folder / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_trains_on_what_vllm_answers(folder: Path, name: str) -> None:
    output = folder / name
    assert not (output / "error_0.txt").exists(), (output / "error_0.txt").read_text()
    rows = metrics(output)
    assert rows[-1]["step"] == UPDATES
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    for row in rows[-UPDATES:]:
        assert row["sync/probe_abs_diff"] < 1e-3, "engine and trainer are both in float32"
        if row["rollout/staleness"] == 0:
            assert row["mismatch/logprob_abs_diff"] < 1e-3
    assert all(len(rollouts(output, step)) == 12 for step in range(1, UPDATES + 1))


def test_an_engine_that_dies_ahead_costs_a_batch_and_no_run(folder: Path) -> None:
    output = folder / "dies"
    assert (output / "killed_0").exists()
    staleness = {row["step"]: row["rollout/staleness"] for row in metrics(output)
                 if "rollout/staleness" in row}  # fmt: skip
    # The batch begun before the kill is made anew by the weights of the push after it.
    assert staleness == {1: 0.0, 2: 0.0, 3: 1.0}


def test_an_engine_that_dies_in_a_synchronous_run_has_the_trainers_weights_again(
    folder: Path,
) -> None:
    """That its answers fit the trainer's weights is a check of every run above."""
    output = folder / "dies_twice"
    assert (output / "killed_1").exists()
    assert (output / "killed_2").exists()
    assert re.search(r"the engine is back; [12] of 3 prompts are asked again", log_of(folder))
    for step in range(1, UPDATES + 1):
        assert {row["policy_version"] for row in rollouts(output, step)} == {step - 1}
    assert [row["rollout/staleness"] for row in metrics(output)[-UPDATES:]] == [0.0] * UPDATES


def test_a_sharded_engine_one_of_whose_workers_dies_has_the_trainers_weights_again(
    folder: Path,
) -> None:
    """Both workers have their shards of every tensor, before and after; see the checks above."""
    output = folder / "sharded"
    assert (output / "worker").read_text() == "2"
    for step in range(1, UPDATES + 1):
        assert {row["policy_version"] for row in rollouts(output, step)} == {step - 1}


def test_a_signal_to_every_process_saves_and_leaves_and_the_run_goes_on(folder: Path) -> None:
    """Some SLURMs hand it to engine and graders, too, which the last step still needs."""
    job = make_job(folder, "stopped", "grpo", FEW, updates=200, rollout=_LONG,
                   parallel={"pipeline_model_parallel_size": 2})  # fmt: skip
    assert job.rollout is not None
    # Its shards are processes of their own, with handlers of signals that are vLLM's.
    engine = VLLM.model_copy(update={"tensor_parallel_size": 2})
    job = job.model_copy(update={"rollout": job.rollout.model_copy(update={"engine": engine})})
    job.output.mkdir()
    path = job.output / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    stopped = 0
    for number in (signal.SIGUSR1, signal.SIGTERM):
        process = launch(path, job.output, processes=2)
        wait_for_updates(job.output, process, stopped + 2)
        everyone = psutil.Process(process.pid).children(recursive=True)
        assert len(everyone) > 4, "launcher, two ranks, an engine, a grader"
        for one in (*everyone, psutil.Process(process.pid)):
            one.send_signal(number)
        report, _ = process.communicate(timeout=400)
        assert process.returncode == 75, report
        assert "the engine is started again" not in report
        _, alive = psutil.wait_procs(everyone, timeout=60)
        assert not alive
        assert f"resumed from iter_{stopped:07d}" in report or not stopped
        last = files.complete(job.output / "checkpoints")[-1]
        assert stopped + 2 <= int(last.name.removeprefix("iter_")) < 200
        stopped = int(last.name.removeprefix("iter_"))
        assert f"saved {last.name}" in report
        assert metrics(job.output)[-1]["step"] == stopped
        assert metrics(job.output)[-1]["reward/status_crash"] == 0


def test_a_trainer_killed_with_9_leaves_neither_vllm_nor_graders_behind(folder: Path) -> None:
    """Nobody is left who could close them; they must see it themselves."""
    job = make_job(folder, "orphaned", "grpo", FEW, updates=200, rollout=_LONG)
    assert job.rollout is not None
    job = job.model_copy(update={"rollout": job.rollout.model_copy(update={"engine": VLLM})})
    job.output.mkdir()
    path = job.output / "job.json"
    path.write_text(job.model_dump_json(), encoding="utf-8")
    process = launch(path, job.output, processes=1)
    wait_for_updates(job.output, process, 1)
    trainer = psutil.Process(process.pid)
    others = trainer.children(recursive=True)
    ours = [one for one in others if "training.worker" in " ".join(one.cmdline())]
    left = [one for one in others if one not in ours]
    named = [" ".join(one.cmdline()) for one in left]
    assert any("generation.child" in name for name in named), "vLLM"
    assert any("rewards._worker" in name for name in named), "a grader"
    for one in (trainer, *ours):
        one.kill()
    process.communicate()
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
