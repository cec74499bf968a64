"""How responses are drawn from a model, and where its engine lives."""

from typing import Literal

from pydantic import Field

from megatron_reason.config.base import Strict


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
    max_model_len: int = Field(default=1024, ge=1)
    """Longest prompt plus response in tokens."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences decoded at once."""
    kv_cache_mb: int = Field(default=512, ge=16)
    """Memory for keys and values in MiB (CPU engines)."""
    gpu_memory_fraction: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM may take."""
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
