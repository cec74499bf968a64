"""Hugging Face -> Megatron -> Hugging Face by itself, and the proof that nothing is lost.

As a module (`-m megatron_reason.pipeline.conversion JOB`) this is the worker that holds the model
in the asked layout. Not here: the conversion (`models`).
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import Field

from megatron_reason import platform
from megatron_reason.config.base import Strict
from megatron_reason.config.load import load_config
from megatron_reason.config.model import ModelConfig
from megatron_reason.config.parallel import ParallelConfig
from megatron_reason.errors import ConversionError
from megatron_reason.files import atomic_folder, hash_file, read_json, write_json, write_text
from megatron_reason.generation.templates import TEMPLATES
from megatron_reason.launch.base import Job
from megatron_reason.launch.local import LocalLauncher
from megatron_reason.logs import setup_logging
from megatron_reason.models.architecture import read_architecture, why_ignored
from megatron_reason.models.checkpoint_files import open_checkpoint
from megatron_reason.models.companions import REPORT, Changes, companions
from megatron_reason.models.divisibility import check_topology
from megatron_reason.models.sources import resolve_model
from megatron_reason.pipeline.parity import Agreement, agreement

_LIBRARIES = ("megatron-core", "safetensors", "torch", "transformers")
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
    max_shard_size: int | None = Field(default=None, ge=1)
    """Largest file of weights in bytes; None keeps the source's distribution over files."""
    chat_template: str | None = None
    """Chat template that is written: one of `mreason list templates`, or a file with Jinja text;
    None keeps the model's."""


class ConversionJob(Strict):
    """What every worker reads."""

    source: Path
    """Hugging Face folder that is read."""
    target: Path
    """Hugging Face folder that is written."""
    settings: ConversionSettings
    """How."""
    chat_template: str | None
    """Jinja text to write; None keeps the model's."""


@dataclass(frozen=True)
class Comparison:
    """What two Hugging Face folders have in common."""

    num_tensors: int
    """Tensors that are bit-identical."""
    num_files: int
    """Other files that are the same byte for byte."""
    differences: tuple[str, ...]
    """Tensors and files that differ, or are in one folder only."""
    ignored: Mapping[str, str]
    """Tensors that the model has no place for, with the reason; they are not compared."""


@dataclass(frozen=True)
class Verification:
    """What a verification found."""

    round_trip: Comparison
    """The model before and after a round trip through Megatron."""
    agreement: Agreement
    """Megatron's answers beside those of transformers."""


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
        ConfigError: a chat template that is neither known nor a file.
        TopologyError: sizes that the layout cannot split.
        LaunchError: workers that did not end well.
    """
    settings = _settings(source, overrides)
    template = _template_text(settings.chat_template)
    job = ConversionJob(source=source, target=target, settings=settings, chat_template=template)
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


def verify(source: Path, overrides: Sequence[str], report: Path | None = None) -> Verification:
    """Compare `source` with itself after a round trip, and Megatron's answers with transformers'.

    Args:
        source: Hugging Face folder.
        overrides: `--set` texts on `ConversionSettings`.
        report: JSON file that is written before anything is refused; None for
            `conversion_report.json` in `source`.

    Raises:
        ConversionError: a tensor or file came back changed, or the two compute different things.
        ReasonError: whatever `convert` raises.
    """
    settings = _settings(source, overrides)
    with TemporaryDirectory() as folder:
        target = Path(folder) / source.resolve().name
        convert(source, target, overrides)
        comparison = compare(source, target)
        digests = _tensor_digests(target)
        found = agreement(
            source,
            settings.parallel,
            threads_per_process=settings.threads_per_process,
            log_file=Path(folder) / "parity.log",
        )
    verification = Verification(comparison, found)
    content = {
        **asdict(verification),
        "parallel": settings.parallel.model_dump(),
        "tensor_sha256": digests,
        "versions": {name: version(name) for name in _LIBRARIES},
    }
    write_json(report or source / REPORT, content)
    _refuse_differences(source, verification)
    return verification


def _refuse_differences(source: Path, found: Verification) -> None:
    differences, gap = found.round_trip.differences, found.agreement.largest_logprob_gap
    if differences:
        raise ConversionError(
            str(source),
            f"{len(differences)} tensors or files came back changed: {', '.join(differences[:5])}.",
            _REPORT_IT,
        )
    if not gap < _LARGEST_GAP:
        raise ConversionError(
            str(source),
            f"Megatron and transformers differ by {gap:.2g} nats in a token's log-probability; "
            f"rounding in float32 stays below {_LARGEST_GAP:g}.",
            _REPORT_IT,
        )


def compare(left: Path, right: Path) -> Comparison:
    """Compare a Hugging Face folder with another made from it, tensor by tensor, file by file."""
    config, architecture = read_architecture(left)
    shape = architecture.shape(config)
    ours, theirs = _tensor_digests(left), _tensor_digests(right)
    reasons = {name: why_ignored(name, shape) for name in ours}
    ignored = {name: reason for name, reason in reasons.items() if reason}
    files, other_files = _file_digests(left), _file_digests(right)
    before = {**{n: d for n, d in ours.items() if n not in ignored}, **files}
    after = {**theirs, **other_files}
    names = sorted(before.keys() | after.keys())
    return Comparison(
        num_tensors=sum(theirs.get(name) == digest for name, digest in ours.items()),
        num_files=sum(other_files.get(name) == digest for name, digest in files.items()),
        differences=tuple(name for name in names if before.get(name) != after.get(name)),
        ignored=ignored,
    )


def _settings(source: Path, overrides: Sequence[str]) -> ConversionSettings:
    """What `overrides` say, with the data type of `source`; refuses layouts that do not fit."""
    hf_config, architecture = read_architecture(source)
    named = str(read_json(source / "config.json").get("dtype") or hf_config.dtype)
    # Nothing is computed in float16 here; float32 holds each of its numbers, and gives it back.
    dtype = {"float16": "float32"}.get(short := named.removeprefix("torch."), short)
    presets = [f"model.path={source}", f"model.dtype={dtype}"]
    settings = load_config(None, [*presets, *overrides], ConversionSettings)
    check_topology(hf_config, architecture, settings.parallel)
    return settings


def _template_text(template: str | None) -> str | None:
    if template is None or Path(template).is_file():
        return template and Path(template).read_text(encoding="utf-8")
    return TEMPLATES.get(template, "chat_template").jinja


def _tensor_digests(folder: Path) -> dict[str, str]:
    """Data type, shape and SHA-256 of every tensor."""
    import torch

    digests: dict[str, str] = {}
    with open_checkpoint(folder) as checkpoint:
        for name, stored in checkpoint.tensors.items():
            whole = checkpoint.part(name, slice(None), slice(None))
            data: Any = whole.contiguous().view(torch.uint8).numpy()
            kind = f"{stored.dtype} {stored.shape}".removeprefix("torch.")
            digests[name] = f"{kind} {hashlib.sha256(data).hexdigest()}"
    return digests


def _file_digests(folder: Path) -> dict[str, str]:
    return {path.name: hash_file(path) for path in companions(folder)}


def main() -> None:
    """Do the job named on the command line, on this rank."""
    job = ConversionJob.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, parallel = job.settings.model, job.settings.parallel
    with platform.cpu():
        from megatron_reason.engine.startup import load_model, parallel_world
        from megatron_reason.models.exporter import export_hf

        with parallel_world(parallel, seed=0) as topology:
            setup_logging(rank=topology.rank)
            stage = load_model(model, job.source, parallel, topology)
            changes = Changes(model.rope_theta, model.context_length, job.chat_template)
            export_hf(
                stage, job.source, job.target, topology, changes,
                max_shard_size=job.settings.max_shard_size,
            )  # fmt: skip


if __name__ == "__main__":
    main()
