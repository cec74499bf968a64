"""vLLM as an `Engine`: one child process beside the trainer, its weights exchanged while it lives.

Log-probs are the model's own at temperature 1 and before top-p, or those of the distribution that
was sampled from, as `EngineConfig.logprobs` says. Not here: what the child does
(`vllm_process.py`), how it is kept from outliving us (`child.py`), what follows its death
(`owned.py`).
"""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from pathlib import Path

from megatron_reason import platform
from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import EngineDiedError, GenerationError
from megatron_reason.generation.base import Completion, Flag
from megatron_reason.generation.buckets import ArrivingBucket, SharedBuffer
from megatron_reason.generation.child import Child
from megatron_reason.generation.owned import OwnedEngine, Request
from megatron_reason.generation.vllm_arguments import (
    check_sleeps,
    engine_arguments,
    engine_environment,
)
from megatron_reason.generation.vllm_process import (
    ENTRY,
    Drawn,
    FinishUpdate,
    Generate,
    LoadBucket,
    LoadWeights,
    Ping,
    PromptDone,
    Ready,
    Score,
    Scored,
    Sleep,
    Start,
    StartUpdate,
    Wake,
)
from megatron_reason.logs import get_logger
from megatron_reason.schema.records import Finish

LOG_NAME = "vllm.log"
_CLOSE_TIMEOUT_S = 10.0
_PING_TIMEOUT_S = 30.0
_NUM_BUFFERS = 2
"""One is filled while the engine loads the other."""

_log = get_logger(__name__)


class VllmEngine(OwnedEngine):
    """A vLLM engine in a process of its own, which leaves no process behind.

    It counts as hung after `config.request_timeout_s` seconds in which no prompt got finished.

    Args:
        hf_folder: Hugging Face folder of the model.
        config: lengths, memory and deadlines.
        dtype: data type of the weights.
        log_folder: where the child's output is kept, in `vllm.log`.

    Raises:
        GenerationError: it does not start in time.
        PlatformError: sleeping is asked for on a CPU.
    """

    kind = "vllm"

    def __init__(
        self, hf_folder: Path, config: EngineConfig, *, dtype: Precision, log_folder: Path
    ) -> None:
        super().__init__(hf_folder, config, dtype)
        check_sleeps(config, is_cpu=platform.distributed_backend() != "nccl")
        self._log_path = log_folder / LOG_NAME
        self._buffers: list[SharedBuffer] = []
        self._start()

    @property
    def pid(self) -> int:
        """Process id of the child, which leads a process group."""
        return self._child.pid

    @property
    def flags(self) -> Mapping[str, Flag]:
        """What vLLM is started with, beside the model, its data type and its lengths."""
        is_cpu = platform.distributed_backend() != "nccl"
        given = engine_arguments(self._folder, self._dtype, self._config, is_cpu=is_cpu)
        known = {"model", "dtype", "max_model_len", "worker_extension_cls"}
        return {name: value for name, value in given.items() if name not in known}

    @property
    def is_open(self) -> bool:
        """Whether its process was not ended yet."""
        return self._is_open

    def is_healthy(self) -> bool:
        """Whether its process answers within half a minute; one that does not is ended."""
        if not self._is_open:
            return False
        try:
            self._child.send(Ping(), _PING_TIMEOUT_S)
            self._child.receive(_PING_TIMEOUT_S, "a sign of life")
        except EngineDiedError as error:
            _log.warning("%s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """End the engine's process and all that it started."""
        if self._is_open:
            self._is_open = False
            self._child.close(_CLOSE_TIMEOUT_S)

    def _start(self) -> None:
        started_s = time.monotonic()
        # The child itself asks vLLM; see vllm_process.py.
        environment = {**engine_environment(self._config), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        self._child = Child(ENTRY, self._log_path, environment=environment)
        self._is_open = True
        _log.info("vLLM starts on %s; its log is %s", self._folder, self._log_path)
        self._ask(Start(str(self._folder), self._dtype, self._config), "the engine to start")
        _log.info("vLLM is ready after %.0f s", time.monotonic() - started_s)

    def _draw(
        self, requests: Sequence[Request], sampling: SamplingConfig, stop_token_ids: tuple[int, ...]
    ) -> Generator[tuple[int, list[Completion]], None, None]:
        command = Generate(
            prompts=tuple(request.ids for request in requests),
            seeds=tuple(request.seeds for request in requests),
            sampling=sampling,
            stop_token_ids=stop_token_ids,
        )
        timeout_s = self._config.request_timeout_s
        is_complete = False
        try:
            self._send(command)
            for _ in requests:
                done = self._child.receive(timeout_s, "the next response")
                assert isinstance(done, PromptDone), f"unexpected answer {done!r}"
                yield done.index, [self._completion(drawn) for drawn in done.drawn]
            is_complete = True
        finally:
            if not is_complete:
                self.close()

    def _score(self, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
        scored = self._ask(Score(tuple(sequences)), "the log-probs of given tokens")
        assert isinstance(scored, Scored), f"unexpected answer {scored!r}"
        return [list(logprobs) for logprobs in scored.logprobs]

    def _exchange(self) -> None:
        self._ask(LoadWeights(str(self._folder)), f"the weights of {self._folder}")

    def _receive(self, buckets: Iterable[ArrivingBucket], version: int) -> None:
        if not self._buffers:
            self._buffers = [SharedBuffer() for _ in range(_NUM_BUFFERS)]
        self._ask(StartUpdate(), "the weight update to start")
        num_sent = num_loaded = 0
        for arriving in buckets:
            bucket = list(arriving)
            if num_sent - num_loaded == _NUM_BUFFERS:
                self._await("a bucket of weights to be loaded")
                num_loaded += 1
            buffer = self._buffers[num_sent % _NUM_BUFFERS]
            buffer.fill(bucket)
            self._send(LoadBucket(buffer.path, tuple(entry for entry, _ in bucket)))
            num_sent += 1
        for _ in range(num_sent - num_loaded):
            self._await("a bucket of weights to be loaded")
        self._ask(FinishUpdate(version), "the weight update to end")

    def _sleep(self) -> None:
        self._ask(Sleep(), "the engine to give memory back")

    def _wake(self) -> None:
        self._ask(Wake(), "the engine to take memory again")

    def _ask(self, command: object, awaited: str) -> object:
        self._send(command)
        return self._await(awaited)

    def _send(self, command: object) -> None:
        if not self._is_open:
            raise GenerationError(
                str(self._log_path),
                "this engine was closed, or its process died.",
                "Open a new one; its log says how it ended.",
            )
        self._child.send(command, self._config.start_timeout_s)

    def _await(self, awaited: str) -> Ready | Scored:
        is_answered = False
        try:
            answer = self._child.receive(self._config.start_timeout_s, awaited)
            assert isinstance(answer, Ready | Scored), f"unexpected answer {answer!r}"
            is_answered = True
        finally:
            if not is_answered:
                self.close()
        return answer

    def _completion(self, drawn: Drawn) -> Completion:
        finish = Finish.STOP if drawn.stopped else Finish.LENGTH
        return Completion(drawn.token_ids, drawn.logprobs, finish, self._policy_version)
