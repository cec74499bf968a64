"""Hugging Face -> Megatron -> Hugging Face by itself, and the proof that nothing is lost.

As a module (`-m megatron_reason.pipeline.conversion JOB`) this is the worker that holds the model
in the asked layout. Not here: the conversion (`models`).
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from megatron_reason import platform
from megatron_reason.config.base import Strict
from megatron_reason.config.load import load_config
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from megatron_reason.files import atomic_folder, hash_file, hash_text, read_json, write_text
from megatron_reason.launch.base import Job
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.logs import setup_logging
from megatron_reason.models.architecture import read_architecture
from megatron_reason.models.divisibility import check_topology
from megatron_reason.models.sources import resolve_model
from megatron_reason.pipeline.parity import largest_gap

_WEIGHTS = "*.safetensors"
_LARGEST_GAP = 1e-3
_REPORT_IT = "Report the model's config.json; do not train this model."


class ConversionSettings(Strict):
    """What a conversion can be told."""

    model: ModelConfig
    """The model; `rope_theta` and `context_length` change what is written."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout in which the model is held in between."""
    threads_per_process: int = 1
    """CPU threads of each worker process."""


class ConversionJob(Strict):
    """What every worker reads."""

    source: Path
    """Hugging Face folder that is read."""
    target: Path
    """Hugging Face folder that is written."""
    settings: ConversionSettings
    """How."""


@dataclass(frozen=True)
class Comparison:
    """What two Hugging Face folders have in common."""

    num_tensors: int
    """Tensors that are bit-identical."""
    num_files: int
    """Other files that are the same byte for byte."""
    differences: tuple[str, ...]
    """Tensors and files that differ, or are in one folder only."""
    largest_logprob_gap: float | None = None
    """Largest difference of a token's log-probability between Megatron and transformers, both in
    float32, in nats; None where it was not measured."""


def bring_in(source: str, target: Path) -> None:
    """Fetch or unpack the model `source` names into the folder `target`.

    Args:
        source: hub id, built-in model or Hugging Face folder.
        target: folder to write, not there yet.

    Raises:
        ConversionError: a model that cannot be fetched, that no family covers, or a target in use.
    """
    if target.exists():
        raise ConversionError(
            str(target), "this is there already.", "Remove it, or give another folder."
        )
    with TemporaryDirectory() as cache:
        folder = resolve_model(source, Path(cache))
        read_architecture(folder)
        with atomic_folder(target) as copy:
            shutil.copytree(folder, copy, dirs_exist_ok=True)


def convert(source: Path, target: Path, overrides: Sequence[str]) -> None:
    """Write `source` to `target`, through a Megatron model in the asked layout.

    Args:
        source: Hugging Face folder.
        target: folder to write, replaced atomically.
        overrides: `--set` texts on `ConversionSettings`.

    Raises:
        ConversionError: a checkpoint that no family covers.
        TopologyError: sizes that the layout cannot split.
        LaunchError: workers that did not end well.
    """
    settings = _settings(source, overrides)
    job = ConversionJob(source=source, target=target, settings=settings)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "conversion.json"
        write_text(file, job.model_dump_json())
        LocalLauncher().run(
            Job(
                name=f"conversion of {source}",
                module="megatron_reason.pipeline.conversion",
                arguments=(str(file),),
                processes=settings.parallel.model_size,
                threads_per_process=settings.threads_per_process,
                log_file=target.parent / f"{target.name}.log",
            )
        )


def verify(source: Path, overrides: Sequence[str]) -> Comparison:
    """Compare `source` with itself after a round trip, and Megatron's answers with transformers'.

    Raises:
        ConversionError: a tensor or file came back changed, or the two compute different things.
        ReasonError: whatever `convert` raises.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder) / source.resolve().name
        convert(source, target, overrides)
        comparison = compare(source, target)
        settings = _settings(source, overrides)
        gap = largest_gap(
            source,
            settings.parallel,
            threads_per_process=settings.threads_per_process,
            log_file=Path(folder) / "parity.log",
        )
    if comparison.differences:
        shown = ", ".join(comparison.differences[:5])
        raise ConversionError(
            str(source),
            f"{len(comparison.differences)} tensors or files came back changed: {shown}.",
            _REPORT_IT,
        )
    if not gap < _LARGEST_GAP:
        raise ConversionError(
            str(source),
            f"Megatron and transformers differ by {gap:.2g} nats in a token's log-probability; "
            f"rounding in float32 stays below {_LARGEST_GAP:g}.",
            _REPORT_IT,
        )
    return replace(comparison, largest_logprob_gap=gap)


def compare(left: Path, right: Path) -> Comparison:
    """Compare two Hugging Face folders tensor by tensor and file by file."""
    ours, theirs = _tensor_digests(left), _tensor_digests(right)
    files, other_files = _file_digests(left), _file_digests(right)
    both = {**ours, **files}, {**theirs, **other_files}
    names = sorted(both[0].keys() | both[1].keys())
    return Comparison(
        num_tensors=sum(theirs.get(name) == digest for name, digest in ours.items()),
        num_files=sum(other_files.get(name) == digest for name, digest in files.items()),
        differences=tuple(name for name in names if both[0].get(name) != both[1].get(name)),
    )


def _settings(source: Path, overrides: Sequence[str]) -> ConversionSettings:
    """What `overrides` say, with the data type of `source`; refuses layouts that do not fit."""
    hf_config, architecture = read_architecture(source)
    dtype = str(read_json(source / "config.json").get("dtype") or hf_config.dtype)
    presets = [f"model.path={source}", f"model.dtype={dtype.removeprefix('torch.')}"]
    settings = load_config(None, [*presets, *overrides], ConversionSettings)
    check_topology(hf_config, architecture, settings.parallel)
    return settings


def _tensor_digests(folder: Path) -> dict[str, str]:
    import torch
    from safetensors import safe_open

    digests: dict[str, str] = {}
    for path in sorted(folder.glob(_WEIGHTS)):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                tensor: Any = tensors.get_tensor(name)
                data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                digests[name] = f"{tensor.dtype} {tuple(tensor.shape)} {hash_text(data.hex())}"
    return digests


def _file_digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hash_file(path)
        for path in folder.iterdir()
        if path.is_file() and not path.match(_WEIGHTS)
    }


def main() -> None:
    """Do the job named on the command line, on this rank."""
    job = ConversionJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, parallel = job.settings.model, job.settings.parallel
    with platform.cpu():
        from megatron_reason.engine.startup import load_model, parallel_world
        from megatron_reason.models.companions import Changes
        from megatron_reason.models.exporter import export_hf

        with parallel_world(parallel, seed=0) as topology:
            setup_logging(rank=topology.rank)
            stage = load_model(model, job.source, parallel, topology)
            changes = Changes(model.rope_theta, model.context_length)
            export_hf(stage, job.source, job.target, topology, changes)


if __name__ == "__main__":
    main()
