"""vLLM as an `Engine`: one child process beside the trainer, its weights exchanged while it lives.

Log-probs are the model's own at temperature 1 and before top-p, whatever the sampling. Not here:
what the child does (`vllm_process.py`) and how it is kept from outliving us (`child.py`).
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.errors import GenerationError
from megatron_reason.generation.base import Completion, OwnedEngine, check_prompts
from megatron_reason.generation.child import Child
from megatron_reason.generation.seeds import request_seeds
from megatron_reason.generation.vllm_process import (
    ENTRY,
    Drawn,
    Generate,
    LoadWeights,
    PromptDone,
    Ready,
    Start,
)
from megatron_reason.logs import get_logger
from megatron_reason.schema.records import Finish

LOG_NAME = "vllm.log"
_CLOSE_TIMEOUT_S = 10.0

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
    """

    kind = "vllm"

    def __init__(
        self, hf_folder: Path, config: EngineConfig, *, dtype: Precision, log_folder: Path
    ) -> None:
        super().__init__(hf_folder, config, dtype)
        self._is_open = True
        started_s = time.monotonic()
        self._child = Child(ENTRY, log_folder / LOG_NAME, environment=_environment())
        _log.info("vLLM starts on %s; its log is %s", hf_folder, self._child.log_path)
        self._ask(Start(str(hf_folder), dtype, config), "the engine to start")
        _log.info("vLLM is ready after %.0f s", time.monotonic() - started_s)

    @property
    def pid(self) -> int:
        """Process id of the child, which leads a process group."""
        return self._child.pid

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        stop_token_ids: Sequence[int] = (),
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """Draw continuations; see `Engine.generate`.

        Only `stop_token_ids` end a continuation, not the model's own end tokens. The engine is
        closed when this is left by an exception, for instance one that `on_done` raises.
        """
        self._check_open()
        check_prompts(prompts, self._config.max_model_len)
        completions: list[list[Completion]] = [[] for _ in prompts]
        command = Generate(
            prompts=tuple(tuple(prompt) for prompt in prompts),
            seeds=tuple(tuple(seeds) for seeds in request_seeds(prompts, sampling)),
            sampling=sampling,
            stop_token_ids=tuple(stop_token_ids),
        )
        is_complete = False
        try:
            self._child.send(command)
            for _ in prompts:
                done = self._child.receive(self._config.request_timeout_s, "the next response")
                assert isinstance(done, PromptDone), f"unexpected answer {done!r}"
                completions[done.index] = [self._completion(drawn) for drawn in done.drawn]
                if on_done is not None:
                    on_done(1)
            is_complete = True
        finally:
            if not is_complete:
                self.close()
        return completions

    def _exchange(self, folder: Path) -> None:
        self._check_open()
        self._ask(LoadWeights(str(folder)), f"the weights of {folder}")

    def close(self) -> None:
        """End the engine's process and all that it started."""
        if self._is_open:
            self._is_open = False
            self._child.close(_CLOSE_TIMEOUT_S)

    def _ask(self, command: Start | LoadWeights, awaited: str) -> None:
        is_answered = False
        try:
            self._child.send(command)
            answer = self._child.receive(self._config.start_timeout_s, awaited)
            assert isinstance(answer, Ready), f"unexpected answer {answer!r}"
            is_answered = True
        finally:
            if not is_answered:
                self.close()

    def _completion(self, drawn: Drawn) -> Completion:
        finish = Finish.STOP if drawn.stopped else Finish.LENGTH
        return Completion(drawn.token_ids, drawn.logprobs, finish, self._policy_version)

    def _check_open(self) -> None:
        if not self._is_open:
            raise GenerationError(
                str(self._child.log_path),
                "this engine was closed, or its process died.",
                "Open a new one; its log says how it ended.",
            )


def _environment() -> dict[str, str]:
    return {
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
        # Threads that spin at barriers make every step ten times slower on cores that are shared.
        "OMP_WAIT_POLICY": "PASSIVE",
        # The folder is all that is needed; no hub is asked for anything.
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
