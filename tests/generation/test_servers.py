import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.server_answers import Reset
from megatron_reason.generation.server_folder import register
from megatron_reason.generation.servers import Servers, finished


class Scripted(ThreadingHTTPServer):
    """Answers each path with what `answers` has for it, and counts what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class ScriptedHandler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        status, body = self.server.answers.get(self.path, (200, b""))
        self.server.asked.append(self.path)
        if self.path == "/hang":
            time.sleep(20)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def pair() -> Iterator[tuple[Scripted, Scripted]]:
    with Scripted() as first, Scripted() as second:
        for one in (first, second):
            threading.Thread(target=one.serve_forever).start()
        yield first, second
        for one in (first, second):
            one.shutdown()


def config(*urls: str, **changes: object) -> EngineConfig:
    return EngineConfig.model_validate(
        {"name": "vllm-server", "servers": urls, "start_timeout_s": 20, "request_timeout_s": 5,
         "max_num_seqs": 2, "max_model_len": 64, **changes}
    )  # fmt: skip


def test_all_are_asked_and_the_first_fault_is_raised_after_all_have_answered(
    pair: tuple[Scripted, Scripted],
) -> None:
    first, second = pair
    servers = Servers(config(first.url + "/", second.url))
    assert servers.urls == (first.url, second.url)
    servers.ask_all("pause", {})
    assert first.asked == second.asked == ["/health", "/pause"]
    first.answers["/sleep"] = (500, b"broken")
    second.answers["/sleep"] = (400, b"why")
    with pytest.raises(EngineDiedError, match="'sleep' answered 500: broken"):
        servers.ask_all("sleep", {})
    first.answers["/sleep"] = (200, b"")
    with pytest.raises(GenerationError, match="'sleep' answered 400: why") as refused:
        servers.ask_all("sleep", {})
    assert not isinstance(refused.value, EngineDiedError)
    assert second.asked.count("/sleep") == 2
    servers.close()


def test_an_answer_is_of_the_form_that_was_asked_for(pair: tuple[Scripted, Scripted]) -> None:
    first, _ = pair
    servers = Servers(config(first.url))
    first.answers["/n"] = (200, json.dumps({"a": 1}).encode())
    assert servers._ask(first.url, "n", None) == {"a": 1}
    first.answers["/n"] = (200, b"<html>")
    with pytest.raises(EngineDiedError, match="no JSON: '<html>'"):
        servers._ask(first.url, "n", {})
    assert servers.submit(lambda x: x + 1, 1).result() == 2
    servers.close()
    with pytest.raises(GenerationError, match="these servers were let go of"):
        servers.ask_all("n", {})


def test_health_is_of_every_server(pair: tuple[Scripted, Scripted]) -> None:
    first, second = pair
    servers = Servers(config(first.url, second.url))
    assert servers.are_healthy(5.0)
    second.answers["/health"] = (503, b"")
    assert not servers.are_healthy(5.0)
    second.shutdown()
    second.server_close()
    assert not servers.are_healthy(0.5)
    servers.close()


def test_one_that_is_not_healthy_in_time_is_named_and_nothing_is_left_open(
    pair: tuple[Scripted, Scripted],
) -> None:
    first, second = pair
    second.answers["/health"] = (503, b"")
    before = threading.active_count()
    begun = time.monotonic()
    with pytest.raises(EngineDiedError, match=r"no server answered in 1 s .it is not healthy") as e:
        Servers(config(first.url, second.url, start_timeout_s=1))
    assert e.value.where == second.url
    assert time.monotonic() - begun < 10
    assert threading.active_count() <= before + 2


def test_futures_are_all_waited_for(pair: tuple[Scripted, Scripted]) -> None:
    first, second = pair
    servers = Servers(config(first.url, second.url))
    ended: list[int] = []

    def later(number: int) -> None:
        if number == 0:
            raise GenerationError("here", "it broke.", "Mend it.")
        time.sleep(0.3)
        ended.append(number)

    with pytest.raises(GenerationError, match="it broke"):
        finished([servers.submit(later, number) for number in range(3)])
    assert sorted(ended) == [1, 2]
    servers.close()


def test_of_those_that_registered_the_ones_that_answer_are_taken(
    pair: tuple[Scripted, Scripted], tmp_path: Path
) -> None:
    """One that was killed with -9, or whose machine is lost, left its name there."""
    first, second = pair
    register(tmp_path, "a", first.url)
    with Scripted() as gone:
        register(tmp_path, "b", gone.url)
    settings = {"servers_folder": str(tmp_path), "num_servers": 2}
    threading.Timer(1.0, register, (tmp_path, "c", second.url)).start()
    servers = Servers(config(**settings))
    assert servers.urls == (first.url, second.url)
    servers.close()
    second.answers["/health"] = (503, b"")
    with pytest.raises(EngineDiedError, match=r"1 of 2 servers have registered and answer") as e:
        Servers(config(**settings, start_timeout_s=1))
    assert f"{second.url} (it is not healthy)" in e.value.what
    assert gone.url in e.value.what


def test_who_waits_for_an_answer_without_end_is_woken_by_the_close(
    pair: tuple[Scripted, Scripted],
) -> None:
    """As its server hangs: a process that has to wait for such a thread would never end."""
    first, _ = pair
    servers = Servers(config(first.url, request_timeout_s=1))
    with pytest.raises(EngineDiedError, match=r"no answer to 'hang' .ReadTimeout"):
        servers.parsed(first.url, "hang", {}, Reset)
    waiting = servers.submit(servers.parsed, first.url, "hang", {}, Reset, read_timeout=False)
    with pytest.raises(TimeoutError):
        waiting.result(timeout=3)
    # What was given up is forgotten.
    assert len(servers._sockets) == 1
    servers.close()
    with pytest.raises(EngineDiedError, match="no answer to 'hang'"):
        waiting.result(timeout=30)


def test_all_answers_to_one_question_are_read(pair: tuple[Scripted, Scripted]) -> None:
    first, second = pair
    servers = Servers(config(first.url, second.url))
    first.answers["/reset"] = (200, b'{"success": true}')
    second.answers["/reset"] = (200, b'{"success": false}')
    assert [one.success for one in servers.parsed_all("reset", {}, Reset)] == [True, False]
    second.answers["/reset"] = (200, b"")
    with pytest.raises(EngineDiedError, match="'reset' cannot be read"):
        servers.parsed_all("reset", {}, Reset)
    servers.close()
