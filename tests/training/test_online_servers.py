"""A live loop over HTTP whose server, a sharded one, is killed amid answers and amid a sync.

Weights are broadcast; servers that fetch them are tested in `tests/generation`.
"""

import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from logging import FileHandler
from pathlib import Path
from threading import Event
from typing import Any

import psutil
import pytest

from megatron_reason.config.sampling import EngineConfig
from megatron_reason.logs import get_logger
from megatron_reason.training.jobs import TrainJob
from tests.distributed import spawn
from tests.training.online_run import make_data, make_job, metrics, rollouts, run_all

pytest.importorskip("vllm")

UPDATES = 3
SETTINGS = {"max_model_len": 64, "max_num_seqs": 4, "kv_cache_mb": 64,
            "weight_transport": "broadcast"}  # fmt: skip
"""A prompt's four answers at a time, so that others are left when it is done."""
FEW = {"prompts_per_update": 3, "rollouts_per_prompt": 4}
WIDE = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads of 64 columns, as vLLM needs on a CPU."""


def kill_once(output: Path, server: int, moment: str) -> None:
    """Kill vLLM itself, which `mreason serve` starts again."""
    note = output / f"killed_{moment}"
    if not note.exists():
        vllm = psutil.Process(server).children()[-1].pid
        note.write_text(str(vllm), encoding="utf-8")
        os.killpg(vllm, signal.SIGKILL)


def run_while_it_is_killed(
    rank: int, world_size: int, jobs: Sequence[TrainJob], server: int
) -> None:
    from megatron_reason.generation.server_engine import ServerEngine
    from megatron_reason.rollout.collect import Collector

    job, ahead = jobs
    graded, receive, completed = Collector._graded, ServerEngine._receive, ServerEngine._completed
    engines: list[Any] = []
    is_killed = Event()

    def killed_amid_answers(collector: Any, *what: Any) -> Any:
        # A prompt of the second step is done, the last is not.
        if engines and engines[0].policy_version == 1:
            kill_once(job.output, server, "amid_answers")
            is_killed.set()
        return graded(collector, *what)

    def asked_last_after_the_kill(engine: Any, url: str, one: Any, *how: Any) -> Any:
        if engine.policy_version == 1 and one.prompt == 2:
            assert is_killed.wait(60), "no prompt was answered"
        return completed(engine, url, one, *how)

    def killed_amid_a_sync(engine: Any, buckets: Any, version: int) -> None:
        engines[:] = [engine]

        def killing() -> Iterator[Any]:
            for bucket in buckets:
                yield bucket
                if version == 2:
                    kill_once(job.output, server, "amid_a_sync")

        receive(engine, killing(), version)

    Collector._graded, ServerEngine._receive = killed_amid_answers, killed_amid_a_sync
    ServerEngine._completed = asked_last_after_the_kill
    get_logger("megatron_reason").addHandler(FileHandler(job.output.parent / "log"))
    try:
        run_all(rank, world_size, [job])
    finally:
        Collector._graded, ServerEngine._receive = graded, receive
        ServerEngine._completed = completed
    run_all(rank, world_size, [ahead])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with one server: `live`, in which it is killed, then `ahead`."""
    tmp_path = tmp_path_factory.mktemp("served")
    make_data(tmp_path, WIDE)
    servers = tmp_path / "servers"
    run = tmp_path / "run.yaml"
    sharded = {**SETTINGS, "tensor_parallel_size": 2}
    settings = ", ".join(f"{key}: {value}" for key, value in sharded.items())
    run.write_text(
        f"run: {{name: served, dir: {tmp_path}}}\n"
        f"model: {{path: {tmp_path / 'model'}, dtype: float32}}\nengine: {{{settings}}}\n",
        encoding="utf-8",
    )
    engine = EngineConfig.model_validate(
        {"name": "vllm-server", "servers_folder": str(servers), "start_timeout_s": 240,
         "request_timeout_s": 60, **SETTINGS}
    )  # fmt: skip
    jobs: list[TrainJob] = []
    for name, ahead in (("live", 0), ("ahead", 1)):
        rollout = {"steps_ahead": ahead}
        job = make_job(tmp_path, name, "grpo", FEW, updates=UPDATES, rollout=rollout)
        assert job.rollout is not None
        asked = job.rollout.model_copy(update={"engine": engine})
        jobs.append(job.model_copy(update={"rollout": asked}))
    command = [sys.executable, "-m", "megatron_reason.cli.app", "serve", str(run), "--port", "0"]
    with subprocess.Popen([*command, "--register", str(servers)]) as server:
        try:
            spawn(run_while_it_is_killed, 1, jobs, server.pid)
        finally:
            server.terminate()
    return tmp_path


def test_a_server_that_is_killed_twice_costs_time_and_no_run(folder: Path) -> None:
    output = folder / "live"
    assert not (output / "error_0.txt").exists(), (output / "error_0.txt").read_text()
    killed = {
        (output / f"killed_{moment}").read_text() for moment in ("amid_answers", "amid_a_sync")
    }
    assert len(killed) == 2, "each time another process"
    log = (folder / "log").read_text(encoding="utf-8")
    assert re.search(r"the engine is back; [12] of 3 prompts are asked again", log)
    assert log.count("the engine is started again") >= 2
    rows = metrics(output)[-UPDATES:]
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert math.isfinite(row["train/loss"])
        assert row["rollout/staleness"] == 0
        # Both are in float32, and the answers fit the trainer's weights, not those of the folder.
        assert row["sync/probe_abs_diff"] < 1e-3
        assert row["mismatch/logprob_abs_diff"] < 1e-3
    for step in range(1, UPDATES + 1):
        drawn = rollouts(output, step)
        assert len(drawn) == 12
        assert {one["policy_version"] for one in drawn} == {step - 1}


def test_rollouts_are_made_ahead_on_servers_while_updates_are_made(folder: Path) -> None:
    output = folder / "ahead"
    assert not (output / "error_0.txt").exists(), (output / "error_0.txt").read_text()
    assert (output / "overlapped").exists()
    rows = metrics(output)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1]
    assert all(row["sync/probe_abs_diff"] < 1e-3 for row in rows)
    found = [row["mismatch/logprob_abs_diff"] for row in rows]
    assert found[0] < 1e-3 < min(found[1:]), "made by the weights before"
    for step in range(1, UPDATES + 1):
        drawn = rollouts(output, step)
        assert len(drawn) == 12
        assert {one["policy_version"] for one in drawn} == {max(step - 2, 0)}
