"""Two real vLLM servers in processes of their own, asked by a trainer's engine.

What no server of vLLM's says comes from a small server of this file.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import ConfigError, EngineDiedError, GenerationError
from megatron_reason.generation.buckets import TCP
from megatron_reason.generation.server_answers import GENERATE
from megatron_reason.generation.server_engine import ServerEngine
from megatron_reason.generation.vllm_arguments import LOGPROBS
from megatron_reason.generation.vllm_server import is_healthy
from megatron_reason.schema.records import Finish
from tests.models.tiny import make
from tools.make_tiny_model import make_tiny_model

pytest.importorskip("vllm")

PROMPTS = [[504, 3575, 282, 4649, 314, 7042, 30], [10345, 8055, 827, 2022, 1876, 28, 284],
           [6403, 1980, 253, 655, 665, 436]]  # fmt: skip
"""Beginnings of English sentences."""
DRAWN = SamplingConfig(samples_per_prompt=2, max_tokens=8)
LENGTHS = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_mb": 64}
PATIENCE_S = 20
"""Seconds after which `mreason serve` takes a silent vLLM for hung."""


@dataclass(frozen=True)
class Server:
    """`mreason serve` on SmolLM2."""

    process: subprocess.Popen[str]
    folder: Path
    port: int

    def config(self, **changes: object) -> EngineConfig:
        """What asks it, by the folder in which it registers."""
        where = {"name": "vllm-server", "servers_folder": str(self.folder), "num_servers": 2,
                 "start_timeout_s": 240}  # fmt: skip
        return EngineConfig.model_validate({**where, **LENGTHS, **changes})

    def child(self) -> int:
        """Process of vLLM, which `mreason serve` watches over."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        return int(children[-1])


LABEL = "what the weights are called"


class Garbled(ThreadingHTTPServer):
    """A server whose first answer to token ids is `first`, and all others as they should be."""

    daemon_threads = True

    def __init__(self, first: bytes, model: Path, *, empties: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), GarbledHandler)
        self.model = model
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.left = [first]
        self.label = ""
        self.empties = empties
        self.score = -1.0

    def generated(self, token_ids: list[int]) -> bytes:
        """What is answered to these."""
        with suppress(IndexError):
            return self.left.pop().replace(LABEL.encode(), self.label.encode())
        prompt = [None, *({str(token): {"logprob": self.score}} for token in token_ids[1:])]
        return answered(self.label, prompt)


class GarbledHandler(BaseHTTPRequestHandler):
    server: Garbled
    logprobs_mode = LOGPROBS["model"]

    def do_GET(self) -> None:
        info = {"model_config": {"model": str(self.server.model), "max_model_len": 256,
                                 "logprobs_mode": self.logprobs_mode},
                "weight_transfer_config": {"backend": TCP},
                "parallel_config": {"world_size": 1}}  # fmt: skip
        self._say(json.dumps({"vllm_config": info}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.label = body.get("new_version", self.server.label)
        if self.path.endswith("generate"):
            self._say(self.server.generated(body["token_ids"]))
        elif self.path.endswith("reset_prefix_cache"):
            self._say(json.dumps({"success": self.server.empties}).encode())
        else:
            self._say(b"")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _say(self, answer: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def answered(label: str = LABEL, prompt_logprobs: object = None, **changes: object) -> bytes:
    choice = {"token_ids": [7], "logprobs": {"content": [{"logprob": -0.5}]},
              "finish_reason": "stop", "weight_versions": [{"version": label}]}  # fmt: skip
    return json.dumps(
        {"choices": [{**choice, **changes}], "prompt_logprobs": prompt_logprobs}
    ).encode()


@contextmanager
def garbled(
    first: bytes,
    folder: Path,
    served: Path | None = None,
    *,
    empties: bool = True,
    **changes: object,
) -> Iterator[ServerEngine]:
    """An engine whose only server begins with `first`, on the same model unless told otherwise."""
    with Garbled(first, served or folder, empties=empties) as server:
        threading.Thread(target=server.serve_forever).start()
        config = EngineConfig.model_validate(
            {"name": "vllm-server", "servers": (server.url,), "start_timeout_s": 20,
             "request_timeout_s": 20, **LENGTHS, **changes}
        )  # fmt: skip
        try:
            with ServerEngine(folder, config, dtype="float32") as engine:
                yield engine
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("first", "what"),
    [
        (b"", "generate' cannot be read .all of it"),
        (b"<html>", "no JSON: '<html>'"),
        (b"\xff", "no JSON"),
        (b"[1]", "all of it"),
        (b'{"choices": []}', "choices"),
        (answered(logprobs=None), "1 tokens with 0 log-probs"),
        (answered(logprobs={"content": [{"logprob": None}]}), "content.0.logprob"),
        (answered(token_ids=None), "token_ids"),
        (answered(token_ids=[], logprobs={"content": []}), "0 tokens with 0 log-probs"),
        (answered(finish_reason=None), "finish_reason"),
        (answered(weight_versions=None), "weight_versions"),
        (answered(weight_versions=[]), "weights called .., not"),
    ],
)
def test_an_answer_that_cannot_be_read_is_asked_for_again(
    tmp_path: Path, first: bytes, what: str
) -> None:
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    began = time.monotonic()
    with garbled(first, folder) as engine:
        ((drawn,),) = engine.generate([[1, 2]], SamplingConfig(max_tokens=4))
        assert (drawn.token_ids, drawn.logprobs) == ((7,), (-0.5,))
    with garbled(first, folder, max_restarts=0) as engine:
        with pytest.raises(EngineDiedError, match=what) as raised:
            engine.generate([[1, 2]], SamplingConfig(max_tokens=4))
        assert raised.value.where == engine._config.servers[0]
    assert time.monotonic() - began < 60, "it was waited for"


def test_as_many_sequences_as_servers_are_scored_by_one_each(tmp_path: Path) -> None:
    """By that a trainer learns whether its weights have arrived at all of them."""
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    with Garbled(answered(), folder) as one, Garbled(answered(), folder) as other:
        for number, server in enumerate((one, other)):
            server.left, server.score = [], -1.0 - number
            threading.Thread(target=server.serve_forever).start()
        config = EngineConfig.model_validate(
            {"name": "vllm-server", "servers": (one.url, other.url), "start_timeout_s": 20,
             "request_timeout_s": 20, **LENGTHS}
        )  # fmt: skip
        try:
            with ServerEngine(folder, config, dtype="float32") as engine:
                assert engine.num_copies == 2
                assert engine.score([[1, 2]] * engine.num_copies) == [[-1.0], [-2.0]]
        finally:
            one.shutdown()
            other.shutdown()


@pytest.mark.parametrize(
    "prompt_logprobs",
    [None, [None], [None, None], [None, {"9": {"logprob": -1.0}}], [None, {"2": {}}]],
)
def test_scores_that_cannot_be_read_are_asked_for_again(
    tmp_path: Path, prompt_logprobs: object
) -> None:
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    first = answered(prompt_logprobs=prompt_logprobs)
    with garbled(first, folder) as engine:
        assert engine.score([[1, 2]]) == [[-1.0]]
    unforgiving = garbled(first, folder, max_restarts=0)
    with unforgiving as engine, pytest.raises(EngineDiedError, match="cannot be read"):
        engine.score([[1, 2]])


def test_a_server_with_another_vocabulary_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    other = make_tiny_model("LlamaForCausalLM", tmp_path / "other", vocab_size=300)
    refused = garbled(answered(), folder, other)
    with pytest.raises(ConfigError, match="another vocabulary than"), refused:
        pass
    with garbled(answered(), folder, tmp_path / "elsewhere"):
        assert "vocabularies are not compared" in caplog.text


def test_a_server_that_keeps_keys_of_old_weights_is_not_asked(tmp_path: Path) -> None:
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    refused = garbled(answered(), folder, empties=False, max_restarts=0)
    with pytest.raises(EngineDiedError, match="could not empty its prefix cache"), refused:
        pass


def test_who_asks_for_the_models_log_probs_and_gets_the_samplers_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make("LlamaForCausalLM-tied", tmp_path / "model")
    with garbled(answered(), folder):
        assert "log-probs of the distribution" not in caplog.text
    monkeypatch.setattr(GarbledHandler, "logprobs_mode", LOGPROBS["sampler"])
    with garbled(answered(), folder):
        assert "tells log-probs of the distribution that it samples from" in caplog.text


def serve(run: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_reason.cli.app", "serve", str(run), "--port", str(port),
         "--register", str(run.parent / "servers")],
        text=True, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def server(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The first of two; the second listens at a port that it has found by itself."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    lengths = ", ".join(f"{key}: {value}" for key, value in LENGTHS.items())
    run = folder / "run.yaml"
    run.write_text(
        f"run: {{name: served, dir: {folder}}}\nmodel: {{path: {smollm2}, dtype: bfloat16}}\n"
        f"engine: {{{lengths}, request_timeout_s: {PATIENCE_S}}}\n",
        encoding="utf-8",
    )
    both = [Server(serve(run, number), folder / "servers", number) for number in (port, 0)]
    yield both[0]
    children = [server.child() for server in both]
    # A job script passes on USR1 before the time limit; it queues what ends with 75 again.
    for server, number in zip(both, (signal.SIGTERM, signal.SIGUSR1), strict=True):
        server.process.send_signal(number)
    for server, code in zip(both, (0, 75), strict=True):
        assert server.process.wait(120) == code
    assert not list((folder / "servers").iterdir())
    deadline = time.monotonic() + 60
    while any(map(alive_in, children)):
        assert time.monotonic() < deadline, "a server's engine outlives it"
        time.sleep(0.1)


def await_another(server: Server, child: int) -> None:
    """Until `mreason serve` has put a vLLM that answers in the place of `child`."""
    deadline = time.monotonic() + PATIENCE_S + 240
    # Its children are none for a moment.
    while alive_in(child) or not is_healthy(f"http://127.0.0.1:{server.port}"):
        assert time.monotonic() < deadline, "it still hangs"
        time.sleep(0.5)
    assert server.child() != child


def alive_in(group: int) -> list[int]:
    """Processes of a group; those that have ended may still wait for the system to notice."""
    found: list[int] = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            is_member = os.getpgid(process.pid) == group
            if is_member and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def requests_of_each(server: Server) -> list[int]:
    """How many continuations each of the two was asked for, as its log says."""
    logs = sorted(server.folder.parent.glob("served/logs/server-*.log"))
    return [log.read_text(encoding="utf-8").count("POST /inference/v1/generate") for log in logs]


@pytest.fixture(scope="module")
def engine(server: Server, smollm2: Path) -> Iterator[ServerEngine]:
    with ServerEngine(smollm2, server.config(logprobs="sampler"), dtype="bfloat16") as engine:
        yield engine


@pytest.fixture(scope="module")
def model(smollm2: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)


def buckets(model: torch.nn.Module, factor: float) -> list[dict[str, Tensor]]:
    """The weights times `factor`, in three parts."""
    named = [
        (name, (factor * value).bfloat16())
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    ]
    return [dict(named[begin::3]) for begin in range(3)]


def gap(model: torch.nn.Module, factor: float, scores: list[list[float]]) -> float:
    """Mean distance of log-probs from those of the model with these weights."""
    with torch.no_grad():
        state = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict({name: factor * value for name, value in state.items()})
        gaps: list[float] = []
        for ids, found in zip(PROMPTS, scores, strict=True):
            logprob_TV = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            exact = logprob_TV.gather(1, torch.tensor(ids)[1:, None])[:, 0]
            gaps += (exact - torch.tensor(found)).abs().tolist()
        model.load_state_dict(state)
    return sum(gaps) / len(gaps)


def test_it_answers_token_ids_with_token_ids(engine: ServerEngine, model: torch.nn.Module) -> None:
    drawn = engine.generate(PROMPTS, DRAWN)
    assert [len(row) for row in drawn] == [2, 2, 2]
    for one in (one for row in drawn for one in row):
        assert (len(one.token_ids), one.finish, one.policy_version) == (8, Finish.LENGTH, 0)
        assert len(one.logprobs) == 8
    assert drawn[0][0].token_ids != drawn[0][1].token_ids
    # One alone: which others a server decodes beside it changes the last digits.
    alone = DRAWN.model_copy(update={"samples_per_prompt": 1})
    once, again = (engine.generate(PROMPTS[:1], alone) for _ in range(2))
    assert once[0][0].token_ids == again[0][0].token_ids
    assert gap(model, 1.0, engine.score(PROMPTS)) < 0.2
    stop = once[0][0].token_ids[3]
    (ended,) = engine.generate(PROMPTS[:1], alone, stop_token_ids=[stop])
    assert ended[0].finish == Finish.STOP
    assert ended[0].token_ids[-1] == stop


def test_weights_arrive_over_tcp(engine: ServerEngine, model: torch.nn.Module) -> None:
    engine.update_weights(buckets(model, 0.8), version=5)
    scores = engine.score(PROMPTS)
    assert gap(model, 0.8, scores) < 0.2 < 1 < gap(model, 1.0, scores)
    assert engine.generate(PROMPTS, DRAWN)[0][0].policy_version == 5
    engine.load_weights(engine._folder)
    assert gap(model, 1.0, engine.score(PROMPTS)) < 0.2


def test_an_update_whose_trainer_was_killed_does_not_stand_in_the_next_ones_way(
    engine: ServerEngine, server: Server, smollm2: Path, model: torch.nn.Module
) -> None:
    whole = buckets(model, 0.8)

    def killed() -> Iterator[dict[str, Tensor]]:
        yield buckets(model, 0.5)[0]
        time.sleep(3)  # It is loaded by then.
        raise KeyboardInterrupt

    config = server.config(logprobs="sampler")
    first = ServerEngine(smollm2, config, dtype="bfloat16")
    with pytest.raises(KeyboardInterrupt):
        first.update_weights(killed(), version=1)
    with ServerEngine(smollm2, config, dtype="bfloat16") as second:
        assert gap(model, 1.0, second.score(PROMPTS)) < 0.2
        second.update_weights(whole, version=2)
        scores = second.score(PROMPTS)
        assert gap(model, 0.8, scores) < 0.2 < 1 < gap(model, 1.0, scores)
    engine.load_weights(engine._folder)
    assert gap(model, 1.0, engine.score(PROMPTS)) < 0.2


def test_what_a_lost_engine_still_asks_ends_before_weights_come(
    engine: ServerEngine, server: Server, model: torch.nn.Module
) -> None:
    child = server.child()
    weights = buckets(model, 0.8)
    asked = {"max_tokens": 240, "ignore_eos": True}
    body = {"token_ids": PROMPTS[0], "sampling_params": asked}
    with httpx.Client(timeout=60) as lost, ThreadPoolExecutor(16) as threads:
        left = [
            threads.submit(lost.post, f"{url}/{GENERATE}", json=body)
            for url in 8 * engine._servers.urls
        ]
        time.sleep(2)
        engine.update_weights(weights, version=5)
        ends = [found.result().json()["choices"][0]["finish_reason"] for found in left]
    assert ends.count("abort") >= 1, "some had begun"
    assert gap(model, 0.8, engine.score(PROMPTS)) < 0.2
    assert server.child() == child, "nothing was computed with half of the weights"
    engine.load_weights(engine._folder)


def test_few_prompts_are_spread_over_the_servers(engine: ServerEngine, server: Server) -> None:
    before = requests_of_each(server)
    engine.generate(PROMPTS, DRAWN)
    begun = [now - then for now, then in zip(requests_of_each(server), before, strict=True)]
    assert sum(begun) == 2 * len(PROMPTS) <= LENGTHS["max_num_seqs"]
    assert min(begun) > 0


def test_answers_of_another_trainers_weights_are_not_taken_for_ours(
    engine: ServerEngine, server: Server, smollm2: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = server.config(logprobs="sampler", max_restarts=0)
    with ServerEngine(smollm2, config, dtype="bfloat16") as other:
        other.generate(PROMPTS[:1], DRAWN)
        assert not caplog.messages
        engine.generate(PROMPTS[:1], DRAWN)
        assert "started again" in caplog.messages[0], "it had to give the servers its own weights"
        with pytest.raises(EngineDiedError, match="has another trainer"):
            other.generate(PROMPTS[:1], DRAWN)


def test_one_of_two_servers_is_killed_and_comes_back_with_the_trainers_weights(
    engine: ServerEngine, server: Server, model: torch.nn.Module
) -> None:
    engine.update_weights(buckets(model, 0.8), version=6)
    engine.refill = lambda: engine.update_weights(buckets(model, 0.8), version=6)
    asked = SamplingConfig(samples_per_prompt=2, max_tokens=64)
    child = server.child()
    finished: list[int] = []

    def kill_once(count: int) -> None:
        if not finished:
            os.killpg(child, signal.SIGKILL)
        finished.append(count)

    prompts = [[*prompt, index] for index in range(1, 9) for prompt in PROMPTS]
    before = requests_of_each(server)
    drawn = engine.generate(prompts, asked, on_done=kill_once)
    engine.refill = None
    assert len(finished) == len(drawn) == len(prompts)
    begun = [now - then for now, then in zip(requests_of_each(server), before, strict=True)]
    assert len(begun) == 2
    assert min(begun) > 0, "answers come from both"
    assert all(len(row) == 2 and {one.policy_version for one in row} == {6} for row in drawn)
    assert server.child() != child
    assert gap(model, 0.8, engine.score(PROMPTS)) < 0.2


def test_one_of_two_servers_is_killed_in_a_sync_and_both_have_the_next(
    engine: ServerEngine, server: Server, model: torch.nn.Module
) -> None:
    """The order of calls is that of `WeightSync.push`."""
    child = server.child()
    weights = buckets(model, 0.8)

    def killing() -> Iterator[dict[str, Tensor]]:
        yield weights[0]
        os.killpg(child, signal.SIGKILL)
        yield from weights[1:]

    with pytest.raises(EngineDiedError) as died:
        engine.update_weights(killing(), version=8)
    assert not engine.is_open
    engine.restart(died.value)
    assert server.child() != child
    assert gap(model, 1.0, engine.score(PROMPTS)) < 0.2, "those of the folder, on both"
    engine.update_weights(weights, version=8)
    assert gap(model, 0.8, engine.score(PROMPTS)) < 0.2
    assert {one.policy_version for row in engine.generate(PROMPTS, DRAWN) for one in row} == {8}


def test_a_server_that_hangs_between_two_steps_is_started_again_and_refilled(
    engine: ServerEngine, server: Server, model: torch.nn.Module
) -> None:
    engine.update_weights(buckets(model, 0.8), version=9)
    assert engine.is_healthy()
    child = server.child()
    os.killpg(child, signal.SIGSTOP)
    assert not engine.is_healthy()
    assert engine.is_open, "they are asked again once they answer"
    await_another(server, child)
    # It has the weights of its folder now.
    engine.refill = lambda: engine.update_weights(buckets(model, 0.8), version=9)
    assert {one.policy_version for row in engine.generate(PROMPTS, DRAWN) for one in row} == {9}
    engine.refill = None
    assert gap(model, 0.8, engine.score(PROMPTS)) < 0.2
    engine.load_weights(engine._folder)


def test_a_server_whose_engine_hangs_behind_a_living_http_is_given_up_and_started_again(
    engine: ServerEngine, server: Server, smollm2: Path
) -> None:
    """Its `/health` answers as before."""
    url, child = f"http://127.0.0.1:{server.port}", server.child()
    alone = server.config(
        servers_folder=None, servers=(url,), request_timeout_s=5, max_restarts=0, logprobs="sampler"
    )
    with ServerEngine(smollm2, alone, dtype="bfloat16") as lost:
        assert lost.generate(PROMPTS[:1], DRAWN)
        for process in psutil.Process(child).children(recursive=True):
            process.suspend()
        begun = time.monotonic()
        with pytest.raises(EngineDiedError, match="no response was finished in 5 s"):
            lost.generate(PROMPTS[:1], DRAWN)
        assert time.monotonic() - begun < PATIENCE_S
        assert is_healthy(url)
    await_another(server, child)
    engine.load_weights(engine._folder)
    assert engine.generate(PROMPTS, DRAWN)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"servers_folder": None}, "needs either URLs or a folder"),
        ({"servers": ["http://127.0.0.1:1"]}, "needs either URLs or a folder"),
        ({"max_model_len": 999}, "max_model_len is 256, the run's is 999"),
        ({"weight_transport": "broadcast"}, "weight transport is 'tcp', the run's is 'broadcast'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    engine: ServerEngine, server: Server, smollm2: Path, changes: dict[str, object], what: str
) -> None:
    assert engine.is_open
    with pytest.raises(ConfigError, match=what):
        ServerEngine(smollm2, server.config(**changes), dtype="bfloat16")


def test_a_server_that_is_not_there_is_waited_for_and_named(smollm2: Path, tmp_path: Path) -> None:
    for where in ({"servers": ("http://127.0.0.1:1",)}, {"servers_folder": str(tmp_path)}):
        config = EngineConfig(name="vllm-server", start_timeout_s=0.1, max_restarts=0, **where)
        began = time.monotonic()
        with pytest.raises(GenerationError, match="mreason serve CONFIG"):
            ServerEngine(smollm2, config, dtype="bfloat16")
        assert time.monotonic() - began < 60


def test_a_server_that_is_to_sleep_on_a_cpu_is_refused_at_once(server: Server) -> None:
    run = server.folder.parent / "run.yaml"
    asked = [sys.executable, "-m", "megatron_reason.cli.app", "serve", str(run), "--port", "0"]
    found = subprocess.run(
        [*asked, "--set", "engine.sleep_mode=true"], capture_output=True, text=True, check=False
    )
    assert found.returncode
    assert "vLLM cannot give its memory back on a CPU" in found.stderr


def test_a_taken_port_is_refused_at_once(server: Server) -> None:
    run = server.folder.parent / "run.yaml"
    found = subprocess.run(
        [sys.executable, "-m", "megatron_reason.cli.app", "serve", str(run),
         "--port", str(server.port)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.returncode == 1
    assert f"cannot listen at 127.0.0.1:{server.port}" in found.stderr
