"""What follows an engine's death, with the parent's real code and a small real process as engine.

The process speaks the messages of `vllm_process` and answers with what its weights and the request
say, so a lost prompt, a stale weight or a repeated answer shows. Real vLLM: `test_vllm_engine.py`.
"""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation import vllm_engine
from megatron_reason.generation.vllm_engine import VllmEngine
from megatron_reason.training.actor import Actor
from tests.generation.test_child import is_alive
from tools.make_tiny_model import make_tiny_model

ENTRY = """
import os, signal, time
from pathlib import Path
from safetensors.torch import load_file
from megatron_reason.generation.buckets import mapped, size_of, views
from megatron_reason.generation.vllm_process import *

FOLDER = Path(__file__).parent

def order(name):
    # True once for each time the test asks for it.
    file = FOLDER / name
    if not file.exists():
        return False
    left = int(file.read_text()) - 1
    file.write_text(str(left)) if left else file.unlink()
    return True

def norm(folder):
    return load_file(Path(folder) / "model.safetensors")["model.norm.weight"]

def serve(connection):
    weight = fresh = None
    while True:
        try:
            command = connection.recv()
        except EOFError:
            return
        if order("hang in " + type(command).__name__):
            time.sleep(600)
        if order("die in " + type(command).__name__):
            os.kill(os.getpid(), signal.SIGKILL)
        match command:
            case Start():
                weight = norm(command.folder)
            case LoadWeights():
                weight = norm(command.folder)
            case LoadBucket():
                memory = mapped(command.path, size_of(command.entries))
                for entry, tensor in zip(command.entries, views(memory, command.entries)):
                    if entry.name == "model.norm.weight":
                        fresh = tensor.clone()
            case FinishUpdate():
                weight = fresh
            case Generate():
                for index in reversed(range(len(command.prompts))):
                    if order("die after a prompt"):
                        os.kill(os.getpid(), signal.SIGKILL)
                    told = float(weight.double().sum())
                    drawn = [Drawn((seed,), (told,), True) for seed in command.seeds[index]]
                    connection.send(PromptDone(index, tuple(drawn)))
                continue
            case Score():
                told = float(weight.double().sum())
                connection.send(Scored(tuple((told,) * (len(s) - 1) for s in command.sequences)))
                continue
        connection.send(Ready())
"""
PROMPTS = [[1, 2], [3], [1, 2], [4, 5]]
SAMPLING = SamplingConfig(samples_per_prompt=2)
CONFIG = EngineConfig(max_restarts=1, start_timeout_s=120)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [make_tiny_model("Qwen2ForCausalLM", root / str(n), seed=n) for n in (1, 2)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "small_engine.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(vllm_engine, "ENTRY", "small_engine:serve")
    return tmp_path


@pytest.fixture
def engine(home: Path, folders: list[Path]) -> Iterator[VllmEngine]:
    with VllmEngine(folders[0], CONFIG, dtype="float32", log_folder=home) as engine:
        yield engine


def order(home: Path, what: str, times: int = 1) -> None:
    (home / what).write_text(str(times))


def told(folder: Path) -> float:
    return load_file(folder / "model.safetensors")["model.norm.weight"].double().sum().item()


def parts_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    tensors = load_file(folder / "model.safetensors")
    return [{name: tensors[name]} for name in sorted(tensors)]


def test_nothing_is_lost_or_drawn_otherwise_when_it_dies_between_prompts(
    engine: VllmEngine, home: Path
):
    expected = engine.generate(PROMPTS, SAMPLING)
    assert len({c.token_ids for row in expected for c in row}) == 8
    first = engine.pid
    order(home, "die after a prompt")
    order(home, "die in Generate")
    done: list[int] = []
    engine._config = CONFIG.model_copy(update={"max_restarts": 2})
    assert engine.generate(PROMPTS, SAMPLING, on_done=done.append) == expected
    assert sum(done) == len(PROMPTS)
    assert engine.pid != first
    assert not is_alive(first)


def test_finished_prompts_are_not_asked_again(engine: VllmEngine, home: Path):
    seen: list[int] = []
    for index, _ in engine.stream(PROMPTS, SAMPLING):
        seen.append(index)
        if len(seen) == 2:
            os.kill(engine.pid, signal.SIGKILL)
            # Answers that were sent before the death may still be read.
            time.sleep(0.2)
    assert sorted(seen) == [0, 1, 2, 3]


def test_whether_it_answers_can_be_asked(
    engine: VllmEngine, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine.is_healthy()
    os.kill(engine.pid, signal.SIGKILL)
    assert engine.is_open, "nobody has noticed"
    assert not engine.is_healthy()
    assert not engine.is_open
    engine.restart(EngineDiedError("it", "died.", "-"))
    assert engine.is_healthy()
    hung = engine.pid
    order(home, "hang in Ping")
    monkeypatch.setattr(vllm_engine, "_PING_TIMEOUT_S", 1.0)
    assert not engine.is_healthy()
    assert not is_alive(hung)


def test_an_actor_starts_an_engine_again_that_died_during_the_updates(
    engine: VllmEngine, folders: list[Path]
) -> None:
    actor = Actor(cast(Any, None), engine, None, ThreadPoolExecutor(1), sleeps=False)
    actor.rouse()
    first = engine.pid
    os.kill(first, signal.SIGKILL)
    actor.rouse()
    assert engine.pid != first
    assert engine.score([[1, 2]]) == [[told(folders[0])]]


def test_death_between_calls_is_survived(engine: VllmEngine, folders: list[Path]):
    engine.load_weights(folders[1])
    os.kill(engine.pid, signal.SIGKILL)
    ((one, _), *_) = engine.generate(PROMPTS, SAMPLING)
    assert one.logprobs == (told(folders[1]),)
    assert one.policy_version == 1


def test_hung_engine_is_replaced(engine: VllmEngine, home: Path):
    engine._config = CONFIG.model_copy(update={"request_timeout_s": 4.0})
    order(home, "hang in Generate")
    first = engine.pid
    assert len(engine.generate(PROMPTS, SAMPLING)) == 4
    assert engine.pid != first
    assert not is_alive(first)


def test_it_is_given_up_when_it_dies_too_often(engine: VllmEngine, home: Path):
    order(home, "die in Generate", times=9)
    with pytest.raises(EngineDiedError, match="exit code -9"):
        engine.generate(PROMPTS, SAMPLING)
    assert (home / "die in Generate").read_text() == "7"
    assert not engine.is_open


def test_weights_of_a_trainer_come_back_from_the_trainer_alone(
    engine: VllmEngine, folders: list[Path]
):
    parts = parts_of(folders[1])
    engine.update_weights(parts, version=5)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError):
        engine.generate(PROMPTS, SAMPLING)
    with pytest.raises(GenerationError, match="closed"):
        engine.generate(PROMPTS, SAMPLING)
    engine.restart(EngineDiedError("engine", "it died.", "-"))
    engine.update_weights(parts, version=5)
    engine._deaths = 0
    engine.refill = lambda: engine.update_weights(parts, version=5)
    os.kill(engine.pid, signal.SIGKILL)
    ((one, _), *_) = engine.generate(PROMPTS, SAMPLING)
    assert (one.logprobs, one.policy_version) == ((told(folders[1]),), 5)


@pytest.mark.parametrize("command", ["StartUpdate", "LoadBucket", "FinishUpdate"])
def test_death_in_an_update_is_told_and_old_weights_do_not_answer(
    engine: VllmEngine, home: Path, folders: list[Path], command: str
):
    order(home, f"die in {command}")
    with pytest.raises(EngineDiedError) as caught:
        engine.update_weights(parts_of(folders[1]), version=3)
    assert not engine.is_open
    engine.restart(caught.value)
    engine.update_weights(parts_of(folders[1]), version=3)
    assert engine.score([[1, 2]]) == [[told(folders[1])]]
    assert engine.policy_version == 3


def test_death_in_an_exchange_of_folders_is_survived(
    engine: VllmEngine, home: Path, folders: list[Path]
):
    order(home, "die in LoadWeights")
    engine.load_weights(folders[1])
    assert engine.score([[1, 2]]) == [[told(folders[1])]]
    assert engine.policy_version == 1


def test_left_alone_in_the_middle_it_is_closed(engine: VllmEngine):
    stream = engine.stream(PROMPTS, SAMPLING)
    next(stream)
    pid = engine.pid
    stream.close()
    assert not engine.is_open
    assert not is_alive(pid)
