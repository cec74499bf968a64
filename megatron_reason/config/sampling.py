"""How responses are drawn from a model, and where its engine lives."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_reason.config.base import Strict

_ALONE = 0.85
_SHARED = 0.5


class SamplingConfig(Strict):
    """Section `sampling`: one request's parameters."""

    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses drawn for each problem."""
    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest probability mass of tokens sampled from; 1 samples from all."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest response in tokens; one that reaches it is marked truncated."""
    seed: int = 42
    """Seed of the first response; response i of problem j gets a seed derived from it."""


class EngineConfig(Strict):
    """Section `engine`: the process that generates text."""

    name: Literal["vllm", "vllm-server", "transformers"] = "vllm"
    """vLLM in a process of its own, vLLM behind HTTP on other machines (`mreason serve`), or
    a transformers model in the trainer's process where vLLM is not installed."""
    servers: tuple[str, ...] = ()
    """URLs of the servers that `vllm-server` asks."""
    servers_folder: str | None = None
    """Folder in which those servers register, in place of their URLs."""
    num_servers: int = Field(default=1, ge=1)
    """Servers to wait for in that folder."""
    weight_transport: Literal["tcp", "broadcast"] = "tcp"
    """How a trainer's weights reach servers: every worker fetches them from rank 0 by TCP, or one
    collective brings them to all, over NCCL on GPUs and gloo on CPUs."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs (on a CPU: processes) among which vLLM, or each server, shards the model."""
    max_model_len: int = Field(default=1024, ge=1)
    """Longest prompt plus response in tokens."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences decoded at once."""
    kv_cache_mb: int = Field(default=512, ge=16)
    """Memory for keys and values in MiB, of each shard (CPU engines)."""
    gpu_memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take; None takes 0.85, and 0.5 beside a trainer."""
    start_timeout_s: float = Field(default=600, gt=0)
    """Seconds an engine may take to start or to load weights."""
    request_timeout_s: float = Field(default=1800, gt=0)
    """Seconds without a finished prompt after which the engine counts as hung."""
    max_restarts: int = Field(default=2, ge=0)
    """How often in a row an engine that died is started again before a prompt gets finished."""
    logprobs: Literal["model", "sampler"] = "model"
    """Log-probabilities that come back: the model's own, at temperature 1 and over all tokens, or
    those of the distribution that was sampled from, which training on rollouts needs."""
    sleep_mode: bool = False
    """Let the engine give its memory back between rollouts; vLLM can on GPUs only."""

    @property
    def memory_fraction(self) -> float:
        """Share of a GPU's memory that vLLM takes where it has that GPU alone."""
        return _ALONE if self.gpu_memory_fraction is None else self.gpu_memory_fraction

    def beside_a_trainer(self) -> Self:
        """The same for an engine that makes a training's rollouts."""
        if self.name != "vllm" or self.gpu_memory_fraction is not None:
            return self
        return self.model_copy(update={"gpu_memory_fraction": _SHARED})

    @model_validator(mode="after")
    def _transformers_does_not_shard(self) -> Self:
        if self.name == "transformers" and self.tensor_parallel_size > 1:
            raise ValueError(
                "the engine 'transformers' lives in one process: set tensor_parallel_size: 1, or "
                "name: vllm"
            )
        return self
