"""What runs inside the engine's own process, and the messages that go in and out of it.

vLLM is stepped here directly (its own engine-core process switched off), so one process holds the
model: it starts in half the time, gets all cores, and is one thing to kill. A sharded model has
workers in the same process group. An exception ends the process; the parent tells of it. Not here:
deadlines and checks of what is asked (`vllm_engine.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig, SamplingConfig
from megatron_reason.generation.buckets import SHARED_MEMORY, Entry
from megatron_reason.generation.vllm_arguments import engine_arguments

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.engine.llm_engine import LLMEngine

ENTRY = f"{__name__}:serve"


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
class Score:
    """Command: log-probabilities of given tokens. Answered by one `Scored`."""

    sequences: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class LoadWeights:
    """Command: take the weights of another folder. Answered by `Ready`."""

    folder: str


@dataclass(frozen=True)
class StartUpdate:
    """Command: buckets will follow. Answered by `Ready`."""


@dataclass(frozen=True)
class LoadBucket:
    """Command: load the tensors that lie in shared memory. Answered by `Ready`."""

    path: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class FinishUpdate:
    """Command: that was the last bucket. Answered by `Ready`."""

    version: int


@dataclass(frozen=True)
class Ping:
    """Command: nothing. Answered by `Ready`."""


@dataclass(frozen=True)
class Sleep:
    """Command: give memory back. Answered by `Ready`."""


@dataclass(frozen=True)
class Wake:
    """Command: take it again. Answered by `Ready`."""


@dataclass(frozen=True)
class Ready:
    """Answer: done."""


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


@dataclass(frozen=True)
class Scored:
    """Answer: log-probability of each token but the first of each sequence."""

    logprobs: tuple[tuple[float, ...], ...]


def serve(connection: Connection) -> None:
    """Answer commands until the pipe is closed."""
    engine = None
    while True:
        try:
            command = connection.recv()
        except EOFError:
            return
        if isinstance(command, Start):
            engine = _start(command)
            connection.send(Ready())
            continue
        assert engine is not None, f"{command!r} came before Start"
        for answer in _answers(engine, command):
            connection.send(answer)


def _answers(engine: "LLMEngine", command: object) -> Iterator[PromptDone | Scored | Ready]:
    match command:
        case Generate():
            yield from _generate(engine, command)
            return
        case Score():
            yield _score(engine, command)
            return
        case LoadWeights():
            engine.collective_rpc("load_folder", args=(command.folder,))
            _settle(engine)
        case StartUpdate():
            engine.collective_rpc("begin_update")
        case LoadBucket():
            info = {"path": command.path, "entries": list(command.entries)}
            engine.collective_rpc("load_bucket", args=(info,))
        case FinishUpdate():
            engine.collective_rpc("end_update")
            engine.set_weight_version(str(command.version))
            _settle(engine)
        case Ping():
            pass
        case Sleep():
            engine.sleep(level=1)
        case Wake():
            engine.wake_up()
        case _:
            raise AssertionError(f"not a command: {command!r}")
    yield Ready()


def _start(command: Start) -> "LLMEngine":
    from vllm import EngineArgs
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = engine_arguments(
        command.folder, command.dtype, command.config, is_cpu=current_platform.is_cpu()
    )
    transfer = WeightTransferConfig(backend=SHARED_MEMORY)
    engine = LLMEngine.from_engine_args(EngineArgs(**arguments, weight_transfer_config=transfer))
    engine.collective_rpc("leave_signals_to_trainer")
    return engine


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


def _score(engine: "LLMEngine", command: Score) -> Scored:
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    for index, ids in enumerate(command.sequences):
        engine.add_request(str(index), {"prompt_token_ids": list(ids)}, asked)
    scored: dict[int, tuple[float, ...]] = {}
    while engine.has_unfinished_requests():
        outputs: list[Any] = engine.step()
        for output in outputs:
            if output.finished:
                index = int(output.request_id)
                following = zip(
                    output.prompt_logprobs[1:], command.sequences[index][1:], strict=True
                )
                scored[index] = tuple(float(at[id].logprob) for at, id in following)
    return Scored(tuple(logprobs for _, logprobs in sorted(scored.items())))


def _settle(engine: "LLMEngine") -> None:
    """What has to follow every exchange of weights."""
    engine.collective_rpc("refresh_heads")
    # Keys and values of the old weights must not answer for the new ones.
    assert engine.reset_prefix_cache(), "the prefix cache was not reset"
