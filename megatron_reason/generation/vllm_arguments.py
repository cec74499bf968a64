"""With which settings vLLM is started, in a child process or behind HTTP.

Not here: what starts it (`vllm_process.py`, `vllm_server.py`).
"""

import os
from pathlib import Path
from typing import Any

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import PlatformError

EXTENSION = "megatron_reason.generation.vllm_transfer.WorkerExtension"
"""Class that vLLM adds to its workers."""
LOGPROBS = {"model": "raw_logprobs", "sampler": "processed_logprobs"}
"""vLLM's names of `EngineConfig.logprobs`."""
_BLOCK_SIZE = 32
_TOKENS_PER_STEP = 2048
_MIB = 1 << 20


def check_sleeps(config: EngineConfig, *, is_cpu: bool) -> None:
    """Refuse to sleep where vLLM cannot.

    Raises:
        PlatformError: it is asked for on a CPU.
    """
    if is_cpu and config.sleep_mode:
        raise PlatformError(
            "engine.sleep_mode",
            "vLLM cannot give its memory back on a CPU.",
            "Set engine.sleep_mode: false.",
        )


def engine_arguments(
    folder: str | Path, dtype: Precision, config: EngineConfig, *, is_cpu: bool
) -> dict[str, Any]:
    """Fields of vLLM's `EngineArgs`, whose command line has the same with dashes.

    Args:
        folder: Hugging Face folder of the model.
        dtype: data type of the weights.
        config: lengths, memory and log-probs.
        is_cpu: whether vLLM runs on a CPU.
    """
    if is_cpu:
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
        device = {
            "gpu_memory_utilization": config.memory_fraction,
            "enable_sleep_mode": config.sleep_mode,
        }
    return {
        "model": str(folder),
        "skip_tokenizer_init": True,
        "dtype": dtype,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enable_prefix_caching": True,
        "logprobs_mode": LOGPROBS[config.logprobs],
        "disable_log_stats": True,
        "worker_extension_cls": EXTENSION,
        **device,
    }


def engine_environment(config: EngineConfig) -> dict[str, str]:
    """Environment variables of a process that runs vLLM."""
    workers = config.tensor_parallel_size
    environment = {
        "OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // workers, 1)),
        # Threads that spin at barriers make every step ten times slower on cores that are shared.
        "OMP_WAIT_POLICY": "PASSIVE",
        # The folder is all that is needed; no hub is asked for anything.
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if workers > 1:
        # On CPUs it would want memory of its own for each worker (a NUMA node).
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return environment
