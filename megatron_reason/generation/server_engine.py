"""vLLM behind HTTP as an `Engine`: one or many servers, on other machines than the trainer's.

Requests go to whichever server has room. Token ids go out and come back; every answer says by which
weights it was made, and one made by others than ours counts as a death, because a server that
started again in the meantime has the weights of its folder. Any failure of any server, and any
answer that cannot be read, ends the request; `OwnedEngine` then waits until all answer again,
refills them, and asks for what is missing. Not here: the servers (`vllm_server.py`), how they are
asked (`servers.py`), the ways of the weights (`transports.py`), the form of answers
(`server_answers.py`).
"""

import secrets
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from typing import Any

import httpx

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import ConfigError, EngineDiedError, GenerationError
from megatron_reason.generation.base import Completion
from megatron_reason.generation.bucket_server import address_towards
from megatron_reason.generation.buckets import BROADCAST, TCP, ArrivingBucket
from megatron_reason.generation.hf_folder import vocabulary_fingerprint
from megatron_reason.generation.owned import OwnedEngine, Request
from megatron_reason.generation.server_answers import (
    GENERATE,
    RESET,
    RPC,
    Answer,
    Choice,
    Reset,
    ServerInfo,
    Settings,
    response_of,
    scores_of,
)
from megatron_reason.generation.servers import Servers, finished
from megatron_reason.generation.transports import BroadcastTransport, TcpTransport, Transport
from megatron_reason.generation.vllm_arguments import LOGPROBS
from megatron_reason.logs import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True)
class _Job:
    """One continuation to draw."""

    prompt: int
    sample: int
    ids: tuple[int, ...]
    seed: int


_Result = tuple[_Job, Completion] | Future[None]
"""A continuation, or a worker that has ended."""


class ServerEngine(OwnedEngine):
    """A client of vLLM servers that were started with `mreason serve` on the same model.

    They count as hung after `config.request_timeout_s` seconds in which no prompt got finished.

    Args:
        hf_folder: Hugging Face folder of the model, which the servers' machines see under the same
            path.
        config: where the servers are, lengths and deadlines.
        dtype: data type of the weights.

    Raises:
        ConfigError: no server is named, or one was started with other settings.
        GenerationError: a server does not answer in time.
    """

    kind = "vllm-server"

    def __init__(self, hf_folder: Path, config: EngineConfig, *, dtype: Precision) -> None:
        super().__init__(hf_folder, config, dtype)
        if bool(config.servers) == bool(config.servers_folder):
            raise ConfigError(
                "engine.servers",
                "the engine 'vllm-server' needs either URLs or a folder where servers register.",
                "Give engine.servers: [http://HOST:PORT] or engine.servers_folder: DIR, the one "
                "that 'mreason serve --register DIR' was told.",
            )
        # Weights are called after whoever brought them, so that nobody's are taken for ours.
        self._nonce = secrets.token_hex(4)
        self._label = ""
        self._transport: Transport | None = None
        self._workers: dict[str, int] = {}
        self._opened: Servers | None = None
        self._start()

    @property
    def is_open(self) -> bool:
        """Whether it can be asked."""
        return self._opened is not None

    @property
    def num_copies(self) -> int:
        """How many servers answer."""
        return len(self._servers.urls)

    @property
    def takes_from_device(self) -> bool:
        """Whether weights go from there to the servers' devices."""
        return self._config.weight_transport == BROADCAST

    def is_healthy(self) -> bool:
        """Whether every server answers within half a minute."""
        return self._opened is not None and self._opened.are_healthy(30.0)

    def close(self) -> None:
        """Let go of the servers, which stay up."""
        if self._opened is None:
            return
        self._opened.close()
        self._opened = None
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    @property
    def _servers(self) -> Servers:
        """Raises a GenerationError once this engine was closed."""
        if self._opened is None:
            raise GenerationError("vllm-server", "this engine was closed.", "Open a new one.")
        return self._opened

    def _start(self) -> None:
        self._opened = Servers(self._config)
        self._workers = {
            url: self._checked_server(url).shards.world_size for url in self._opened.urls
        }
        self._exchange()

    def _checked_server(self, url: str) -> Settings:
        """What a server says of itself; one with other settings than ours is refused."""
        found = self._servers.parsed(
            url, "server_info?config_format=json", None, ServerInfo
        ).vllm_config
        self._check_vocabulary(url, Path(found.model.model))
        backend = None if found.transfer is None else found.transfer.backend
        settings: dict[str, tuple[object, object]] = {
            "max_model_len": (found.model.max_model_len, self._config.max_model_len),
            "weight transport": (backend, self._config.weight_transport),
        }
        sampler, theirs = LOGPROBS["sampler"], found.model.logprobs_mode
        if self._config.logprobs == "sampler":
            settings["logprobs"] = (theirs, sampler)
        elif theirs == sampler:
            _log.warning(
                "%s tells log-probs of the distribution that it samples from, whatever "
                "engine.logprobs says",
                url,
            )
        for name, (theirs, ours) in settings.items():
            if theirs != ours:
                raise ConfigError(
                    url,
                    f"this server's {name} is {theirs!r}, the run's is {ours!r}.",
                    "Start it from the run's own YAML file: mreason serve CONFIG",
                )
        return found

    def _check_vocabulary(self, url: str, folder: Path) -> None:
        """Refuse a server to which our token ids mean something else."""
        if not folder.is_dir():
            _log.warning(
                "%s serves %s, which is not seen from here: vocabularies are not compared",
                url,
                folder,
            )
        elif vocabulary_fingerprint(folder) != self.vocabulary:
            raise ConfigError(
                url,
                f"this server's model, {folder}, has another vocabulary than {self._folder}: the "
                "same token id would be another token.",
                "Start it from the run's own YAML file: mreason serve CONFIG",
            )

    def _draw(
        self, requests: Sequence[Request], sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        jobs = deque(
            _Job(index, sample, request.ids, seed)
            for index, request in enumerate(requests)
            for sample, seed in enumerate(request.seeds)
        )
        results: Queue[_Result] = Queue()
        given_up = Event()
        # One place of each server after the other: few jobs are spread over all servers, too.
        for _ in range(self._config.max_num_seqs):
            for url in self._servers.urls:
                worker = self._servers.submit(
                    self._work, url, jobs, sampling, stop_token_ids, results, given_up
                )
                # What a worker cannot go on with, whatever it is, is raised by `_next`.
                worker.add_done_callback(results.put)
        found: list[dict[int, Completion]] = [{} for _ in requests]
        left = len(requests)
        is_complete = False
        try:
            while left:
                job, completion = self._next(results)
                found[job.prompt][job.sample] = completion
                if len(found[job.prompt]) == len(requests[job.prompt].seeds):
                    left -= 1
                    yield job.prompt, [one for _, one in sorted(found[job.prompt].items())]
            is_complete = True
        finally:
            given_up.set()
            if not is_complete:
                self.close()

    def _work(
        self, url: str, jobs: deque[_Job], sampling: SamplingConfig,
        stop_token_ids: tuple[int, ...],
        results: Queue[_Result], given_up: Event,
    ) -> None:  # fmt: skip
        """Draw one continuation after the other from a server, until none is left."""
        while not given_up.is_set():
            try:
                job = jobs.popleft()
            except IndexError:
                return
            results.put((job, self._completed(url, job, sampling, stop_token_ids)))

    def _next(self, results: Queue[_Result]) -> tuple[_Job, Completion]:
        while True:
            try:
                result = results.get(timeout=self._config.request_timeout_s)
            except Empty:
                raise EngineDiedError(
                    ", ".join(self._servers.urls),
                    f"no response was finished in {self._config.request_timeout_s:.0f} s.",
                    "Look at the servers' logs; raise engine.request_timeout_s if they are only "
                    "slow.",
                ) from None
            if not isinstance(result, Future):
                return result
            result.result()

    def _completed(
        self, url: str, job: _Job, sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Completion:
        is_greedy = not sampling.temperature
        (choice,) = self._servers.parsed(url, GENERATE, {
            "token_ids": job.ids,
            "sampling_params": {
                "temperature": sampling.temperature,
                "top_p": 1.0 if is_greedy else sampling.top_p,
                "seed": None if is_greedy else job.seed,
                "max_tokens": sampling.max_tokens,
                # The caller's stop tokens are all there are.
                "ignore_eos": True,
                "stop_token_ids": stop_token_ids,
                "logprobs": 0,
                "detokenize": False,
            },
        }, Answer, read_timeout=False).choices  # fmt: skip
        ids, logprobs, finish = response_of(choice, url)
        self._check_label(url, choice)
        return Completion(ids, logprobs, finish, self._policy_version)

    def _check_label(self, url: str, choice: Choice) -> None:
        """Refuse what other weights than ours have made."""
        found = choice.versions()
        if found != {self._label}:
            raise EngineDiedError(
                url,
                f"it answered with weights called {sorted(found)}, not {self._label!r}: it was "
                "started again, or has another trainer.",
                "Give every trainer servers of its own.",
            )

    def _score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        urls = self._servers.urls
        futures = [
            self._servers.submit(self._scored, urls[index % len(urls)], ids)
            for index, ids in enumerate(sequences)
        ]
        return [future.result() for future in futures]

    def _scored(self, url: str, ids: tuple[int, ...]) -> list[float]:
        asked = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        body = {"token_ids": ids, "sampling_params": asked}
        answer = self._servers.parsed(url, GENERATE, body, Answer)
        self._check_label(url, answer.choices[0])
        return scores_of(answer, ids, url)

    def _exchange(self) -> None:
        label = f"{self._nonce}-folder-{self._policy_version + 1}"
        if self._config.sleep_mode:
            # A trainer that was killed while they slept left them so.
            self._servers.ask_all("wake_up", {})
        self._pause()
        # A trainer that was killed in a sync, or another server that was, left one half done.
        self._servers.ask_all(RPC, {"method": "abandon_update"})
        folder = {"folder": str(self._folder.resolve())}
        self._servers.ask_all(RPC, {"method": "load_folder", "kwargs": folder})
        self._servers.ask_all("update_weight_version", {"new_version": label})
        self._settle(label)

    def _receive(self, buckets: Iterable[ArrivingBucket], version: int) -> None:
        if self._transport is None:
            self._transport = self._joined_transport()
        label = f"{self._nonce}-{version}"
        self._pause()
        self._servers.ask_all(RPC, {"method": "begin_update"})
        loading: deque[list[Future[Any]]] = deque()
        for arriving in buckets:
            bucket = list(arriving)
            if len(loading) == self._transport.places:
                finished(loading.popleft())
            told = self._transport.offer(bucket)
            loading.append(self._call_each("load_bucket", "update_info", told))
        for futures in loading:
            finished(futures)
        self._servers.ask_all(RPC, {"method": "end_update"})
        self._servers.ask_all("update_weight_version", {"new_version": label})
        self._settle(label)

    def _joined_transport(self) -> Transport:
        """A way to the servers that answer now, with all their workers in it."""
        towards = {url: _address_towards(url) for url in self._servers.urls}
        if self._config.weight_transport == TCP:
            return TcpTransport(towards)
        transport = BroadcastTransport(towards, self._workers)
        is_joined = False
        try:
            joining = self._call_each("join_trainer", "meeting", transport.meetings)
            # Of all errors the servers' own come first: they say why ours waited in vain.
            finished([*joining, self._servers.submit(transport.join)])
            is_joined = True
        finally:
            if not is_joined:
                transport.close()
        return transport

    def _call_each(
        self, method: str, argument: str, values: Mapping[str, dict[str, Any]]
    ) -> list[Future[Any]]:
        """Begin to call a method of every worker with its server's own value of an argument."""
        bodies = {url: {"method": method, "kwargs": {argument: value}}
                  for url, value in values.items()}  # fmt: skip
        return self._servers.begin_all(RPC, bodies)

    def _pause(self) -> None:
        """What has to precede every exchange of weights.

        A server may still compute what an engine asked that gave up since; with weights that come
        bucket by bucket it would run into those that are not there.
        """
        self._servers.ask_all("pause?mode=abort", {})

    def _settle(self, label: str) -> None:
        """What has to follow every exchange of weights."""
        self._servers.ask_all(RPC, {"method": "refresh_heads"})
        # Keys and values of the old weights must not answer for the new ones.
        if not all(one.success for one in self._servers.parsed_all(RESET, {}, Reset)):
            raise EngineDiedError(
                ", ".join(self._servers.urls),
                "a server could not empty its prefix cache, which has keys of other weights.",
                "Look at its log.",
            )
        self._servers.ask_all("resume", {})
        self._label = label

    def _sleep(self) -> None:
        self._servers.ask_all("sleep?level=1", {})

    def _wake(self) -> None:
        self._servers.ask_all("wake_up", {})


def _address_towards(url: str) -> str:
    parts = httpx.URL(url)
    return address_towards(parts.host, parts.port or (443 if parts.scheme == "https" else 80))
