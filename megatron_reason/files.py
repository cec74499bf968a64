"""Atomic files, content hashes, and the names inside a run folder.

A reader never sees a half-written file: writers fill a temporary neighbour, fsync it and rename it.
Not here: table formats (`schema/tables.py`) and checkpoints (`engine/checkpoint.py`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGE_MANIFEST = "stage.json"
QUARANTINE = "quarantine.parquet"


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it becomes `target`, else it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, target)
        _fsync(target.parent)
    finally:
        _remove(temporary)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it replaces `target` in one rename."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    _remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for path in sorted(temporary.rglob("*")):
            _fsync(path)
        _remove(target)
        os.replace(temporary, target)
        _fsync(target.parent)
    finally:
        _remove(temporary)


def remove_unfinished(folder: Path) -> None:
    """Remove what writers that were killed left in `folder` and one level below it.

    Nobody may be writing there.
    """
    for path in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
        _remove(path)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically, as UTF-8."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:  # noqa: ANN401 - JSON is any value
    """Write `value` as indented JSON to `target` atomically."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(source: Path) -> Any:  # noqa: ANN401 - JSON is any value
    """Parse the JSON file `source`."""
    return json.loads(source.read_text(encoding="utf-8"))


def hash_text(text: str, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def hash_file(path: Path, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of the bytes of `path`."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:length]


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
