"""Checkpoints on disk: their names, what proves that they are whole, which of them stay.

A checkpoint is written under another name, summed, fsynced, looked over and renamed; what carries
the name and agrees with its sums can be loaded. Plain files: no model and no process group here.
Not here: what the files hold (`checkpoint.py`).
"""

import math
import os
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from megatron_reason.config.train import KeepConfig
from megatron_reason.errors import CheckpointError
from megatron_reason.files import write_text
from megatron_reason.logs import get_logger

LATEST = "latest_checkpointed_iteration.txt"
STATE = "train_state.json"
AHEAD = "ahead.json"
SUMS = "files.json"
_INDEX = ".metadata"
_BLOCK = 1 << 22
_SMALL_FILE = 1 << 16
"""Bytes by which a disk is asked whether it takes anything at all."""
_FEW_FILES = 1000
"""Below so many files that a disk may still hold an error names their number."""

Sums = Mapping[str, tuple[int, int]]
"""Bytes and CRC-32 of each file of a checkpoint, by name."""
_SUMS = TypeAdapter(dict[str, tuple[int, int]])
_NO_SUMS = f"{SUMS} is missing or cannot be read"
_LOG = get_logger(__name__)


@dataclass(frozen=True)
class _State:
    """The part of a checkpoint's state that decides whether it stays."""

    update: int
    metrics: Mapping[str, float]


_STATE = TypeAdapter(_State)


def target_of(folder: Path, update: int) -> Path:
    """Where the checkpoint after `update` updates stands once it is whole."""
    return folder / f"iter_{update:07d}"


def partial_of(folder: Path, update: int) -> Path:
    """Where it is written until then."""
    return folder / f".iter_{update:07d}.partial"


def complete(folder: Path) -> list[Path]:
    """Checkpoints that were finished, oldest first."""
    return sorted(path for path in folder.glob("iter_*") if (path / STATE).is_file())


def share(files: Iterable[Path], rank: int, world_size: int) -> list[Path]:
    """Files that `rank` sums and makes durable: those it wrote itself, else an equal part."""
    mine: list[Path] = []
    for index, path in enumerate(sorted(files)):
        writer = path.name.removeprefix("__").split("_")[0]
        is_by_rank = path.suffix == ".distcp" and writer.isdecimal() and int(writer) < world_size
        if (int(writer) if is_by_rank else index % world_size) == rank:
            mine.append(path)
    return mine


def sums_of(files: Iterable[Path], *, durable: bool) -> dict[str, tuple[int, int]]:
    """Bytes and CRC-32 of `files`; `durable` also flushes them to the disk."""
    found: dict[str, tuple[int, int]] = {}
    for path in files:
        size = crc = 0
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                size, crc = size + len(block), zlib.crc32(block, crc)
            if durable:
                os.fsync(stream.fileno())
        found[path.name] = (size, crc)
    return found


def damage(checkpoint: Path, rank: int, world_size: int) -> str | None:
    """What is wrong with this rank's share of a checkpoint's files; None if nothing is.

    What cannot be read is damage as well: the checkpoint before may do.
    """
    stored = _stored_sums(checkpoint)
    if stored is None:
        return _NO_SUMS
    for path in share([checkpoint / name for name in stored], rank, world_size):
        if wrong := _wrong_size(path, stored):
            return wrong
        try:
            found = sums_of([path], durable=False)
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror}"
        if found[path.name] != stored[path.name]:
            return f"{path.name} has another checksum than when it was written"
    return None


def _misfit(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint as far as the sizes of its files tell; None if nothing is."""
    stored = _stored_sums(checkpoint)
    if stored is None:
        return _NO_SUMS
    if wrong := next((w for name in stored if (w := _wrong_size(checkpoint / name, stored))), None):
        return wrong
    return None if _stored_state(checkpoint) else f"{STATE} cannot be read"


def _gap(checkpoint: Path) -> str | None:
    """What Megatron's index names and its files do not hold; None if they hold all of it."""
    # Other readers of checkpoints' names need no torch.
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    try:
        places = FileSystemReader(checkpoint).read_metadata().storage_data
    except Exception as error:  # noqa: BLE001 - unpickling damaged bytes raises anything
        return f"{_INDEX} cannot be read: {error or type(error).__name__}"
    for place in (places or {}).values():
        path, end = checkpoint / place.relative_path, place.offset + place.length
        if not path.is_file() or path.stat().st_size < end:
            return f"{path.name} does not have the {end} bytes that {_INDEX} names"
    return None


def _wrong_size(path: Path, stored: Sums) -> str | None:
    try:
        size, expected = path.stat().st_size, stored[path.name][0]
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    return None if size == expected else f"{path.name} has {size} bytes instead of {expected}"


def _stored_sums(checkpoint: Path) -> Sums | None:
    """Sums a checkpoint came with; None where they cannot be read, or leave out its state."""
    try:
        sums = _SUMS.validate_json((checkpoint / SUMS).read_bytes())
    except (OSError, ValueError):
        return None
    return sums if STATE in sums else None


def _stored_state(checkpoint: Path) -> _State | None:
    """What is read of a checkpoint's state here; None where it cannot be read."""
    try:
        return _STATE.validate_json((checkpoint / STATE).read_bytes())
    except (OSError, ValueError):
        return None


def set_aside(checkpoints: Iterable[Path]) -> None:
    """Rename damaged checkpoints, so that they do not pass for newer than those to come."""
    for path in checkpoints:
        target = path.with_name(f"damaged_{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        path.rename(target)


def point_to(folder: Path, update: int) -> None:
    """Have the file that names the newest checkpoint name that of `update`."""
    write_text(folder / LATEST, f"{update}\n")


def publish(partial: Path, target: Path, update: int) -> None:
    """Give a whole checkpoint its name, in one rename that survives a power cut.

    Raises:
        CheckpointError: its files are not those that were written, so it gets no name.
    """
    if wrong := _misfit(partial) or _gap(partial):
        raise unwritten(target.parent, OSError(wrong))
    shutil.rmtree(target, ignore_errors=True)
    _flush_folder(partial)
    partial.rename(target)
    _flush_folder(target.parent)
    point_to(target.parent, update)


def retire(folder: Path, keep: KeepConfig) -> None:
    """Delete the checkpoints that `keep` does not name, and what interrupted saves left.

    The newest stays in any case: it is deleted only when a newer one has been published. What is
    visibly damaged neither counts as one of those that stay nor is deleted.
    """
    states: dict[Path, _State] = {}
    for path in complete(folder):
        wrong, state = _misfit(path), _stored_state(path)
        if wrong is None and state is not None:
            states[path] = state
        else:
            _LOG.warning("%s is damaged and is left as it is: %s", path, wrong)
    whole = [*states]
    kept = {*whole[-keep.last :]}
    if keep.every is not None:
        kept |= {path for path in whole if states[path].update % keep.every == 0}
    if best := _best(states, keep):
        kept.add(best)
    for path in whole:
        if path not in kept:
            shutil.rmtree(path)
    for path in folder.glob(".iter_*.partial"):
        shutil.rmtree(path)


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to begin a checkpoint that cannot fit.

    Raises:
        CheckpointError: fewer than `num_bytes` are free on the disk of `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CheckpointError(
            str(folder),
            f"a checkpoint takes {num_bytes / 1e9:.3g} GB; {free / 1e9:.3g} GB are free.",
            "Free space, lower train.checkpoint.keep, or move run.dir to a larger disk. What was "
            "saved before is untouched; the same command goes on from there.",
        )


def refusal(folder: Path) -> OSError | None:
    """What the file system says to a small file in `folder`; None where it takes one."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(bytes(_SMALL_FILE))
    except OSError as error:
        return error
    finally:
        probe.unlink(missing_ok=True)
    return None


def unwritten(folder: Path, cause: BaseException) -> CheckpointError:
    """The error that says why a checkpoint could not be written, though there seemed to be room."""
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    disk = os.statvfs(folder)
    room = f"{disk.f_bavail * disk.f_frsize / 1e9:.3g} GB are free"
    # Some file systems have no such limit, and say 0 of 0.
    if disk.f_files and disk.f_favail < _FEW_FILES:
        room += f", for {disk.f_favail} more files (inodes)"
    return CheckpointError(
        str(folder),
        f"the checkpoint could not be written: {lines[-1].strip()}; {room}.",
        "Free space or mend the disk. What was saved before is untouched; the same command goes on "
        "from there.",
    )


def best_of(folder: Path, keep: KeepConfig) -> Path | None:
    """The best checkpoint by the metric that `keep` names; None without such a metric or value."""
    states = {path: state for path in complete(folder) if (state := _stored_state(path))}
    return _best(states, keep)


def _best(states: Mapping[Path, _State], keep: KeepConfig) -> Path | None:
    if keep.best is None:
        return None
    sign = -1 if keep.best_is == "highest" else 1
    found = {path: state.metrics.get(keep.best, math.nan) for path, state in states.items()}
    measured = {path: sign * value for path, value in found.items() if math.isfinite(value)}
    return min(measured, key=lambda path: measured[path]) if measured else None


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
