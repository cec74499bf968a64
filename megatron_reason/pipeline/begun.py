"""The mark in a stage's folder: what it was begun as, and so whether it can be gone on with.

Not here: what it was finished as (`manifest.py`).
"""

from pathlib import Path

from megatron_reason.files import remove_unfinished, write_text

_HASH = "hash"


def begun_as(folder: Path) -> str | None:
    """Hash of everything that the output begun in `folder` depends on; None if none was begun."""
    mark = folder / _HASH
    return mark.read_text(encoding="utf-8").strip() if mark.is_file() else None


def begin(folder: Path, digest: str) -> None:
    """Make or keep `folder`, mark it, and clear away what a killed process left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    write_text(folder / _HASH, digest + "\n")
