"""The folder in which servers say where they are, for as long as they answer: one file each.

No torch here. Not here: the servers (`vllm_server.py`), and who asks them (`server_engine.py`).
"""

from contextlib import suppress
from pathlib import Path

from megatron_reason.files import write_text

_SUFFIX = ".url"


def registered(folder: Path) -> tuple[str, ...]:
    """URLs of the servers that are registered in `folder`, in the order of their names."""
    urls: list[str] = []
    for entry in sorted(folder.glob(f"*{_SUFFIX}")):
        # One that goes away at this moment is not there.
        with suppress(FileNotFoundError):
            urls.append(entry.read_text(encoding="utf-8").strip())
    return tuple(urls)


def register(folder: Path, name: str, url: str) -> None:
    """Say that the server called `name` answers at `url`."""
    write_text(folder / f"{name}{_SUFFIX}", f"{url}\n")


def unregister(folder: Path, name: str) -> None:
    """Take back what `register` said; nothing happens where it said nothing."""
    (folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)
