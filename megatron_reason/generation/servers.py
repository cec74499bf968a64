"""HTTP servers that an engine asks, one of them or all at once.

What goes wrong between here and a server is an `EngineDiedError`: whoever asks waits until all
servers answer again. Not here: what they are asked (`server_engine.py`), the form of what they
answer (`server_answers.py`).
"""

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import httpx

from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.server_answers import Parsed, parsed, unreadable
from megatron_reason.generation.server_folder import registered

_POLL_S = 0.5
_HEALTH_TIMEOUT_S = 5.0
T = TypeVar("T")
P = ParamSpec("P")


class Servers:
    """The servers that a configuration names, from when enough have answered until `close`.

    Of those that registered in a folder the ones that answer are taken: one that went away without
    a word may have left its name there.

    Args:
        config: where they are, how long to wait, and how many requests each gets at once.

    Raises:
        EngineDiedError: too few register or answer in time.
    """

    def __init__(self, config: EngineConfig) -> None:
        # A connection that has ended is forgotten with its socket.
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._noting = Lock()
        self._is_open = True
        self._client = httpx.Client(
            timeout=httpx.Timeout(config.request_timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )
        try:
            self.urls = self._answering(config)
            """Where they are, without a slash at the end."""
        except EngineDiedError:
            self._client.close()
            raise
        self._threads = ThreadPoolExecutor(config.max_num_seqs * len(self.urls), "server")

    def close(self) -> None:
        """Ask nothing any more; what is under way is not waited for."""
        self._is_open = False
        self._threads.shutdown(wait=False, cancel_futures=True)
        # A thread that waits for an answer is woken by the shutdown, not by the close.
        with self._noting:
            sockets = [*self._sockets]
        for each in sockets:
            _shut(each)
        self._client.close()

    def are_healthy(self, timeout_s: float) -> bool:
        """Whether each says within `timeout_s` seconds that it is."""
        return not any(self._objection(url, timeout_s) for url in self.urls)

    def submit(self, function: Callable[P, T], *args: P.args, **named: P.kwargs) -> Future[T]:
        """Call `function` in a thread; there are as many threads as the servers have places.

        Raises:
            GenerationError: `close` was called.
        """
        self._require_open()
        return self._threads.submit(function, *args, **named)

    def parsed(
        self, url: str, path: str, body: Mapping[str, Any] | None, kind: type[Parsed], *,
        read_timeout: bool = True,
    ) -> Parsed:  # fmt: skip
        """What one server answers; without a body the request is a GET.

        Args:
            url: of the server.
            path: of the request.
            body: of the request.
            kind: what the answer has to be.
            read_timeout: false waits for the answer until `close`, for callers who know better than
                a clock that begins with the request when to give up.

        Raises:
            EngineDiedError: no answer, one that says that something is broken, or one of another
                form.
            GenerationError: the server refuses the request.
        """
        return parsed(self._ask(url, path, body, read_timeout=read_timeout), kind, url, path)

    def parsed_all(self, path: str, body: Mapping[str, Any], kind: type[Parsed]) -> list[Parsed]:
        """What each answers to the same.

        Raises:
            EngineDiedError: as for `parsed`.
            GenerationError: as for `parsed`.
        """
        futures = [self.submit(self.parsed, url, path, body, kind) for url in self.urls]
        finished(futures)
        return [future.result() for future in futures]

    def ask_all(self, path: str, body: Mapping[str, Any]) -> None:
        """Ask all the same, and wait until all have done it.

        Raises:
            EngineDiedError: one did not answer, or says that something is broken.
            GenerationError: one refuses the request.
        """
        finished(self.begin_all(path, dict.fromkeys(self.urls, body)))

    def begin_all(self, path: str, bodies: Mapping[str, Mapping[str, Any]]) -> list[Future[Any]]:
        """Ask each its own, by URL, without waiting, which `finished` does."""
        return [self.submit(self._ask, url, path, body) for url, body in bodies.items()]

    def _require_open(self) -> None:
        if not self._is_open:
            raise GenerationError(
                ", ".join(self.urls), "these servers were let go of.", "Open a new engine."
            )

    def _objection(self, url: str, timeout_s: float) -> str | None:
        """Why a server does not answer; None if it does."""
        try:
            answer = self._client.get(f"{url}/health", timeout=timeout_s)
        except httpx.HTTPError as error:
            return str(error) or type(error).__name__
        return None if answer.is_success else "it is not healthy"

    def _answering(self, config: EngineConfig) -> tuple[str, ...]:
        """URLs of all servers that answer, once these are enough; some may yet have to register."""
        deadline = time.monotonic() + config.start_timeout_s
        named, folder = tuple(url.rstrip("/") for url in config.servers), config.servers_folder
        wanted = len(named) or config.num_servers
        while True:
            urls = named or registered(Path(folder or ""))
            with ThreadPoolExecutor(max(len(urls), 1), "health") as threads:
                found = [*threads.map(partial(self._objection, timeout_s=_HEALTH_TIMEOUT_S), urls)]
            objections = dict(zip(urls, found, strict=True))
            answering = tuple(url for url in urls if objections[url] is None)
            if len(answering) >= wanted:
                return answering
            if time.monotonic() > deadline:
                silent = {url: what for url, what in objections.items() if what is not None}
                raise _too_few(len(answering), wanted, silent, config)
            time.sleep(_POLL_S)

    def _connected(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the socket of each connection, of a secured one the outer."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            found: socket.socket = info["return_value"].get_extra_info("socket")
            with self._noting:
                self._sockets.add(found)
            if not self._is_open:
                _shut(found)

    def _ask(
        self, url: str, path: str, body: Mapping[str, Any] | None, *, read_timeout: bool = True
    ) -> Any:  # noqa: ANN401
        """JSON that a server answers."""
        self._require_open()
        timeout = httpx.Timeout(self._client.timeout)
        if not read_timeout:
            timeout.read = None
        try:
            answer = self._client.request(
                "GET" if body is None else "POST", f"{url}/{path}", json=body, timeout=timeout,
                extensions={"trace": self._connected},
            )  # fmt: skip
        except httpx.HTTPError as error:
            raise EngineDiedError(
                url,
                f"no answer to '{path}' ({type(error).__name__}: {error}).",
                "Look at the server's log; the same command goes on where this one stopped.",
            ) from error
        if answer.is_success:
            try:
                return answer.json() if answer.content else None
            except ValueError as error:
                raise unreadable(url, path, f"no JSON: {answer.text[:200]!r}") from error
        kind = EngineDiedError if answer.is_server_error else GenerationError
        raise kind(url, f"'{path}' answered {answer.status_code}: {answer.text[:1500]}",
                   "Look at the server's log.")  # fmt: skip


def finished(futures: Iterable[Future[Any]]) -> None:
    """Wait for all, then raise what the first could not go on with."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise errors[0]


def _shut(connection: socket.socket) -> None:
    # It may be shut already, or belong to the secured one around it.
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _too_few(
    count: int, wanted: int, silent: Mapping[str, str], config: EngineConfig
) -> EngineDiedError:
    """What to say once patience has ended."""
    patience = f"{config.start_timeout_s:.0f} s"
    others = ", ".join(f"{url} ({what})" for url, what in silent.items())
    if config.servers:
        first, what = next(iter(silent.items()))
        return EngineDiedError(
            first,
            f"no server answered in {patience} ({what}).",
            "Look at its log; start it with: mreason serve CONFIG",
        )
    return EngineDiedError(
        config.servers_folder or "",
        f"{count} of {wanted} servers have registered and answer after {patience}"
        + (f"; registered and silent: {others}." if others else "."),
        f"Start them: mreason serve CONFIG --register {config.servers_folder}",
    )
