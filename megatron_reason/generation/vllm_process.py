"""What runs inside the engine's own process, and the messages that go in and out of it.

vLLM is stepped here directly (its own engine-core process switched off), so one process holds the
model: it starts in half the time, gets all cores, and is one thing to kill. An exception ends the
process; the parent tells of it. Not here: deadlines and checks of what is asked (`vllm_engine.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

ENTRY = f"{__name__}:serve"
_BLOCK_SIZE = 32
_TOKENS_PER_STEP = 2048
_MIB = 1 << 20


@dataclass(frozen=True)
class Start:
    """First command: what to load. Answered by `Ready`."""

    folder: str
    dtype: Precision
    config: EngineConfig


@dataclass(frozen=True)
class Generate:
    """Command: draw continuations. Answered by one `PromptDone` for each prompt, in any order."""

    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    sampling: SamplingConfig
    stop_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class LoadWeights:
    """Command: take the weights of another folder. Answered by `Ready`."""

    folder: str


@dataclass(frozen=True)
class Ready:
    """Answer: started, or loaded."""


@dataclass(frozen=True)
class Drawn:
    """One continuation, as plain values."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True)
class PromptDone:
    """Answer: all continuations of the prompt at `index`."""

    index: int
    drawn: tuple[Drawn, ...]


class HeadRefresher:
    """Worker extension: makes tied LM heads follow a weight update.

    On CPU the linear layers keep a packed copy of their matrix. `reload_weights` packs anew each
    layer it loads; a head tied to the embedding is not loaded, and would go on with the old copy.
    """

    def refresh_heads(self) -> None:
        """Pack every LM head's matrix anew, where vLLM packs at all."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
        from vllm.platforms import current_platform

        if not current_platform.is_cpu():
            return
        worker: Any = self
        for module in worker.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def serve(connection: Connection) -> None:
    """Answer commands until the pipe is closed."""
    engine = None
    while True:
        try:
            command = connection.recv()
        except EOFError:
            return
        match command:
            case Start():
                engine = _start(command)
                connection.send(Ready())
            case Generate():
                assert engine is not None, "Generate came before Start"
                for done in _generate(engine, command):
                    connection.send(done)
            case LoadWeights():
                assert engine is not None, "LoadWeights came before Start"
                _load_weights(engine, command.folder)
                connection.send(Ready())
            case _:
                raise AssertionError(f"not a command: {command!r}")


def _start(command: Start) -> "LLMEngine":
    from vllm import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    config = command.config
    if current_platform.is_cpu():
        device: dict[str, Any] = {
            "enforce_eager": True,
            "block_size": _BLOCK_SIZE,
            "kv_cache_memory_bytes": config.kv_cache_mb * _MIB,
            # With chunks, a seeded request whose prompt is cut rewinds its generator, which CPU
            # generators cannot ("CPU Generator does not use offset").
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_TOKENS_PER_STEP, config.max_model_len),
        }
    else:
        device = {"gpu_memory_utilization": config.gpu_memory_fraction}
    return LLMEngine.from_engine_args(
        EngineArgs(
            model=command.folder,
            skip_tokenizer_init=True,
            dtype=command.dtype,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            enable_prefix_caching=True,
            logprobs_mode="raw_logprobs",
            disable_log_stats=True,
            worker_extension_cls=f"{__name__}.{HeadRefresher.__name__}",
            **device,
        )
    )


def _generate(engine: "LLMEngine", command: Generate) -> Iterator[PromptDone]:
    """Run the engine until all prompts are done, giving each away as soon as it is."""
    for index, (prompt, seeds) in enumerate(zip(command.prompts, command.seeds, strict=True)):
        for sample, seed in enumerate(seeds):
            engine.add_request(
                f"{index}/{sample}",
                {"prompt_token_ids": list(prompt)},
                _sampling_params(command, seed),
            )
    waiting: list[dict[int, Drawn]] = [{} for _ in command.prompts]
    while engine.has_unfinished_requests():
        outputs: list[Any] = engine.step()
        for output in outputs:
            index, sample = map(int, output.request_id.split("/"))
            waiting[index][sample] = _drawn(output.outputs[0])
            if len(waiting[index]) == len(command.seeds[index]):
                yield PromptDone(index, tuple(drawn for _, drawn in sorted(waiting[index].items())))
                waiting[index] = {}


def _sampling_params(command: Generate, seed: int) -> "SamplingParams":
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    sampling = command.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p if sampling.temperature else 1.0,
        seed=seed if sampling.temperature else None,
        max_tokens=sampling.max_tokens,
        # The caller's stop tokens are all there are: the model's own would be added otherwise.
        ignore_eos=True,
        stop_token_ids=list(command.stop_token_ids),
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _drawn(output: Any) -> Drawn:  # noqa: ANN401 - vLLM's CompletionOutput, imported lazily
    ids = tuple(output.token_ids)
    logprobs = tuple(float(at[id].logprob) for at, id in zip(output.logprobs, ids, strict=True))
    assert output.finish_reason in ("stop", "length"), f"finish reason {output.finish_reason!r}"
    return Drawn(ids, logprobs, stopped=output.finish_reason == "stop")


def _load_weights(engine: "LLMEngine", folder: str) -> None:
    engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    engine.collective_rpc("refresh_heads")
    # Keys and values of the old weights must not answer for the new ones.
    assert engine.reset_prefix_cache(), "the prefix cache was not reset"
